"""One turn of a conversation, and what the generators of turns draw from."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import texts

from aperto.harmony import FunctionTool, Message


@dataclasses.dataclass
class Turn:
    """One user turn and what the assistant says to it."""

    user: str
    answer: str
    thought: str | None = None
    developer: str | None = None
    identity: str | None = None
    tools: tuple[FunctionTool, ...] = ()
    call: tuple[str, str] | None = None
    """Function name and JSON arguments: the answer is this call, or follows its `output`."""
    output: str | None = None
    effort: str = "medium"
    key: str = ""
    """What decides whether it is held out; "" is always trained on."""


@dataclasses.dataclass
class Sample:
    """A conversation, its expected answer and where it belongs."""

    skill: str
    effort: str
    messages: list[Message]
    key: str
    expected: dict[str, Any]


def number(rng: random.Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def rough(rng: random.Random, text: str) -> str:
    """Text as people type it: capitals, marks and politeness come and go; now and then a typo."""
    out = text
    draw = rng.random()
    if draw < 0.12 and len(out) > 12:
        at = rng.randrange(3, len(out) - 2)
        if out[at].isalpha() and out[at + 1].isalpha():
            out = out[:at] + out[at + 1] + out[at] + out[at + 2 :]
    if rng.random() < 0.5:
        out = out[0].upper() + out[1:]
    if rng.random() < 0.15:
        out = rng.choice(("Please: ", "Hey, ", "Hi, ", "Nano, ", "Question: ", "So, ")) + out
    if rng.random() < 0.12:
        out += rng.choice((" please", ", please", " now", " thanks"))
    return out + rng.choice(("", "?", "?", "?", ".", "!", " ?"))


def thinking(effort: str, text: str) -> str | None:
    return None if effort == "low" else text


def word(rng: random.Random) -> str:
    pool = texts.words()
    return pool[min(int(len(pool) * rng.random() ** 1.5), len(pool) - 1)]


def odd_word(rng: random.Random) -> str:
    """A word nobody has seen: random syllables, or two words run together."""
    if rng.random() < 0.5:
        return word(rng) + word(rng)
    pair = (rng.choice("bcdfghklmnprstvwz") + rng.choice("aeiou") for _ in range(3))
    return "".join(pair)


def some_words(rng: random.Random, low: int, high: int) -> list[str]:
    return [
        word(rng) if rng.random() < 0.8 else odd_word(rng) for _ in range(rng.randint(low, high))
    ]
