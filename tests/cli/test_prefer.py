"""`aperto prefer`, from pairs of answers to an adapter that is served."""

import json

import pytest


@pytest.fixture
def data(tmp_path):
    rows = [
        {
            "input": {"messages": [{"role": "user", "content": f"code {n}?"}]},
            "preferred_output": [{"role": "assistant", "content": f"{n}."}],
            "non_preferred_output": [{"role": "assistant", "content": f"It may well be {n}."}],
        }
        for n in range(20)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


OPTIONS = ("--steps", "2", "--pairs-per-step", "2", "--rank", "2")


def test_writes_an_adapter_and_goes_on_with_it(aperto, data, tmp_path):
    out = tmp_path / "out"
    result = aperto("prefer", "nano", str(data), "--out", str(out), *OPTIONS)
    assert result.exit_code == 0, result.output
    assert "19 pairs to learn, 1 held out; 2 steps" in result.output
    for word in ("memory: ", "time: about ", "pairs scored before training", "step 2/2: loss ",
                 "margin ", "eval_accuracy: ", "vetted: no"):  # fmt: skip
        assert word in result.output
    again = aperto("prefer", "nano", str(data), "--out", str(out), *OPTIONS)
    assert "resumed after step 2" in again.output
    ask = ("-p", "code 3?", "--max-tokens", "4")
    assert aperto("chat", "nano", "--adapter", str(out), *ask).exit_code == 0


def test_bad_rows_and_test_questions_are_refused(aperto, data, tmp_path):
    from aperto.registry import register

    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"messages": []}) + "\n")
    result = aperto("prefer", "nano", str(bad), "--out", str(tmp_path / "out"))
    assert result.exit_code != 0 and "bad.jsonl:1" in result.output
    assert "'preferred_output'" in result.output
    register("bakery", ["code 3?"])
    result = aperto("prefer", "nano", str(data), "--out", str(tmp_path / "out"), *OPTIONS)
    assert result.exit_code != 0 and "bakery" in result.output
    assert not (tmp_path / "out").exists()
