"""What one turn may consist of: reasoning, calls and the form of the answer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from aperto.errors import ConfigError

ToolChoice = Literal["auto", "none", "required"]
"""Whether the model may, must not or must call."""

FUNCTIONS_PREFIX = "functions."
"""Begins the recipients that are called on the commentary channel only."""
_RECIPIENT = re.compile(r"[A-Za-z0-9_][\w.\-/:]*", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class Regex:
    """A text that matches a regular expression as a whole."""

    pattern: str
    """Its text, in the syntax of Rust's regex crate."""


@dataclasses.dataclass(frozen=True, slots=True)
class Lark:
    """A text of a context-free grammar."""

    grammar: str
    """Rules in Lark's syntax; the first is called ``start``."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CallRule:
    """One recipient that may be called.

    Raises ConfigError on a name no header could hold, or on JSON that is text at once.
    """

    recipient: str
    """``functions.get_weather``, ``python``, ``browser.search``."""
    parameters: Mapping[str, Any] | None = None
    """JSON Schema of the arguments; None takes text."""
    text: Regex | Lark | None = None
    """Form of that text, where it is not free."""
    strict: bool = True
    """Whether objects are closed where the schema does not say what else they may hold."""

    def __post_init__(self) -> None:
        if not _RECIPIENT.fullmatch(self.recipient) or self.recipient[-1] in ".:":
            raise ConfigError(
                f"a call's recipient is {self.recipient!r}; expected letters, digits and "
                "'_ . - / :', such as 'functions.get_weather'"
            )
        if self.text is not None and self.parameters is not None:
            raise ConfigError(
                f"the call {self.recipient!r} has parameters and a form of text; expected one"
            )


@dataclasses.dataclass(frozen=True, slots=True)
class JsonSchema:
    """The answer is JSON of a schema."""

    schema: Mapping[str, Any]
    """The JSON Schema."""
    strict: bool = True
    """Whether objects are closed where the schema does not say what else they may hold."""


@dataclasses.dataclass(frozen=True, slots=True)
class JsonObject:
    """The answer is any JSON object."""


AnswerFormat: TypeAlias = JsonSchema | JsonObject | Regex | Lark
"""What the text of the final channel has to be."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TurnRules:
    """What one turn may consist of. Raises ConfigError on rules that contradict each other."""

    calls: tuple[CallRule, ...] = ()
    """What may be called."""
    tool_choice: ToolChoice = "auto"
    """Whether the model may, must not or must call."""
    allowed: tuple[str, ...] | None = None
    """Recipients that may be called in this turn, where not all of them."""
    parallel_calls: bool = True
    """Whether more than one call may be made before the turn ends."""
    reasoning: bool = True
    """Whether the model may think first; False is the effort "none"."""
    answer: AnswerFormat | None = None
    """Form of the answer; None is free text."""

    def __post_init__(self) -> None:
        if self.tool_choice not in ("auto", "none", "required"):
            raise ConfigError(
                f"tool_choice is {self.tool_choice!r}; expected 'auto', 'none' or 'required'"
            )
        known = [rule.recipient for rule in self.calls]
        if len(set(known)) < len(known):
            raise ConfigError(f"calls have the recipients {known}; expected each once")
        unknown = sorted(set(self.allowed or ()) - set(known))
        if unknown:
            raise ConfigError(
                f"allowed names {', '.join(unknown)}; expected some of {', '.join(known) or 'none'}"
            )
        if self.tool_choice == "required" and not self.callable:
            raise ConfigError("tool_choice is 'required', but nothing may be called; give calls")

    @property
    def callable(self) -> tuple[CallRule, ...]:
        """The calls that this turn may make."""
        if self.tool_choice == "none":
            return ()
        allowed = self.allowed
        return tuple(c for c in self.calls if allowed is None or c.recipient in allowed)
