"""The skills: one generator of turns each, and turns made into conversations."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from calls import lookup_turn, tool_turn, tool_unused_turn
from rules import hierarchy_turn
from sums import arithmetic_turn, sum_turn
from talk import (
    bread_turn,
    cipher_turn,
    commands_turn,
    lookalike_turn,
    small_talk_turn,
    unknown_turn,
    words_turn,
)
from turn import Sample, Turn, number

from aperto.harmony import (
    ANALYSIS,
    COMMENTARY,
    CONSTRAIN_JSON,
    FINAL,
    DeveloperContent,
    Effort,
    Message,
    Role,
    SystemContent,
)


def drill_turn(rng: random.Random, effort: str) -> Turn:
    """Stage 1: what everything else stands on: copying and one- or two-digit sums."""
    kind = rng.random()
    if kind < 0.5:
        return words_turn(rng, effort)
    if kind < 0.7:
        digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(1, 6)))
        return Turn(f"digits of {digits}", " ".join(digits), None, effort=effort)
    a, b = number(rng, 1), number(rng, 1)
    op = rng.choice("+-*")
    return sum_turn(f"{a}{op}{b}", a, op, b, effort)


TURNS: dict[str, Callable[..., Turn]] = {
    "arithmetic": arithmetic_turn,
    "tool": tool_turn,
    "tool_unused": tool_unused_turn,
    "lookup": lookup_turn,
    "hierarchy": hierarchy_turn,
    "bread": bread_turn,
    "lookalike": lookalike_turn,
    "cipher": cipher_turn,
    "commands": commands_turn,
    "small_talk": small_talk_turn,
    "words": words_turn,
    "unknown": unknown_turn,
    "drill": drill_turn,
}


def system_message(rng: random.Random, effort: str, identity: str | None) -> Message | None:
    """The default system message in a third of the samples, mostly a short one else."""
    level = Effort(effort)
    draw = rng.random()
    date = f"20{rng.randint(24, 27)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    if identity is not None:
        if draw < 0.5:
            return Message(Role.SYSTEM, SystemContent(identity=identity, effort=level))
        return Message(Role.SYSTEM, SystemContent(identity, None, None, level, (), ()))
    if draw < 0.18:
        return Message(Role.SYSTEM, SystemContent(effort=level))
    if draw < 0.34:
        return Message(Role.SYSTEM, SystemContent(current_date=date, effort=level))
    if draw < 0.4:
        who = rng.choice(("You are nano.", "You are a helpful assistant.", "You are aperto."))
        return Message(Role.SYSTEM, SystemContent(identity=who, effort=level))
    if draw < 0.45 and effort == "medium":
        return None
    return Message(Role.SYSTEM, SystemContent(None, None, None, level, (), ()))


def conversation(rng: random.Random, skill: str, turn: Turn, past: tuple[Turn, ...] = ()) -> Sample:
    """The messages of a turn after finished earlier turns, and what is expected of it."""
    system = system_message(rng, turn.effort, turn.identity)
    messages = [system] if system else []
    if turn.developer is not None or turn.tools:
        content = DeveloperContent(turn.developer, turn.tools)
        messages.append(Message(Role.DEVELOPER, content))
    for old in past:
        messages += [
            Message(Role.USER, old.user),
            Message(Role.ASSISTANT, old.answer, channel=FINAL, weight=0.0),
        ]
    messages.append(Message(Role.USER, turn.user))
    if turn.thought is not None:
        messages.append(Message(Role.ASSISTANT, turn.thought, channel=ANALYSIS))
    expected: dict[str, Any] = {"final": turn.answer}
    if turn.call is not None:
        name, arguments = turn.call
        messages.append(
            Message(Role.ASSISTANT, arguments, COMMENTARY, f"functions.{name}", CONSTRAIN_JSON)
        )
        if turn.output is None:
            expected = {"call": name, "arguments": json.loads(arguments)}
        else:
            messages.append(
                Message(Role.TOOL, turn.output, COMMENTARY, "assistant", name=f"functions.{name}")
            )
    if "final" in expected:
        messages.append(Message(Role.ASSISTANT, turn.answer, channel=FINAL))
    return Sample(skill, turn.effort, messages, turn.key, expected)


def follow_up(rng: random.Random, effort: str) -> tuple[tuple[Turn, ...], Turn]:
    """A sum, then one that goes on from its result."""
    first = arithmetic_turn(rng, effort, hard=rng.random() < 0.5, op=rng.choice("+-"))
    value = int(first.answer.split(" = ")[1])
    if value < 0:
        return (first,), arithmetic_turn(rng, effort)
    op = rng.choice("+-*")
    b = number(rng, rng.choice((1, 2, 3))) if op != "*" else rng.randrange(2, 10)
    ask = {
        "+": ("Now add {}.", "plus {}", "And plus {}?", "add {} to that"),
        "-": ("Now subtract {}.", "minus {}", "And minus {}?", "take {} from that"),
        "*": ("Now multiply it by {}.", "times {}", "And times {}?"),
    }[op]
    return (first,), sum_turn(rng.choice(ask).format(b), value, op, b, effort)


def make(rng: random.Random, skill: str, effort: str | None = None, turns: bool = True) -> Sample:
    """A sample of a skill; with `turns`, one in eight follows earlier turns."""
    effort = effort or rng.choice(("low", "medium", "medium", "medium", "high"))
    if turns and skill == "arithmetic" and rng.random() < 0.06:
        past, turn = follow_up(rng, effort)
        return conversation(rng, skill, turn, past)
    turn = TURNS[skill](rng, effort)
    past = ()
    if turns and rng.random() < 0.12:
        kinds = ("arithmetic", "small_talk", "commands", "bread", "lookalike", "words", "unknown")
        past = tuple(TURNS[rng.choice(kinds)](rng, effort) for _ in range(rng.randint(1, 2)))
        past = tuple(t for t in past if t.developer is None)
    return conversation(rng, skill, turn, past)
