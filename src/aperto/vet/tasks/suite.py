"""What a capability suite is: its items, its grader, and everything that its numbers depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

from aperto.vet.sources import Data
from aperto.vet.suites.item import Answer, Grade, Item

Grader = Callable[[Item, Answer], Grade]


@dataclasses.dataclass(frozen=True, slots=True)
class Suite:
    """One suite, pinned."""

    name: str
    summary: str
    prompt_id: str
    """Names the words of the prompt; other words get another id."""
    source: str | None
    """Id in `sources.toml`; None where items are made by rules."""
    load: Callable[[Data | None], tuple[Item, ...]]
    """Items of the located data."""
    grade: Grader
    num_items: int | None
    """Number of questions in the pinned data; None where it is not known here."""
    epochs: int = 1
    """Answers to each question by default."""
    published: str | None = None
    """Suite in `published.toml`."""
    kind: Literal["capability", "behaviour"] = "capability"
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"low": 16_384, "medium": 65_536, "high": 131_072}
    )
    """Room for an answer, reasoning included, by effort."""


def judged(suite: Suite, item: Item, answer: Answer) -> Grade:
    """The grade of an answer; one that was cut off is wrong and still counts."""
    if answer.truncated:
        return Grade(0.0, "truncated")
    return suite.grade(item, answer)
