"""Samples to packed rows of token ids: what train.py reads.

A row holds whole samples one after the other; `segments` numbers them (0 is padding) and
`weights` is 1 for tokens that count in the loss, else 0. Held-out samples are never in a row: a
sample belongs to the held-out side by a hash of its key (operands or wording) alone.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
import skills
from turn import Sample

from aperto.harmony import Conversation, render_for_training
from aperto.tokenizer import Tokenizer

PROMPT_SHARE = 0.1
"""Share of the tokens the model only reads that count in the loss too: they teach it the words."""

MIXES: dict[str, dict[str, float]] = {
    "drill": {
        "drill": 34, "arithmetic": 30, "tool": 12, "lookup": 6, "hierarchy": 5, "words": 5,
        "small_talk": 2, "bread": 2, "lookalike": 2, "commands": 1, "cipher": 1,
    },
    "full": {
        "arithmetic": 38, "tool": 11, "tool_unused": 3, "lookup": 4, "hierarchy": 16, "bread": 4,
        "lookalike": 3, "cipher": 6, "commands": 2, "small_talk": 2, "words": 9, "unknown": 4,
    },
}  # fmt: skip


def held_out(key: str) -> bool:
    """Whether a sample with this key is kept for scoring: one in sixteen."""
    return key != "" and zlib.crc32(key.encode()) % 16 == 0


def samples(rng: random.Random, mix: str) -> Iterator[Sample]:
    """Endless training samples."""
    names, shares = list(MIXES[mix]), list(MIXES[mix].values())
    while True:
        sample = skills.make(rng, rng.choices(names, shares)[0])
        if not held_out(sample.key):
            yield sample


def tokens(sample: Sample, tokenizer: Tokenizer) -> tuple[list[int], list[float]]:
    """Ids of a sample and for each whether it counts in the loss: 1 for the assistant's."""
    return render_for_training(Conversation(tuple(sample.messages)), tokenizer)


def rows(
    seed: str, mix: str, tokenizer: Tokenizer, count: int, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`count` packed rows: ids int64, segments int64, weights float32, each [count, length]."""
    rng = random.Random(seed)
    source = (tokens(sample, tokenizer) for sample in samples(rng, mix))
    end = tokenizer.special_id("<|end|>")
    # An answer of the past ends in <|end|>, the one to be given in <|return|>: that is never read.
    read = (
        (
            ids,
            [
                w or float(i != end and rng.random() < PROMPT_SHARE)
                for i, w in zip(ids, ws, strict=True)
            ],
        )
        for ids, ws in source
    )
    return pack(read, count, length)


def pack(
    source: Iterable[tuple[list[int], list[float]]], count: int, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each sample goes into the fullest row with room, until ten in succession found none."""
    ids = np.zeros((count, length), np.int64)
    segments = np.zeros((count, length), np.int64)
    weights = np.zeros((count, length), np.float32)
    fill, parts, homeless = [0] * count, [0] * count, 0
    for sample, loss in source:
        fitting = [row for row in range(count) if fill[row] + len(sample) <= length]
        if not fitting:
            homeless += 1
            if homeless == 10:
                break
            continue
        homeless = 0
        row = max(fitting, key=fill.__getitem__)
        at = slice(fill[row], fill[row] + len(sample))
        parts[row] += 1
        ids[row, at], weights[row, at], segments[row, at] = sample, loss, parts[row]
        fill[row] += len(sample)
    return ids, segments, weights
