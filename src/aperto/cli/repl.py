"""The interactive chat: read a line, answer it or run its command, until the user leaves."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from aperto.cli import slash
from aperto.cli.app import one_line
from aperto.cli.markdown import printable
from aperto.cli.prompt import cleaned, input_line
from aperto.errors import ApertoError


def interact(chat: slash.Chat, console: Console, title: str) -> None:
    """Talk until Ctrl-D or /exit; errors of one line are shown and the chat goes on."""
    console.print(Text(title, style="dim"))
    line = input_line(tuple(slash.COMMANDS))
    while True:
        try:
            _take(chat, console, line.prompt("> "))
        except KeyboardInterrupt:  # whenever it comes, it never ends the chat
            continue
        except (EOFError, slash.Leave):
            return
        except ApertoError as error:
            console.print(Text(f"error: {printable(one_line(error))}", style="red"))


def _take(chat: slash.Chat, console: Console, text: str) -> None:
    if text.startswith("/"):
        said = slash.run(chat, text)
        if said:
            console.print(Text(printable(said), style="dim"))
        return
    question = cleaned(text)
    if question:
        chat.session.ask(question, chat.screen)
