"""Multiple choice: GPQA Diamond, MMLU, and whatever has a question, options and a right one.

Options are put into an order drawn by seed, item and repeat of the draw: every arm sees the same.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aperto.errors import EvidenceError
from aperto.vet.suites.item import Answer, Grade, Item, Turn, generator
from aperto.vet.tasks.extract import letter

PROMPT_ID = "aperto/choice/1"
PROMPT = (
    "{question}\n\n{options}\n\nThink it through, then end with a line that says only: "
    "Answer: LETTER, where LETTER is one of {letters}."
)
LETTERS = "ABCDEFGHIJ"


def load_gpqa(path: Path, *, seed: int = 0, permutations: int = 1) -> tuple[Item, ...]:
    """Items of the publisher's table; each question once for every permutation, in one cluster."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return tuple(
        _gpqa(row, index, seed, turn)
        for index, row in enumerate(rows)
        for turn in range(permutations)
    )


def load_mmlu(path: Path) -> tuple[Item, ...]:
    """Items of JSON lines {question, choices, answer (index), subject}; options in their order."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    return tuple(
        item("mmlu", f"{row.get('subject', 'mmlu')}/{index:05d}", row, row["choices"], None)
        for index, row in enumerate(rows)
    )


def grade(one: Item, answer: Answer) -> Grade:
    """1 where the last letter the answer names is the right one; the label is that letter."""
    said = letter(answer.final, one.expected["letters"])
    return Grade(float(said == one.expected["answer"]), said or "no answer")


def item(
    suite: str, key: str, row: dict[str, Any], options: Sequence[str], order: Sequence[int] | None
) -> Item:
    """One question with its options in an order; `row` has `question`, and `answer` as an index.

    Raises EvidenceError where the right answer is none of the options.
    """
    right = int(row["answer"])
    if not 0 <= right < len(options) <= len(LETTERS):
        raise EvidenceError(
            f"{suite}, {key}: answer {right} of {len(options)} options; expected an index into "
            f"2 to {len(LETTERS)} options"
        )
    shown = list(order if order is not None else range(len(options)))
    letters = LETTERS[: len(options)]
    lines = [f"{name}) {options[index]}" for name, index in zip(letters, shown, strict=True)]
    prompt = PROMPT.format(
        question=row["question"].strip(), options="\n".join(lines), letters=", ".join(letters)
    )
    return Item(
        suite=suite,
        id=f"{suite}/{key}",
        cluster=f"{suite}/{key.partition('#')[0]}",
        turns=(Turn("user", prompt),),
        expected={"answer": letters[shown.index(right)], "letters": letters},
    )


def _gpqa(row: dict[str, str], index: int, seed: int, turn: int) -> Item:
    options = [row["Correct Answer"], *(row[f"Incorrect Answer {n}"] for n in (1, 2, 3))]
    order = [0, 1, 2, 3]
    generator(seed, "gpqa", index, turn).shuffle(order)
    key = f"{index:03d}" + (f"#{turn}" if turn else "")
    options = [option.strip() for option in options]
    return item("gpqa_diamond", key, {"question": row["Question"], "answer": 0}, options, order)
