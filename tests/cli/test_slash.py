import pytest
from rich.console import Console
from tests.cli.scripted import ANSWER, ScriptedChat

from aperto.cli import slash
from aperto.cli.screen import SilentScreen, TerminalScreen
from aperto.cli.session import Asking, Session
from aperto.errors import UsageError


@pytest.fixture
def chat():
    session = Session(ScriptedChat(ANSWER, ANSWER), Asking())
    return slash.Chat(session, TerminalScreen(Console(quiet=True), show_reasoning=True))


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("/effort high", "effort", "high"),
        ("/system Be brief and  kind.", "system", "Be brief and  kind."),
        ("/system none", "system", ""),
        ("/seed 12", "seed", 12),
        ("/seed random", "seed", None),
        ("/temperature 0.3", "temperature", 0.3),
        ("/top-p 0.5", "top_p", 0.5),
        ("/max-tokens 7", "max_tokens", 7),
        ("/max-tokens none", "max_tokens", None),
    ],
)
def test_settings(chat, line, field, value):
    assert slash.run(chat, line)
    assert getattr(chat.session.asking, field) == value
    # The command alone says how it stands, and changes nothing.
    assert slash.run(chat, line.split()[0])
    assert getattr(chat.session.asking, field) == value


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/effrt high", "did you mean /effort"),
        ("/usr/bin/env", "a space before the slash"),
        ("/effort max", "low, medium, high"),
        ("/reasoning on", "show or hide"),
        ("/seed -1", "whole number from 0"),
        ("/temperature hot", "'hot'"),
        ("/temperature nan", "'nan'"),
        ("/top-p 0", "top-p"),
        ("/max-tokens 0", "from 1"),
        ("/save", "no file"),
        ("/load", "no file"),
        ("/retry", "no question yet"),
    ],
)
def test_mistakes_are_explained_and_change_nothing(chat, line, words):
    with pytest.raises(UsageError, match=words):
        slash.run(chat, line)
    assert chat.session.asking == Asking()


def test_help_names_every_command(chat):
    shown = slash.run(chat, "/help")
    assert all(name in shown for name in slash.COMMANDS)


def test_reasoning(chat):
    assert slash.run(chat, "/reasoning hide") == "reasoning hidden"
    assert chat.screen.show_reasoning is False
    assert slash.run(chat, "/reasoning show") == "reasoning shown"
    assert slash.run(slash.Chat(chat.session, SilentScreen()), "/reasoning hide")


def test_clear_retry_save_and_load(chat, tmp_path):
    chat.session.ask("one", chat.screen)
    said = list(chat.session.turns)
    assert "saved" in slash.run(chat, f"/save {tmp_path / 'a b.json'}")
    assert slash.run(chat, "/clear") == "new conversation"
    assert chat.session.turns == []
    assert "3 messages" in slash.run(chat, f"/load {tmp_path / 'a b.json'}")
    assert chat.session.turns == said
    assert slash.run(chat, "/retry") == ""
    assert chat.session.turns == said


def test_exit(chat):
    with pytest.raises(slash.Leave):
        slash.run(chat, "/exit")
