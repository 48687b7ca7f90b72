"""IFBench: answers held to instructions that can be checked by rule."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aperto.vet.suites.item import Answer, Grade, Item, Turn
from aperto.vet.tasks.ifbench_checks import CHECKS

PROMPT_ID = "publisher/ifbench/26.3"
"""The publisher's own words, unchanged."""


def load(path: Path) -> tuple[Item, ...]:
    """Items of the publisher's file (JSON lines)."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(_item(json.loads(line)) for line in lines if line.strip())


def grade(item: Item, answer: Answer) -> Grade:
    """1 where all instructions are followed, loosely: see `followed`. The label counts them."""
    asked = json.loads(item.expected["instructions"])
    done = [any(follows(one, text) for text in variants(answer.final)) for one in asked]
    return Grade(float(all(done)), f"{sum(done)} of {len(done)}")


def grade_strict(item: Item, answer: Answer) -> Grade:
    """1 where all instructions are followed by the answer exactly as it is."""
    asked = json.loads(item.expected["instructions"])
    done = [follows(one, answer.final) for one in asked]
    return Grade(float(all(done)), f"{sum(done)} of {len(done)}")


def follows(
    instruction: tuple[str, Mapping[str, Any]],
    text: str,
    checks: Mapping[str, Callable[[str, Mapping[str, Any]], bool]] = CHECKS,
) -> bool:
    """Whether a text follows one instruction; an empty one follows none.

    A text that a check has no answer for (no words to take a share of) does not follow either.
    """
    name, arguments = instruction
    if not text.strip():
        return False
    try:
        return bool(checks[name](text, arguments))
    except (IndexError, ZeroDivisionError):
        return False


def variants(text: str) -> Sequence[str]:
    """A text, and without its first line, its last, both, and each without asterisks."""
    lines = text.split("\n")
    parts = (text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])))
    return (*parts, *(part.replace("*", "") for part in parts))


def _item(row: dict[str, Any]) -> Item:
    name = f"ifbench/{row['key']}"
    instructions = [
        (which, {key: value for key, value in (given or {}).items() if value is not None})
        for which, given in zip(row["instruction_id_list"], row["kwargs"], strict=True)
    ]
    return Item(
        suite="ifbench",
        id=name,
        cluster=name,
        turns=(Turn("user", row["prompt"]),),
        expected={"instructions": json.dumps(instructions)},
    )
