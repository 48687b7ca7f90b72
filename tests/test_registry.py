"""Registered test questions: hashes alone, found again in rows that were rewritten a little."""

import pytest

from aperto.errors import FormatError, UsageError
from aperto.registry import digest, digests, register, registered


def test_rewriting_does_not_hide_a_question():
    assert digest("How many  Loaves, are there?") == digest("how many loaves are there")
    assert digest("2+91") != digest("2-91")
    inside = digests("Please answer.\nHow many loaves are there in it?\nThanks")
    assert digest("How many loaves are there in it?") in inside


def test_what_is_registered_is_read_back(tmp_path):
    path = register("bakery", ["How many loaves?", "How much rye?"], folder=tmp_path)
    assert "loaves" not in path.read_text()
    (suite,) = [s for s in registered(tmp_path) if s.name == "bakery"]
    assert suite.digests == {digest("how many loaves"), digest("how much rye")}


def test_bad_names_and_files(tmp_path):
    with pytest.raises(UsageError, match="a suite's name is"):
        register("../up", ["x"], folder=tmp_path)
    with pytest.raises(UsageError, match="registers no prompts"):
        register("empty", [" "], folder=tmp_path)
    (tmp_path / "broken.txt").write_text("hello\n")
    with pytest.raises(FormatError, match="first line is 'hello'"):
        list(registered(tmp_path))
