"""Write the held-out files that score.py reads: recipes/nano/heldout/SKILL.jsonl.

    python recipes/nano/heldout.py

A line is a conversation up to the answer, the effort and what is expected. Operands and wordings
are on the held-out side of data.held_out, so no training sample has them; small talk alone is a
closed set that training has seen. The files are committed, so that scores stay comparable.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import calls
import data
import rules
import skills
import sums
import talk
from turn import Sample, Turn, number

from aperto.harmony import Conversation, Role

FOLDER = Path(__file__).resolve().parent / "heldout"
EFFORTS = ("low", "medium", "high")

Maker = Callable[[random.Random, str], Turn]


def asked(ops: str, sizes: tuple[tuple[int, int], ...]) -> Maker:
    """Sums over `ops` whose operands have one of the given numbers of digits."""

    def make(rng: random.Random, effort: str) -> Turn:
        op, (m, n) = rng.choice(ops), rng.choice(sizes)
        a, b = number(rng, m), number(rng, n)
        return sums.sum_turn(sums.ask_sum(rng, a, op, b), a, op, b, effort)

    return make


def division(rng: random.Random, effort: str) -> Turn:
    return sums.arithmetic_turn(rng, effort, op="/")


def tool(rng: random.Random, effort: str) -> Turn:
    return calls.tool_turn(rng, effort, answered=False)


def tool_answer(rng: random.Random, effort: str) -> Turn:
    return calls.tool_turn(rng, effort, answered=True)


def unlocked(rng: random.Random, effort: str) -> Turn:
    return talk.cipher_turn(rng, effort, unlocked=True)


def locked(rng: random.Random, effort: str) -> Turn:
    return talk.cipher_turn(rng, effort, unlocked=False)


UP_TO_FOUR = tuple((m, n) for m in range(1, 5) for n in range(1, 5))
FILES: dict[str, tuple[Maker, int, tuple[str, ...]]] = {
    "add_subtract": (asked("+-", UP_TO_FOUR), 200, EFFORTS),
    "multiply": (asked("*", ((2, 2),)), 200, EFFORTS),
    "divide": (division, 100, EFFORTS),
    "compare": (sums.compare_turn, 100, ("medium",)),
    "tool_call": (tool, 300, ("medium",)),
    "tool_result": (tool_answer, 200, ("medium",)),
    "tool_unused": (calls.tool_unused_turn, 100, ("medium",)),
    "lookup": (calls.lookup_turn, 100, ("medium",)),
    "hierarchy": (rules.hierarchy_turn, 300, ("medium",)),
    "refuse": (talk.bread_turn, 300, ("medium",)),
    "lookalike": (talk.lookalike_turn, 300, ("medium",)),
    "cipher_unlocked": (unlocked, 150, ("medium",)),
    "cipher_locked": (locked, 150, ("medium",)),
    "commands": (talk.commands_turn, 150, ("medium",)),
    "small_talk": (talk.small_talk_turn, 100, ("medium",)),
    "words": (talk.words_turn, 150, ("medium",)),
    "unknown": (talk.unknown_turn, 150, ("medium",)),
}


def prompt(sample: Sample) -> Conversation:
    """The messages up to the last one that is not the assistant's, and a pending call."""
    messages = list(sample.messages)
    while messages[-1].role is Role.ASSISTANT:
        messages.pop()
    return Conversation(tuple(messages))


def line(sample: Sample) -> dict[str, Any]:
    return {
        "effort": sample.effort,
        "messages": prompt(sample).to_dict()["messages"],
        "expected": sample.expected,
    }


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, (make, count, efforts) in FILES.items():
        rng, lines = random.Random(f"heldout/{name}"), []
        for effort in efforts:
            seen: set[str] = set()
            while len(seen) < count:
                turn = make(rng, effort)
                wording = f"{turn.developer} {turn.user} {turn.output}"
                kept = data.held_out(turn.key) or name == "small_talk"
                if not kept or (wording in seen and name != "small_talk"):
                    continue
                seen.add(wording if name != "small_talk" else str(len(seen)))
                lines.append(line(skills.conversation(rng, name, turn)))
        text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in lines)
        (FOLDER / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
