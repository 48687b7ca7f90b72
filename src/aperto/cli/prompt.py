"""The input line of the interactive chat: history, several lines, and what piped input means."""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING

from aperto.config import state_dir
from aperto.errors import UsageError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

QUOTES = '"""'


def is_finished(text: str) -> bool:
    """Whether Enter sends the text: not after a backslash, and not inside triple quotes."""
    opened = text.lstrip().startswith(QUOTES) and text.count(QUOTES) == 1
    return not opened and not text.endswith("\\")


def cleaned(text: str) -> str:
    """The text that is meant: without the backslashes and quotes that let it have lines."""
    stripped = text.strip()
    if stripped.startswith(QUOTES):
        return stripped.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")
    return stripped.replace("\\\n", "\n")


def _key_bindings() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("enter")
    def _enter(event: KeyPressEvent) -> None:
        if is_finished(event.current_buffer.text):
            event.current_buffer.validate_and_handle()
        else:
            event.current_buffer.insert_text("\n")

    @bindings.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _history() -> History:
    """The history in the user's state folder, or one that is forgotten where that is read-only."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = state_dir() / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


def input_line(words: tuple[str, ...]) -> PromptSession[str]:
    """An input line with history; `words` are completed with Tab at its start."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter

    return PromptSession(
        history=_history(),
        multiline=True,
        key_bindings=_key_bindings(),
        completer=WordCompleter(list(words), sentence=True),
        complete_while_typing=False,
        prompt_continuation=". ",
    )


def piped_text() -> str | None:
    """All of standard input where it is a pipe or a file; None for a terminal or a device.

    Raises UsageError where it is not UTF-8.
    """
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # closed, or replaced by an object without one
        return sys.stdin.read() if sys.stdin is not None and not sys.stdin.closed else None
    if stat.S_ISCHR(mode):
        return None
    data = sys.stdin.buffer.read()
    try:
        return data.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"standard input has byte 0x{data[error.start]:02x} at position {error.start}; "
            "expected UTF-8 text; convert it first, with iconv for instance"
        ) from error


def joined(prompt: str | None, piped: str | None) -> str | None:
    """The question: the prompt with the piped text below it as context, or the one there is."""
    parts = [part.strip("\n") for part in (prompt, piped) if part and part.strip()]
    return "\n\n".join(parts) or None
