"""The /commands of the interactive chat: a table of name, arguments, help and function."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path

from aperto.cli.screen import Screen, TerminalScreen
from aperto.cli.session import Session
from aperto.cli.table import columns
from aperto.config import EFFORTS
from aperto.errors import UsageError


class Leave(Exception):
    """The user wants to leave the chat."""


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """One /command."""

    arguments: str
    """What follows the name, for the reader."""
    help: str
    """What it does."""
    run: Callable[[Chat, str], str]
    """Takes the rest of the line, returns what to print."""


@dataclasses.dataclass
class Chat:
    """What the commands act on."""

    session: Session
    """The conversation."""
    screen: Screen
    """Where answers go."""


def run(chat: Chat, line: str) -> str:
    """Run a line that begins with a slash; returns what to print.

    Raises UsageError for an unknown command or a wrong argument, and Leave.
    """
    name, _, rest = line.strip().partition(" ")
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"unknown command {name}; {hint}/help lists them, and a space before the slash "
            "sends it as text"
        )
    return COMMANDS[name].run(chat, rest.strip())


def _help(chat: Chat, rest: str) -> str:
    rows = [[f"{name} {c.arguments}".strip(), c.help] for name, c in COMMANDS.items()]
    keys = [
        ["Enter", "send; Alt-Enter, a trailing backslash or an open triple quote make a new line"],
        ["Ctrl-C", "stop the answer, or clear the line"],
        ["Ctrl-D", "leave"],
    ]
    return columns([*rows, *keys])


def _effort(chat: Chat, rest: str) -> str:
    if rest:
        if rest not in EFFORTS:
            raise UsageError(f"effort is {rest!r}; expected one of {', '.join(EFFORTS)}")
        chat.session.asking.effort = rest
    return f"effort {chat.session.asking.effort}"


def _system(chat: Chat, rest: str) -> str:
    if rest:
        chat.session.asking.system = "" if rest == "none" else rest
    return f"system: {chat.session.asking.system or '(none)'}"


def _reasoning(chat: Chat, rest: str) -> str:
    if rest not in ("", "show", "hide"):
        raise UsageError(f"reasoning is {rest!r}; expected show or hide")
    if not isinstance(chat.screen, TerminalScreen):
        return "reasoning is shown in a terminal only"
    if rest:
        chat.screen.show_reasoning = rest == "show"
    return f"reasoning {'shown' if chat.screen.show_reasoning else 'hidden'}"


def _number(text: str, low: float, high: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise UsageError(f"{what} is {text!r}; expected a number from {low:g} to {high:g}")
    return value


def _whole(text: str, low: int, what: str, none: str) -> int | None:
    if text == none:
        return None
    if not text.isdecimal() or int(text) < low:
        raise UsageError(f"{what} is {text!r}; expected a whole number from {low} on, or {none}")
    return int(text)


def _seed(chat: Chat, rest: str) -> str:
    if rest:
        chat.session.asking.seed = _whole(rest, 0, "seed", "random")
    seed = chat.session.asking.seed
    return "seed: a new one for each answer" if seed is None else f"seed {seed}"


def _temperature(chat: Chat, rest: str) -> str:
    if rest:
        chat.session.asking.temperature = _number(rest, 0, 100, "temperature")
    return f"temperature {chat.session.asking.temperature:g}"


def _top_p(chat: Chat, rest: str) -> str:
    if rest:
        chat.session.asking.top_p = _number(rest, 1e-6, 1, "top-p")
    return f"top-p {chat.session.asking.top_p:g}"


def _max_tokens(chat: Chat, rest: str) -> str:
    if rest:
        chat.session.asking.max_tokens = _whole(rest, 1, "max-tokens", "none")
    limit = chat.session.asking.max_tokens
    return "max-tokens: up to the end of the context" if limit is None else f"max-tokens {limit}"


def _clear(chat: Chat, rest: str) -> str:
    chat.session.turns.clear()
    return "new conversation"


def _retry(chat: Chat, rest: str) -> str:
    chat.session.retry(chat.screen)
    return ""


def _file(rest: str) -> Path:
    if not rest:
        raise UsageError("no file given; expected a path after the command")
    return Path(rest).expanduser()


def _save(chat: Chat, rest: str) -> str:
    path = _file(rest)
    chat.session.save(path)
    return f"saved to {path}"


def _load(chat: Chat, rest: str) -> str:
    path = _file(rest)
    chat.session.load(path)
    return f"loaded {len(chat.session.turns)} messages from {path}"


def _exit(chat: Chat, rest: str) -> str:
    raise Leave


COMMANDS: dict[str, Command] = {
    "/help": Command("", "show this", _help),
    "/effort": Command("low|medium|high", "how long the model reasons", _effort),
    "/reasoning": Command("show|hide", "show or hide the reasoning", _reasoning),
    "/system": Command("TEXT|none", "instructions before the conversation", _system),
    "/seed": Command("N|random", "seed of the answers; the same one repeats an answer", _seed),
    "/temperature": Command("X", "sampling temperature; 0 takes the likeliest token", _temperature),
    "/top-p": Command("X", "share of probability that is kept", _top_p),
    "/max-tokens": Command("N|none", "most tokens of an answer, reasoning included", _max_tokens),
    "/retry": Command("", "answer the last question again", _retry),
    "/clear": Command("", "begin a new conversation", _clear),
    "/save": Command("FILE", "write the conversation as JSON", _save),
    "/load": Command("FILE", "take up a saved conversation", _load),
    "/exit": Command("", "leave", _exit),
}
"""Every command by its name."""
