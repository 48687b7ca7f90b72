"""Markdown that arrives in pieces, drawn in a terminal without flicker.

Finished blocks are printed once and for good; only the last, unfinished block is redrawn, and of
it no more lines than the screen has.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

REDRAW_S = 0.08  # at most a dozen redraws a second
_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)])


def printable(text: str) -> str:
    """Text without control characters, which could steer the terminal; keeps tab and newline."""
    return text.translate(_CONTROLS)


def _is_fence(line: str) -> bool:
    return line.lstrip().startswith(("```", "~~~"))


def finished_length(text: str) -> int:
    """Length of the leading block, blank lines behind it included, once it cannot change; else 0.

    A block ends at a blank line outside a code fence that is followed by text without indent.
    """
    position = 0
    fenced = after_blank = has_text = False
    for line in text.splitlines(keepends=True):
        if has_text and after_blank and not fenced and not line[0].isspace():
            return position
        fenced ^= _is_fence(line)
        after_blank = not line.strip()
        has_text |= not after_blank
        position += len(line)
    return 0


def _with_line_breaks(text: str) -> str:
    """Markdown in which a single newline stays one: models mean the line breaks they write."""
    lines = []
    fenced = False
    for line in text.split("\n"):
        fence = _is_fence(line)
        lines.append(line if fenced or fence or not line.strip() else line + "  ")
        fenced ^= fence
    return "\n".join(lines)


class _Block:
    """A piece of markdown without blank lines around it, or only the last lines of one."""

    def __init__(self, text: str, *, gap: bool, max_lines: int | None = None) -> None:
        self.text = text
        self.gap = gap
        self.max_lines = max_lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        document = Markdown(_with_line_breaks(self.text), hyperlinks=False)
        lines = console.render_lines(document, options.update(height=None), pad=False)
        filled = [i for i, line in enumerate(lines) if _line_text(line).strip()]
        lines = lines[filled[0] : filled[-1] + 1] if filled else []
        if self.gap:
            yield Segment.line()
        for line in lines[-self.max_lines :] if self.max_lines else lines:
            yield from line
            yield Segment.line()


def _line_text(line: list[Segment]) -> str:
    return "".join(segment.text for segment in line)


class MarkdownStream:
    """Draws markdown text as it is fed; `close` prints what is left."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._pending = ""
        self._blocks = 0
        self._drawn_s = float("-inf")
        self._live: Live | None = None

    def feed(self, text: str) -> None:
        """Take the next piece of text."""
        self._pending += printable(text)
        while length := finished_length(self._pending):
            self._print(self._pending[:length])
            self._pending = self._pending[length:]
        if self._clock() - self._drawn_s >= REDRAW_S:
            self._redraw()

    def close(self) -> None:
        """Print the unfinished block as it stands."""
        self._print(self._pending)
        self._pending = ""

    def _redraw(self) -> None:
        if self._live is None:
            self._live = Live(
                console=self._console,
                auto_refresh=False,
                transient=True,
                vertical_overflow="visible",
            )
            self._live.start()
        max_lines = max(1, self._console.height - 3)
        tail = _Block(self._pending, gap=self._blocks > 0, max_lines=max_lines)
        self._live.update(tail, refresh=True)
        self._drawn_s = self._clock()

    def _print(self, block: str) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if not block.strip():
            return
        self._console.print(_Block(block, gap=self._blocks > 0), end="")
        self._blocks += 1
