"""The python tool: how calls are read and answered, and that it refuses without a sandbox."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.tools.conftest import SMALL

from aperto.errors import ConfigError, ResourceError
from aperto.harmony.messages import ANALYSIS, Message, Role
from aperto.tools import python
from aperto.tools.python import PythonTool, code_of
from aperto.tools.sandbox import Confinement, Limits, Probe, Sandbox, SandboxDiedError, why_not


def code_call(code: str, recipient: str = "python") -> Message:
    return Message(Role.ASSISTANT, code, channel=ANALYSIS, recipient=recipient)


@pytest.fixture
def tool(confinement: Confinement, monkeypatch: pytest.MonkeyPatch) -> PythonTool:
    monkeypatch.setattr(python, "probe", lambda: Probe(confinement, ()))
    return PythonTool(time_limit_s=1.0, limits=SMALL)


def test_calls_keep_their_state_and_their_channel(tool: PythonTool) -> None:
    (first,) = tool.run(code_call("x = 6 * 7"))
    assert first.text.startswith("(no output")
    assert (first.role, first.name, first.recipient) == (Role.TOOL, "python", "assistant")
    assert first.channel == ANALYSIS
    assert tool.run(code_call(json.dumps({"code": "print('is', x)"})))[0].text == "is 42"
    tool.close()


def test_limits_are_told_and_the_next_call_works(tool: PythonTool) -> None:
    tool.run(code_call("x = 1"))
    assert (
        "time limit of 1 s; variables are kept" in tool.run(code_call("while True: pass"))[0].text
    )
    assert "interpreter died" in tool.run(code_call("import os; os._exit(1)"))[0].text
    assert "NameError" in tool.run(code_call("x"))[0].text
    tool.close()


def test_a_sandbox_that_ends_is_told_and_replaced(
    tool: PythonTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:

        def die(*_: object) -> None:
            raise SandboxDiedError("it did not answer in time")

        patched.setattr(Sandbox, "run", die)
        text = tool.run(code_call("1"))[0].text
    assert text.startswith("[The sandbox ended: it did not answer in time.")
    assert tool.run(code_call("2"))[0].text == "2"
    tool.close()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("1 + 1", "1 + 1"),
        ('{"code": "x"}', "x"),
        ('{"a": 1}', '{"a": 1}'),
        ("```python\nx\n```", "x"),
        ('{"code": "```\\nx\\ny\\n```"}', "x\ny"),
        ("", ""),
    ],
)
def test_how_code_is_read(text: str, code: str) -> None:
    assert code_of(text) == code


def test_without_a_sandbox_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = ("bubblewrap: bwrap is not installed", "namespaces: unshare: not permitted")
    monkeypatch.setattr(python, "probe", lambda: Probe(None, reasons))
    with pytest.raises(ResourceError, match="bwrap is not installed; namespaces: unshare"):
        PythonTool()


def test_without_a_sandbox_it_runs_where_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python, "probe", lambda: Probe(None, ()))
    tool = PythonTool(allow_unsandboxed=True, time_limit_s=1.0, limits=Limits(output_bytes=2000))
    assert tool.confinement is Confinement.NONE
    assert tool.namespace is not None
    assert "Internet access for this session is enabled" in (tool.namespace.description or "")
    assert tool.run(code_call("x = 6; x * 7"))[0].text == "42"
    assert "variables are kept" in tool.run(code_call("while True: pass"))[0].text
    stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    assert "restarted" in tool.run(code_call(stubborn))[0].text
    assert "MemoryError" in tool.run(code_call("bytearray(4 << 30)"))[0].text
    assert "left out" in tool.run(code_call("print('x' * 100_000)"))[0].text
    tool.close()


def test_why_a_way_does_not_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert why_not(Confinement.BUBBLEWRAP) == "bwrap is not installed"
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: not permitted' >&2\nexit 1\n")
    fake.chmod(0o755)
    assert why_not(Confinement.BUBBLEWRAP) == "bwrap: not permitted"


def test_the_data_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder"):
        PythonTool(data=tmp_path / "none", allow_unsandboxed=True)
