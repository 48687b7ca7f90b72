"""Questions and answers as the suites see them: plain turns in, a grade out."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping
from typing import Any, Literal

Role = Literal["system", "developer", "user", "assistant", "tool"]


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """One message of a question."""

    role: Role
    text: str
    name: str | None = None
    """Function: of a tool's answer, or called by the assistant with `text` as its arguments."""


@dataclasses.dataclass(frozen=True, slots=True)
class Function:
    """A function the model may call."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON Schema of its arguments."""


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One question, with what its grader needs to know."""

    suite: str
    id: str
    cluster: str
    """What it shares with related questions: its templates."""
    turns: tuple[Turn, ...]
    expected: Mapping[str, str]
    """Canaries and the right answer, by name."""
    functions: tuple[Function, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """A function call of the answer."""

    name: str
    arguments: str
    """As written; JSON where the model kept to the form."""

    def parsed(self) -> dict[str, Any] | None:
        """The arguments as an object; None where they are none."""
        try:
            value = json.loads(self.arguments)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to one question."""

    final: str
    analysis: str = ""
    calls: tuple[Call, ...] = ()
    truncated: bool = False
    repairs: int = 0
    """Slips of format that the parser mended."""


@dataclasses.dataclass(frozen=True, slots=True)
class Grade:
    """A score and the word for it."""

    score: float
    label: str
    analysis_score: float | None = None
    """The same look at the reasoning; reported apart, decides nothing."""


_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"


def generator(*parts: object) -> random.Random:
    """A generator that depends on these parts alone, the same on every machine."""
    return random.Random("/".join(map(str, parts)))


def canary(rng: random.Random) -> str:
    """A made-up word and four digits, `kobira-4827`: no text holds it by chance."""
    syllables = [rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(3)]
    return "".join(syllables) + f"-{rng.randrange(1000, 10000)}"
