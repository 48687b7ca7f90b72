"""Tools of a chat in the terminal, which asks before what acts is run for the first time."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import typer

from aperto.cli.asking import confirm
from aperto.errors import UsageError

if TYPE_CHECKING:
    from aperto.harmony import FunctionTool, Message, ToolNamespace
    from aperto.tools import Tool

_HARMLESS = ("browser",)
_REFUSED = "The user did not allow this call."


@contextlib.contextmanager
def tools_for_chat(
    specs: Sequence[str], *, ask: bool, unsandboxed: bool
) -> Iterator[tuple[Tool, ...]]:
    """The tools of the specifications, closed at the end.

    Raises UsageError where a tool would have to be asked for and nobody is there to answer.
    """
    if not specs:
        yield ()
        return
    from aperto.tools import close_tools, open_tools

    tools = open_tools(specs, allow_unsandboxed=unsandboxed)
    try:
        asking = [tool for tool in tools if ask and tool.name not in _HARMLESS]
        if asking and not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise UsageError(
                f"the tool {asking[0].name} acts on its own, and there is no terminal to ask at; "
                "allow it with --yes"
            )
        yield tuple(AskedTool(tool, _confirmed) if tool in asking else tool for tool in tools)
    finally:
        close_tools(tools)


def _confirmed(question: str) -> bool:
    try:
        return confirm(question)
    except typer.Abort:  # Ctrl-C or Ctrl-D at the question stops the answer, not the program
        raise KeyboardInterrupt from None


class AskedTool:
    """A tool that the user is asked about until it is allowed once.

    Args:
        tool: what answers the calls.
        confirm: asks a yes-or-no question.
    """

    def __init__(self, tool: Tool, confirm: Callable[[str], bool]) -> None:
        self._tool = tool
        self._confirm = confirm
        self._is_allowed = False

    @property
    def name(self) -> str:
        """The tool's name."""
        return self._tool.name

    @property
    def namespace(self) -> ToolNamespace | None:
        """The tool's namespace."""
        return self._tool.namespace

    @property
    def functions(self) -> tuple[FunctionTool, ...]:
        """The tool's functions."""
        return self._tool.functions

    def accepts(self, recipient: str) -> bool:
        """What the tool accepts."""
        return self._tool.accepts(recipient)

    def run(self, call: Message) -> tuple[Message, ...]:
        """Ask, and have the tool answer, or tell the model that it was not allowed."""
        from aperto.tools.tool import answer

        if not self._is_allowed:
            self._is_allowed = self._confirm(
                f"Let the model use {self.name} in this chat, as shown above?"
            )
        return self._tool.run(call) if self._is_allowed else answer(call, _REFUSED)

    def close(self) -> None:
        """Close the tool."""
        self._tool.close()
