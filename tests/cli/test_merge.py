"""`aperto merge`: what the rounding of merged experts costs is told, kept, and may be refused."""

import json

import pytest


@pytest.fixture
def adapter(aperto, tmp_path):
    data, out = tmp_path / "rows.jsonl", tmp_path / "adapter"
    rows = [{"prompt": f"code {n}?", "completion": f"{n * 7}"} for n in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = aperto("adapt", "nano", str(data), "--out", str(out), "--steps", "4", "--rank", "4",
                    "--length", "128", "--rows-per-step", "2", "--learning-rate", "0.01",
                    "--targets", "attention,experts")  # fmt: skip
    assert result.exit_code == 0, result.output
    return out


def test_the_cost_of_rounding_is_measured_on_a_text(aperto, adapter, tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "merged"
    text.write_text("What is 17 * 23? Write it out, step by step. " * 6)
    result = aperto("merge", "nano", str(adapter), "--out", str(out), "--text", str(text))
    assert result.exit_code == 0, result.output
    assert "KL: " in result.output and "top-1 agreement: " in result.output
    report = json.loads((out / "merge-report.json").read_text())
    assert report["quality"]["num_tokens"] > 50 and 0 < report["quality"]["kl"] < 1
    assert report["errors"]["layers.0.moe.down.weight"]["of_change"] > 0
    strict = ("--text", str(text), "--max-kl", "1e-9")
    refused = aperto("merge", "nano", str(adapter), "--out", str(tmp_path / "m2"), *strict)
    assert refused.exit_code == 1 and "is above 1e-09" in refused.output
    loose = ("--text", str(text), "--max-kl", "10", "--layout", "gguf")
    assert aperto("merge", "nano", str(adapter), "--out", str(tmp_path / "m.gguf"), *loose
                  ).exit_code == 0  # fmt: skip
    assert (tmp_path / "m.merge-report.json").is_file()


def test_without_a_text_nothing_is_measured_and_that_is_said(aperto, adapter, tmp_path):
    out = tmp_path / "merged"
    merged = aperto("merge", "nano", str(adapter), "--out", str(out))
    assert merged.exit_code == 0 and "quality: not measured: give --text" in merged.output
    report = json.loads((out / "merge-report.json").read_text())
    assert report["quality"] == "not measured: give --text"
    result = aperto("merge", "nano", str(adapter), "--out", str(tmp_path / "n"), "--max-kl", "1")
    assert result.exit_code == 2 and "--max-kl without --text" in result.output
