import os
from pathlib import Path

import pytest

from aperto.cli.prompt import cleaned, input_line, is_finished, joined, piped_text
from aperto.errors import UsageError


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("hello", True),
        ("", True),
        ("hello\\", False),
        ('"""first', False),
        ('"""first\nsecond"""', True),
        ('say """ please', True),
    ],
)
def test_when_enter_sends(text, finished):
    assert is_finished(text) is finished


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("  hello ", "hello"),
        ("one\\\ntwo", "one\ntwo"),
        ('"""\none\n  two\n"""', "one\n  two"),
        (r"C:\new", r"C:\new"),
    ],
)
def test_what_is_meant(text, meant):
    assert cleaned(text) == meant


@pytest.mark.parametrize(
    ("prompt", "piped", "question"),
    [
        ("sum up:", "a text\n", "sum up:\n\na text"),
        (None, "a text\n", "a text"),
        ("hi", None, "hi"),
        ("hi", "", "hi"),
        (None, None, None),
        (" ", "\n", None),
    ],
)
def test_prompt_and_piped_text(prompt, piped, question):
    assert joined(prompt, piped) == question


def test_a_pipe_is_read_and_a_device_is_not(monkeypatch, tmp_path):
    file = tmp_path / "in.txt"
    file.write_text("from a file")
    with file.open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert piped_text() == "from a file"
    with Path(os.devnull).open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert piped_text() is None


def test_history_is_private_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    line = input_line(("/help",))
    line.history.append_string("a question")
    file = tmp_path / "aperto" / "history"
    assert "a question" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0


def test_a_state_folder_that_cannot_be_made_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "aperto").write_text("a file in the way")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    input_line(("/help",)).history.append_string("forgotten")


def test_piped_bytes_must_be_text(monkeypatch, tmp_path):
    path = tmp_path / "latin"
    path.write_bytes("caffè".encode("latin-1"))
    with path.open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        with pytest.raises(UsageError, match=r"byte 0xe8 at position 4; expected UTF-8"):
            piped_text()
