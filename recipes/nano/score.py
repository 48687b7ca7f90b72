"""Score the embedded model on its held-out files, through the engine that users run.

    python recipes/nano/score.py [SKILL ...] [--temperature T] [--limit N] [--json FILE]

An answer counts as right only if its final message (or its call: name and arguments) is the
expected one word for word. An answer is valid harmony if nothing had to be repaired and it ended
by itself in one final message or one call. Intervals are Wilson's, 95 %.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.progress import track

import aperto
from aperto.chat import ChatOptions
from aperto.config import EngineConfig
from aperto.engine import SamplingParams
from aperto.harmony import FINAL, Conversation, Message
from aperto.local_model import Answer, collect

FOLDER = Path(__file__).resolve().parent / "heldout"
MOST_TOKENS = 512
AT_ONCE = 64
REFUSED = "can't help"


@dataclasses.dataclass
class Tally:
    """Counts of one skill at one effort."""

    n: int = 0
    right: int = 0
    valid: int = 0
    refused: int = 0
    tokens: int = 0

    def add(self, answer: Answer, expected: dict[str, Any]) -> None:
        """Count one answer."""
        self.n += 1
        self.right += is_right(answer, expected)
        self.valid += is_valid(answer)
        self.refused += REFUSED in answer.text
        self.tokens += answer.usage.completion_tokens


def is_right(answer: Answer, expected: dict[str, Any]) -> bool:
    """Whether the answer is the expected text or the expected call."""
    if "final" in expected:
        return not answer.calls and answer.text == expected["final"]
    if len(answer.calls) != 1 or answer.calls[0].recipient != f"functions.{expected['call']}":
        return False
    try:
        given: Any = json.loads(answer.calls[0].text)
    except ValueError:
        return False
    return bool(given == expected["arguments"])


def is_valid(answer: Answer) -> bool:
    """Whether the model kept to the format all by itself."""
    ends = [m for m in answer.messages if m.channel == FINAL or m.recipient is not None]
    ended = answer.finish_reason in ("stop", "call")
    return ended and not answer.repairs and len(ends) == 1 and ends[0] is answer.messages[-1]


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share."""
    if n == 0:
        return 0.0, 1.0
    share, square = right / n, z * z
    middle = (share + square / (2 * n)) / (1 + square / n)
    spread = z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, middle - spread), min(1.0, middle + spread)


def answers(
    model: aperto.LocalModel, conversations: Iterable[Conversation], temperature: float
) -> Iterator[Answer]:
    """Answers in order, some at a time in one batch; the seeds are 0, 1, 2 and so on."""
    waiting = []
    for seed, conversation in enumerate(conversations):
        sampling = SamplingParams(temperature=temperature, seed=seed)
        options = ChatOptions(max_tokens=MOST_TOKENS, sampling=sampling)
        waiting.append(model.conversations.stream(conversation, options))
        if len(waiting) == AT_ONCE:
            yield from map(collect, waiting)
            waiting = []
    yield from map(collect, waiting)


def read(name: str, limit: int | None) -> list[dict[str, Any]]:
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    step = max(1, -(-len(entries) // limit)) if limit else 1
    return entries[::step]


def score(
    model: aperto.LocalModel, name: str, temperature: float, limit: int | None
) -> dict[str, Tally]:
    """Tallies of a skill, by effort."""
    entries = read(name, limit)
    conversations = [
        Conversation(tuple(Message.from_dict(m) for m in entry["messages"])) for entry in entries
    ]
    tallies: dict[str, Tally] = {}
    results = answers(model, conversations, temperature)
    found = track(results, description=f"{name:16}", total=len(entries), transient=True)
    for entry, answer in zip(entries, found, strict=True):
        tallies.setdefault(entry["effort"], Tally()).add(answer, entry["expected"])
    return tallies


def percent(right: int, n: int) -> str:
    low, high = wilson(right, n)
    return f"{100 * right / n:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def table(scores: dict[str, dict[str, Tally]]) -> str:
    """The scores as a Markdown table."""
    lines = [
        "| skill | effort | n | right (95 % interval) | tokens an answer |",
        "|---|---|---|---|---|",
    ]
    for name, tallies in scores.items():
        for effort, tally in tallies.items():
            share, tokens = percent(tally.right, tally.n), tally.tokens / tally.n
            lines.append(f"| {name} | {effort} | {tally.n} | {share} | {tokens:.0f} |")
    every = [tally for tallies in scores.values() for tally in tallies.values()]
    medium = [tallies["medium"] for tallies in scores.values() if "medium" in tallies]
    for label, group in (("medium", medium), ("all", every)):
        n = sum(t.n for t in group)
        share = percent(sum(t.valid for t in group), n)
        lines.append(f"| valid harmony | {label} | {n} | {share} | |")
    if "lookalike" in scores:
        tally = scores["lookalike"]["medium"]
        share = percent(tally.refused, tally.n)
        lines.append(f"| look-alikes refused (less is better) | medium | {tally.n} | {share} | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = sorted(path.stem for path in FOLDER.glob("*.jsonl"))
    parser.add_argument("skills", nargs="*", metavar="SKILL", help="; ".join(names))
    parser.add_argument("--model", default="nano", help="name or path of the checkpoint")
    parser.add_argument("--precision", choices=("q8", "exact"), default="q8")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token")
    parser.add_argument("--limit", type=int, help="at most so many lines of each file")
    parser.add_argument("--json", type=Path, help="write the tallies there too")
    arguments = parser.parse_args()
    config = EngineConfig(cache_tokens=65536)
    with aperto.load(arguments.model, precision=arguments.precision, config=config) as model:
        scores = {
            name: score(model, name, arguments.temperature, arguments.limit)
            for name in arguments.skills or names
        }
    sys.stdout.write(table(scores))
    if arguments.json:
        plain = {
            name: {effort: dataclasses.asdict(t) for effort, t in tallies.items()}
            for name, tallies in scores.items()
        }
        arguments.json.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
