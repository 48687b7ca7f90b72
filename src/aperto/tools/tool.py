"""What the model may call, and the few things that all tools share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from aperto.harmony.messages import (
    COMMENTARY,
    FunctionTool,
    Message,
    ToolNamespace,
    tool_result,
)


class Tool(Protocol):
    """Something the model may call.

    A tool belongs to one conversation: its state (variables, opened pages) is that conversation's.
    """

    @property
    def name(self) -> str:
        """Short name, as in a specification: ``python``."""

    @property
    def namespace(self) -> ToolNamespace | None:
        """How the system message announces it, for the tools gpt-oss was trained with."""

    @property
    def functions(self) -> tuple[FunctionTool, ...]:
        """What the developer message announces as ``functions.NAME``."""

    def accepts(self, recipient: str) -> bool:
        """Whether calls of this recipient are for this tool."""

    def run(self, call: Message) -> tuple[Message, ...]:
        """Answer a call. What goes wrong is told to the model as text; nothing is raised.

        Calls of one conversation may come from different threads and are answered one at a time.
        """

    def close(self) -> None:
        """End its processes and connections; it cannot be used any more."""


class ToolFailureError(Exception):
    """A call cannot be answered; the text is meant for the model. Never leaves a tool."""


def answer(call: Message, text: str) -> tuple[Message, ...]:
    """The tool message that answers `call` with `text`."""
    return (tool_result(call.recipient or "", text, call.channel or COMMENTARY),)


def arguments_of(call: Message) -> Mapping[str, Any]:
    """The JSON object a call carries; empty text counts as no arguments.

    Raises ToolFailureError where it is anything else.
    """
    text = call.text.strip()
    if not text:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ToolFailureError(f"the arguments are not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ToolFailureError(
            f"the arguments are a JSON {type(value).__name__}; expected an object"
        )
    return value


def clipped(text: str, limit: int) -> str:
    """`text` within `limit` characters: its beginning and end, with a note between them."""
    if len(text) <= limit:
        return text
    head, tail = limit * 3 // 4, limit - limit * 3 // 4
    dropped = len(text) - head - tail
    return f"{text[:head]}\n[… {dropped} characters left out …]\n{text[-tail:]}"
