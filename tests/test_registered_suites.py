"""The hashes in the package are those of the suites, and find their questions in rows."""

import importlib.util
import json
from pathlib import Path

import pytest

from aperto.registry import digests, registered, suites_asking
from aperto.vet.sources import DataUnavailableError

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location(
    "registered_suites", ROOT / "scripts" / "registered_suites.py"
)
assert spec and spec.loader
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
SUITES = (*script.FROM_PACKAGES, *script.OURS)


@pytest.mark.parametrize("suite", SUITES)
def test_a_file_is_what_the_script_writes(suite, tmp_path):
    shipped = (script.FOLDER / f"{suite}.txt").read_bytes()
    try:
        made = script.write(suite, tmp_path)
    except DataUnavailableError as missing:
        pytest.skip(str(missing))
    assert made.read_bytes() == shipped


def test_all_are_in_the_package_and_none_is_text(tmp_path):
    found = {suite.name: suite for suite in registered(tmp_path)}
    assert found.keys() == set(SUITES)
    for suite in found.values():
        for line in (script.FOLDER / f"{suite.name}.txt").read_text().splitlines():
            assert line.startswith("#") or len(line) == 64


@pytest.mark.parametrize("suite", SUITES)
def test_every_question_is_found_in_a_row_that_asks_it(suite, tmp_path):
    try:
        asked = script.prompts(suite)
    except DataUnavailableError as missing:
        pytest.skip(str(missing))
    rows = {text: digests(f"Please tell me:\n\n{text}\n\nThank you.") for text in asked}
    rows |= {text: (*rows[text], *digests(text)) for text in asked}
    found = suites_asking(rows, tmp_path)
    assert found.keys() == rows.keys()
    assert all(suite in names for names in found.values())


def test_rows_of_other_data_are_not_taken_for_questions(tmp_path):
    rows = {text: digests(text) for text in ("Hello", "What is baked on Monday?", "Who are you?")}
    assert suites_asking(rows, tmp_path) == {}


def test_adapting_to_held_out_rows_is_refused(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from aperto.cli.main import app

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    line = (ROOT / "recipes/nano/heldout/add_subtract.jsonl").read_text().splitlines()[0]
    row = json.loads(line)
    said = {"role": "assistant", "content": row["expected"]["final"]}
    asked = next(m for m in row["messages"] if m["role"] == "user")
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"messages": [asked, said]}) + "\n")
    result = CliRunner().invoke(
        app, ["adapt", "nano", str(data), "--out", str(tmp_path / "out"), "--held-out", "0"]
    )
    assert result.exit_code == 1 and "nano_heldout" in result.output
    assert not (tmp_path / "out").exists()
