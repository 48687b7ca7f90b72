"""`aperto shape`: each experiment is a model that is read, told of, measured and run."""

import json

import pytest

from aperto.formats import open_checkpoint


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        (("top-k", "nano", "1"), (6, 8, 1)),
        (("window", "nano", "64"), (6, 8, 2)),
        (("layers", "nano", "--drop", "2,3"), (4, 8, 2)),
        (("layers", "nano", "--repeat", "4"), (7, 8, 2)),
        (("context", "nano", "--tokens", "262144"), (6, 8, 2)),
    ],
)
def test_writes_a_model(aperto, tmp_path, arguments, shape):
    out = tmp_path / "out"
    result = aperto("shape", *arguments, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "size: " in result.output and "vetted: no" in result.output
    checkpoint = open_checkpoint(out)
    first = checkpoint.config.layers[0]
    found = (checkpoint.config.num_layers, first.num_experts, first.experts_per_token)
    assert found == shape
    assert checkpoint.lineage.parents[0].name == "nano"
    assert "Apache License" in (out / "LICENSE").read_text()
    assert (out / "NOTICE").is_file()
    assert json.loads((out / "shape-report.json").read_text())["quality"].startswith("not measured")
    checked = aperto("check", str(out))
    assert checked.exit_code == 0, checked.output
    assert "instruction sets" in checked.output and "FAIL" not in checked.output


@pytest.mark.parametrize("by", ["frequency", "output"])
def test_prunes_by_a_text(aperto, tmp_path, by):
    text = tmp_path / "text.txt"
    text.write_text("What is 17 * 23? Write it out, step by step. " * 20)
    out = tmp_path / "out"
    options = ("--keep", "5", "--text", str(text), "--by", by, "--out", str(out))
    result = aperto("shape", "prune", "nano", *options)
    assert result.exit_code == 0, result.output
    assert {layer.num_experts for layer in open_checkpoint(out).config.layers} == {5}
    steps = open_checkpoint(out).lineage.steps
    assert steps[-1] == f"kept 5 experts of each layer by {by} on text.txt of nano"


def test_each_layer_keeps_as_many_as_it_is_told(aperto, tmp_path, sample):
    out = tmp_path / "out"
    options = ("--keep", "8,6,5,5,6,8", "--text", str(sample), "--out", str(out))
    result = aperto("shape", "prune", "nano", *options)
    assert result.exit_code == 0, result.output
    assert [la.num_experts for la in open_checkpoint(out).config.layers] == [8, 6, 5, 5, 6, 8]
    report = json.loads((out / "shape-report.json").read_text())
    assert report["bytes_after"] < report["bytes_before"]
    assert 0 < report["quality"]["kl"] < 1
    assert "top-1 agreement: " in result.output
    told = aperto("shape", "diff", "nano", str(out)).output
    assert "layers.1.num_experts: 8 in A, 6 in B" in told and "24 other shape" in told
    found = json.loads(aperto("shape", "diff", "nano", str(out), "--json").output)
    assert found["config"]["layers.2.num_experts"] == [8, 5]
    assert len(found["tensors"]) == 105


@pytest.fixture
def sample(tmp_path):
    path = tmp_path / "sample.txt"
    path.write_text("A box holds 4 pens, so 3 boxes hold 12 pens. What is 17 * 23? " * 8)
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("layers", "nano"), "either --drop or --repeat"),
        (("layers", "nano", "--drop", "x"), "expected whole numbers"),
        (("layers", "nano", "--drop", "9"), "there is no layer 9"),
        (("top-k", "nano", "9"), "experts_per_token is 9"),
        (("prune", "nano", "--keep", "9", "--text", "x"), "--keep is 9 for layer 0"),
        (("prune", "nano", "--keep", "5,5", "--text", "x"), "--keep has 2 numbers"),
        (("prune", "nano", "--keep", "5", "--text", "missing.txt"), "expected a text file"),
        (("window", "nano", "64", "--text", "missing.txt"), "expected a text file"),
        (("context", "nano", "--tokens", "9", "--layout", "gguf"), "ends in .gguf"),
    ],
)
def test_what_cannot_be(aperto, tmp_path, arguments, message):
    result = aperto("shape", *arguments, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()
