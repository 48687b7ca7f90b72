"""Build nano's vocabulary: o200k trimmed so that nano's own text is cut exactly as o200k cuts it.

Kept are the 256 bytes, the first tokens of o200k, every token that sampled training text uses
often, and the tokens each of those is merged from. Dropping merges that never happen cannot
change the others, so kept tokens appear exactly where o200k would put them. Tokens of several
digits are all dropped: numbers are digit by digit.

    python recipes/nano/vocab.py OUT/tokenizer.json
"""

from __future__ import annotations

import collections
import itertools
import json
import random
import sys
from pathlib import Path

import data
import texts

from aperto.harmony import Conversation, render
from aperto.tokenizer import Tokenizer

SIZE = 2048
SPECIALS = (
    "startoftext", "endoftext", "return", "constrain", "channel", "start", "end", "message", "call",
)  # fmt: skip
FIRST = 700
"""Commonest tokens that are kept whatever the text."""


def parents(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that o200k merges last into `token`."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, 1 << 30) for a, b in itertools.pairwise(parts)]
        at = min(range(len(pairs)), key=pairs.__getitem__)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def closure(token: bytes, ranks: dict[bytes, int]) -> set[bytes]:
    """A token and everything it is merged from."""
    if len(token) == 1:
        return {token}
    left, right = parents(token, ranks)
    return {token} | closure(left, ranks) | closure(right, ranks)


def several_digits(token: bytes) -> bool:
    return len(token) > 1 and token.isdigit()


def corpus_counts(samples: int = 30_000) -> collections.Counter[bytes]:
    """How often each o200k token occurs in sampled conversations."""
    tokenizer = Tokenizer.bundled()
    source = data.samples(random.Random(7), "full")
    counts: collections.Counter[int] = collections.Counter()
    for _ in range(samples):
        counts.update(render(Conversation(tuple(next(source).messages)), tokenizer, next_role=None))
    by_id = {rank: token for token, rank in texts.ranks().items()}
    return collections.Counter({by_id[i]: n for i, n in counts.items() if i in by_id})


def build() -> Tokenizer:
    ranks = texts.ranks()
    kept = {bytes([value]) for value in range(256)}
    common = sorted(ranks, key=ranks.__getitem__)[:FIRST]
    wanted = [t for t in common if t.isascii()] + [t for t, _ in corpus_counts().most_common()]
    for token in wanted:
        more = closure(token, ranks) if not several_digits(token) else set()
        if len(kept | more) <= SIZE - len(SPECIALS):
            kept |= more
    # Byte tokens come first in o200k, so ids in order of rank keep byte tokens at 0 to 255.
    trimmed = {token: i for i, token in enumerate(sorted(kept, key=ranks.__getitem__))}
    special = {f"<|{name}|>": len(trimmed) + i for i, name in enumerate(SPECIALS)}
    return Tokenizer(trimmed, special)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    tokenizer = build()
    target.write_text(json.dumps(tokenizer.to_hf(), ensure_ascii=False), encoding="utf-8")
    sys.stdout.write(f"{tokenizer.vocab_size} entries in {target}\n")
