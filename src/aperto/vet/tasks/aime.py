"""AIME: contest problems whose answer is a whole number from 0 to 999."""

from __future__ import annotations

import json
from pathlib import Path

from aperto.vet.suites.item import Answer, Grade, Item, Turn
from aperto.vet.tasks.extract import whole_number

PROMPT_ID = "aperto/aime/1"
PROMPT = "{problem}\n\nThe answer is a whole number. Give it at the end within \\boxed{{}}."


def load(path: Path, suite: str) -> tuple[Item, ...]:
    """Problems of JSON lines with `problem` and `answer` (any capitals), in their order."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    items = []
    for index, raw in enumerate(rows):
        row = {key.lower(): value for key, value in raw.items()}
        name = f"{suite}/{index:02d}"
        turns = (Turn("user", PROMPT.format(problem=row["problem"])),)
        items.append(Item(suite, name, name, turns, {"answer": str(int(row["answer"]))}))
    return tuple(items)


def grade(item: Item, answer: Answer) -> Grade:
    """1 where the number in the last box, or else the last number, is the right one."""
    said = whole_number(answer.final)
    right = said is not None and str(said) == item.expected["answer"]
    return Grade(float(right), "no answer" if said is None else str(said))
