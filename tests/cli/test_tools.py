"""Tools in the terminal: shown, asked about, and their results kept."""

import io
import json

import pytest
from rich.console import Console
from tests.cli.test_chat_command import ScriptedModel
from tests.cli.test_session import Recorder
from tests.fakes import FakeModel
from tests.test_tool_rounds import ANSWERS, TOKENIZER, Turns, calls

from aperto.chat import Chat
from aperto.cli import local, tools
from aperto.cli.screen import PipeScreen, TerminalScreen
from aperto.cli.session import Asking, Session
from aperto.config import EngineConfig
from aperto.engine import Engine
from aperto.errors import UsageError
from aperto.harmony import Role
from aperto.harmony import messages as harmony

PATCH = "*** Begin Patch\n*** Add File: new.txt\n+hello\n*** End Patch"
CALLS = calls("functions.apply_patch", json.dumps({"patch": PATCH}))


@pytest.fixture
def chat():
    """A Chat whose model patches a file and then answers."""
    model = FakeModel(vocab_size=TOKENIZER.vocab_size, max_context=4096)
    settings = EngineConfig(context_tokens=4096)
    with Engine(model, settings, sampler=Turns(CALLS, ANSWERS)) as engine:
        yield Chat(engine, TOKENIZER)


@pytest.fixture
def at_terminal(monkeypatch):
    """Questions are answered as the test says; returns the questions and the answers to give."""
    asked, answers = [], []

    def confirm(question):
        asked.append(question)
        return answers.pop(0)

    monkeypatch.setattr(tools, "confirm", confirm)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    for name in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{name}.isatty", lambda: True, raising=False)
    return asked, answers


class ToolRecorder(Recorder):
    def result(self, text):
        self.log.append(("result", text))


def test_calls_and_results_are_shown_and_kept(chat, tmp_path, at_terminal):
    asked, answers = at_terminal
    answers.append(True)
    screen = ToolRecorder()
    with tools.tools_for_chat([f"apply_patch:{tmp_path}"], ask=True, unsandboxed=False) as given:
        session = Session(chat, Asking(seed=1), given)
        answer = session.ask("Make a file.", screen)
    assert (tmp_path / "new.txt").read_text() == "hello\n"
    assert asked == ["Let the model use apply_patch in this chat, as shown above?"]
    kinds = [entry[0] for entry in screen.log if isinstance(entry, tuple)]
    assert kinds.index("call") < kinds.index("result") < kinds.index("answer")
    assert ("result", "Done.\nA new.txt") in screen.log
    assert answer.text == "Seven."
    assert [message.role for message in session.turns] == [
        Role.USER,
        Role.ASSISTANT,
        Role.TOOL,
        Role.ASSISTANT,
    ]
    (called,) = answer.to_dict(model="m", effort="low")["calls"]
    assert called["recipient"] == "functions.apply_patch"
    assert called["result"] == "Done.\nA new.txt"


def test_a_refusal_is_told_to_the_model_and_asked_again_next_time(tmp_path, at_terminal):
    asked, answers = at_terminal
    answers += [False, True]
    call = harmony.call("functions.apply_patch", PATCH)
    with tools.tools_for_chat([f"apply_patch:{tmp_path}"], ask=True, unsandboxed=False) as given:
        (tool,) = given
        assert tool.run(call)[0].text == "The user did not allow this call."
        assert not (tmp_path / "new.txt").exists()
        assert tool.run(call)[0].text.startswith("Done.")
        assert tool.run(call)[0].text.startswith("Error: new.txt exists")
    assert len(asked) == 2


def test_reading_is_not_asked_about(tmp_path, at_terminal):
    with tools.tools_for_chat([f"browser:{tmp_path}"], ask=True, unsandboxed=False) as given:
        assert (
            "No results" in given[0].run(harmony.call("browser.search", '{"query": "x"}'))[0].text
        )
    assert at_terminal[0] == []


def test_without_a_terminal_to_ask_at_it_needs_yes(tmp_path):
    spec = f"apply_patch:{tmp_path}"
    with (
        pytest.raises(UsageError, match="--yes"),
        tools.tools_for_chat([spec], ask=True, unsandboxed=False),
    ):
        pass
    with tools.tools_for_chat([spec], ask=False, unsandboxed=False) as given:
        assert given[0].name == "apply_patch"


def test_the_command_opens_and_closes_tools(aperto, chat, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "load_local", lambda *given: ScriptedModel(chat))
    spec = f"apply_patch:{tmp_path}"
    refused = aperto("chat", "-p", "Make a file.", "--tool", spec)
    assert refused.exit_code == 2
    assert "--yes" in refused.stderr
    result = aperto("chat", "-p", "Make a file.", "--tool", spec, "--yes", "--json")
    fields = json.loads(result.stdout)
    assert (fields["answer"], fields["finish_reason"]) == ("Seven.", "stop")
    assert fields["calls"][0]["result"] == "Done.\nA new.txt"
    assert aperto("chat", "-p", "Hi", "--tool", "bash").exit_code == 2


def test_results_are_shown_dimmed_and_in_short():
    long = "\n".join(f"line {i} \x1b[31m" + "x" * 300 for i in range(40))
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    screen = TerminalScreen(console, show_reasoning=True)
    screen.result(long)
    screen.abort()
    shown = console.file.getvalue()
    assert "line 11" in shown
    assert "line 12" not in shown
    assert "… 28 more lines" in shown
    assert "\x1b[31m" not in shown
    assert "\x1b[2m" in shown
    err = io.StringIO()
    PipeScreen(io.StringIO(), err).result("one\ntwo")
    assert err.getvalue() == "  one\n  two\n"


def test_each_result_goes_to_its_own_call():
    from aperto.cli.answer import Answer

    answer = Answer(calls=[{"recipient": "f", "arguments": "1"} for _ in range(2)])
    for text in ("a", "b", "c"):
        answer.add_result("f", "1", text)
    assert [call["result"] for call in answer.calls] == ["a", "b"]
