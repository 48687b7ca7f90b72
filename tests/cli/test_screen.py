import io

import pytest
from rich.console import Console

from aperto.cli.answer import Answer
from aperto.cli.screen import PipeScreen, SilentScreen, TerminalScreen, screen_for_stdout


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(screen):
    screen.wait()
    screen.reasoning("let me ")
    screen.reasoning("think")
    screen.answer("It is ")
    screen.call("functions.add", "{}")
    screen.answer("**391**.")
    screen.end(Answer(completion_tokens=9, seed=4))


def terminal(*, show_reasoning, color="standard"):
    console = Console(
        file=io.StringIO(), width=70, force_terminal=True, color_system=color, highlight=False
    )
    return TerminalScreen(console, show_reasoning=show_reasoning), console.file


def test_a_terminal_shows_reasoning_dim_then_the_answer_then_the_line():
    screen, out = terminal(show_reasoning=True)
    show(screen)
    text = out.getvalue()
    assert "\x1b[2;3mlet me \x1b[0m\x1b[2;3mthink\x1b[0m\n\n" in text
    assert "→ functions.add {}" in text
    assert "\x1b[1m391" in text
    assert text.index("think") < text.index("391") < text.index("9 tokens")
    assert "\x1b[2m9 tokens" in text


def test_hidden_reasoning_never_reaches_the_terminal():
    screen, out = terminal(show_reasoning=False)
    show(screen)
    assert "let me" not in out.getvalue()
    assert "391" in out.getvalue()


def test_reasoning_cannot_steer_the_terminal():
    screen, out = terminal(show_reasoning=True)
    screen.wait()
    screen.reasoning("\x1b]0;owned\x07")
    screen.call("functions.x", "\x1b[2J")
    screen.abort()
    assert "\x1b]0" not in out.getvalue()
    assert "\x1b[2J" not in out.getvalue()


def test_a_pipe_gets_the_answer_alone():
    out, err = io.StringIO(), io.StringIO()
    show(PipeScreen(out, err))
    assert out.getvalue() == "It is **391**.\n"
    assert err.getvalue() == "→ functions.add {}\n"


def test_the_closing_line_goes_to_a_terminal_on_standard_error():
    out, err = io.StringIO(), Terminal()
    show(PipeScreen(out, err))
    assert out.getvalue() == "It is **391**.\n"
    assert "9 tokens" in err.getvalue()


@pytest.mark.parametrize(("text", "written"), [("a\n", "a\n"), ("a", "a\n"), ("", "")])
def test_a_pipe_ends_with_one_newline(text, written):
    out = io.StringIO()
    screen = PipeScreen(out, io.StringIO())
    screen.answer(text)
    screen.end(Answer())
    assert out.getvalue() == written


def test_silence(capsys):
    show(SilentScreen())
    SilentScreen().abort()
    assert capsys.readouterr() == ("", "")


def test_the_screen_fits_where_the_output_goes(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert isinstance(screen_for_stdout(show_reasoning=True), PipeScreen)
    monkeypatch.setattr("sys.stdout", Terminal())
    assert isinstance(screen_for_stdout(show_reasoning=True), TerminalScreen)
