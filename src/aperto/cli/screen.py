"""Where an answer goes while it streams: a terminal, a pipe, or nowhere until it is whole."""

from __future__ import annotations

import sys
from typing import Protocol, TextIO

from rich.console import Console
from rich.status import Status
from rich.text import Text

from aperto.cli.answer import Answer
from aperto.cli.markdown import MarkdownStream, printable

_EXCERPT_LINES, _EXCERPT_WIDTH = 12, 200


class Screen(Protocol):
    """Takes an answer piece by piece."""

    def wait(self) -> None:
        """A question was asked; nothing has come back yet."""

    def reasoning(self, text: str) -> None:
        """Take a piece of reasoning."""

    def answer(self, text: str) -> None:
        """Take a piece of the answer."""

    def call(self, recipient: str, arguments: str) -> None:
        """Take a call of a function."""

    def result(self, text: str) -> None:
        """Take what a tool answered."""

    def end(self, answer: Answer) -> None:
        """Close what is open; the answer is complete or was stopped."""

    def abort(self) -> None:
        """Close what is open; there is no answer, but an error."""


class TerminalScreen:
    """Reasoning dimmed and apart, the answer as markdown, a closing line."""

    def __init__(self, console: Console, *, show_reasoning: bool) -> None:
        self.show_reasoning = show_reasoning
        """Whether the reasoning is written; a counter stands for it where not."""
        self._console = console
        self._status: Status | None = None
        self._markdown: MarkdownStream | None = None
        self._in_reasoning = False
        self._reasoning_pieces = 0

    def wait(self) -> None:
        """Show that the prompt is being read."""
        self._reasoning_pieces = 0
        self._spin("reading")

    def reasoning(self, text: str) -> None:
        """Write a piece of reasoning as plain dim text, or count it."""
        self._close_markdown()
        if not self.show_reasoning:
            self._reasoning_pieces += 1
            self._spin(f"thinking ({self._reasoning_pieces})")
            return
        self._stop_spinning()
        self._in_reasoning = True
        self._write(text, "dim italic")

    def answer(self, text: str) -> None:
        """Draw a piece of the answer."""
        self._stop_spinning()
        self._close_reasoning()
        if self._markdown is None:
            self._markdown = MarkdownStream(self._console)
        self._markdown.feed(text)

    def call(self, recipient: str, arguments: str) -> None:
        """Write a function call on a line of its own."""
        self._close()
        self._console.print(Text(printable(f"→ {recipient} {arguments}"), style="cyan"))

    def result(self, text: str) -> None:
        """Write what a tool answered, dimmed and not at full length, and wait for more."""
        self._close()
        self._console.print(Text(printable(excerpt(text)), style="dim"))
        self._spin("reading")

    def end(self, answer: Answer) -> None:
        """Close the answer and write the closing line."""
        self._close()
        self._console.print(Text(answer.summary() + "\n", style="dim"))

    def abort(self) -> None:
        """Close what is open."""
        self._close()

    def _write(self, text: str, style: str) -> None:
        self._console.print(Text(printable(text), style=style), end="", soft_wrap=True)

    def _spin(self, text: str) -> None:
        if self._status is None:
            self._status = Status(Text(text, style="dim"), console=self._console)
            self._status.start()
        else:
            self._status.update(Text(text, style="dim"))

    def _stop_spinning(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _close_reasoning(self) -> None:
        if self._in_reasoning:
            self._console.print("\n")
            self._in_reasoning = False

    def _close_markdown(self) -> None:
        if self._markdown is not None:
            self._markdown.close()
            self._markdown = None

    def _close(self) -> None:
        self._stop_spinning()
        self._close_reasoning()
        self._close_markdown()


class PipeScreen:
    """Only the answer, as it comes, to a stream that is not a terminal."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err
        self._last = ""

    def wait(self) -> None:
        """Write nothing."""

    def reasoning(self, text: str) -> None:
        """Write nothing."""

    def answer(self, text: str) -> None:
        """Write a piece of the answer."""
        self._out.write(text)
        self._out.flush()
        self._last = text or self._last

    def call(self, recipient: str, arguments: str) -> None:
        """Say on standard error that a function was called."""
        self._err.write(f"→ {recipient} {arguments}\n")

    def result(self, text: str) -> None:
        """Say on standard error what a tool answered, not at full length."""
        self._err.write(printable(excerpt(text)) + "\n")

    def end(self, answer: Answer) -> None:
        """End the last line; the closing line only goes to a terminal."""
        if self._last and not self._last.endswith("\n"):
            self._out.write("\n")
            self._out.flush()
        if self._err.isatty():
            self._err.write(answer.summary() + "\n")

    def abort(self) -> None:
        """Leave what was written."""


class SilentScreen:
    """Nothing: for --json, which prints the answer when it is whole."""

    def wait(self) -> None:
        """Write nothing."""

    def reasoning(self, text: str) -> None:
        """Write nothing."""

    def answer(self, text: str) -> None:
        """Write nothing."""

    def call(self, recipient: str, arguments: str) -> None:
        """Write nothing."""

    def result(self, text: str) -> None:
        """Write nothing."""

    def end(self, answer: Answer) -> None:
        """Write nothing."""

    def abort(self) -> None:
        """Write nothing."""


def excerpt(text: str) -> str:
    """The first lines of a tool's output, with a note of how many there are more."""
    lines = text.splitlines()
    shown = [
        line if len(line) <= _EXCERPT_WIDTH else line[:_EXCERPT_WIDTH] + "…"
        for line in lines[:_EXCERPT_LINES]
    ]
    if len(lines) > _EXCERPT_LINES:
        shown.append(f"… {len(lines) - _EXCERPT_LINES} more lines")
    return "\n".join(f"  {line}" for line in shown)


def screen_for_stdout(*, show_reasoning: bool) -> TerminalScreen | PipeScreen:
    """The screen that fits where standard output goes."""
    if sys.stdout.isatty():
        return TerminalScreen(Console(highlight=False), show_reasoning=show_reasoning)
    return PipeScreen(sys.stdout, sys.stderr)
