"""`aperto adapt`, from a file of conversations to an adapter that is served."""

import json

import pytest


@pytest.fixture
def data(tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"code {n}?"},
                {"role": "assistant", "content": f"{n * 7}"},
            ]
        }
        for n in range(20)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


FULL = ("--steps", "3", "--length", "128", "--rows-per-step", "2", "--full")
OPTIONS = ("--steps", "3", "--length", "128", "--rows-per-step", "2", "--rank", "2")


def test_writes_an_adapter_and_goes_on_with_it(aperto, data, tmp_path):
    out = tmp_path / "out"
    result = aperto("adapt", "nano", str(data), "--out", str(out), *OPTIONS)
    assert result.exit_code == 0, result.output
    assert "19 examples to learn, 1 held out" in result.output
    for word in ("memory: ", "time: about ", "step 3/3: loss ", "eval_loss: ", "vetted: no"):
        assert word in result.output
    again = aperto("adapt", "nano", str(data), "--out", str(out), *OPTIONS)
    assert "resumed after step 3" in again.output
    info = aperto("info", str(out))
    assert "attn" in info.output


def test_a_dry_run_trains_nothing(aperto, data, tmp_path):
    out = tmp_path / "out"
    result = aperto("adapt", "nano", str(data), "--out", str(out), "--dry-run", *OPTIONS)
    assert result.exit_code == 0, result.output
    assert "time: about" in result.output
    assert not out.exists()


def test_bad_rows_are_named_before_anything_starts(aperto, data, tmp_path):
    lines = data.read_text().splitlines()
    lines[4] = '{"messages": [{"role": "user", "content": "a question and no answer"}]}'
    lines[9] = "not json"
    data.write_text("\n".join(lines))
    out = tmp_path / "out"
    result = aperto("adapt", "nano", str(data), "--out", str(out), *OPTIONS)
    assert result.exit_code != 0
    assert "rows.jsonl:5" in result.output
    assert "rows.jsonl:10" in result.output
    assert not out.exists()


def test_other_options_in_the_same_folder_are_refused(aperto, data, tmp_path):
    out = str(tmp_path / "out")
    assert aperto("adapt", "nano", str(data), "--out", out, *OPTIONS).exit_code == 0
    result = aperto("adapt", "nano", str(data), "--out", out, *OPTIONS[:-1], "4")
    assert result.exit_code == 2
    assert "adapter_rank was 2, asked for is 4" in result.output


def test_small_tensors_in_full_are_applied_beside_the_running_model(aperto, data, tmp_path):
    out = tmp_path / "out"
    targets = ("--targets", "attention,router,sinks,norms,biases", "--learning-rate", "0.01")
    result = aperto("adapt", "nano", str(data), "--out", str(out), *OPTIONS, *targets)
    assert result.exit_code == 0, result.output
    assert "sinks" in aperto("info", str(out)).output
    merged = tmp_path / "merged"
    assert aperto("merge", "nano", str(out), "--out", str(merged)).exit_code == 0
    ask = ("-p", "code 3?", "--max-tokens", "8", "--temperature", "0")
    live = aperto("chat", "nano", "--adapter", str(out), *ask)
    assert live.exit_code == 0, live.output
    assert aperto("chat", str(merged), *ask).exit_code == 0


def test_full_training_writes_a_model(aperto, data, tmp_path):
    out = tmp_path / "out"
    options = (*FULL, "--qat")
    result = aperto("adapt", "nano", str(data), "--out", str(out), *options)
    assert result.exit_code == 0, result.output
    assert f"try it: aperto chat {out}" in result.output
    for name in ("LICENSE", "NOTICE", "config.json"):
        assert (out / name).is_file()
    assert "vetted" in aperto("info", str(out)).output
    assert aperto("chat", str(out), "-p", "code 3?", "--max-tokens", "4").exit_code == 0
    assert (
        "resumed after step 3"
        in aperto("adapt", "nano", str(data), "--out", str(out), *options).output
    )
    both = aperto("adapt", "nano", str(data), "--out", str(out), *options, "--rank", "4")
    assert both.exit_code == 2 and "--rank with --full" in both.output


def test_a_model_too_large_to_train_whole_is_refused_with_figures(
    aperto, data, tmp_path, monkeypatch
):
    monkeypatch.setattr("aperto.cli.training._BIG_BYTES", 1)  # as for a model of 20b's size
    monkeypatch.setattr("aperto.adapt.device.available_bytes", lambda: 64 << 20)
    result = aperto("adapt", "nano", str(data), "--out", str(tmp_path / "out"), *FULL)
    assert result.exit_code != 0
    for words in ("trained values, gradients and moments", "are available"):
        assert words in result.output
    assert not (tmp_path / "out").exists()


def test_the_top_layers_alone(aperto, data, tmp_path):
    out = tmp_path / "out"
    result = aperto("adapt", "nano", str(data), "--out", str(out), *OPTIONS, "--fast", "2")
    assert result.exit_code == 0, result.output
    assert "through the layers below" in result.output
    assert (out / "run" / "trunk.bin").stat().st_size > 0
    wrong = aperto("adapt", "nano", str(data), "--out", str(out), *OPTIONS, "--fast", "99")
    assert wrong.exit_code != 0 and "fast is 99; expected at most 6 layers" in wrong.output


def test_no_targets(aperto, data, tmp_path):
    result = aperto("adapt", "nano", str(data), "--out", str(tmp_path / "out"), "--targets", " ,")
    assert result.exit_code == 2
    assert "--targets is empty" in result.output


def test_unknown_targets(aperto, data, tmp_path):
    out = str(tmp_path / "out")
    result = aperto("adapt", "nano", str(data), "--out", out, "--targets", "attention,lips")
    assert result.exit_code == 2
    assert "'lips'; expected attention, router, experts" in result.output


def test_questions_of_a_suite_are_refused(aperto, data, tmp_path):
    from aperto.registry import register

    register("bakery", ["Code 3?"])
    out = tmp_path / "out"
    result = aperto("adapt", "nano", str(data), "--out", str(out), *OPTIONS)
    assert result.exit_code == 1
    assert "rows.jsonl:4: a question of bakery" in result.output
    assert "remove these rows" in result.output
    assert not out.exists()
