"""`aperto shape`: each experiment is a model that is read, told of and run."""

import pytest

from aperto.formats import open_checkpoint


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        (("top-k", "nano", "1"), (6, 8, 1)),
        (("window", "nano", "64"), (6, 8, 2)),
        (("layers", "nano", "--drop", "2,3"), (4, 8, 2)),
        (("layers", "nano", "--repeat", "4"), (7, 8, 2)),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("layers", "nano"), "either --drop or --repeat"),
        (("layers", "nano", "--drop", "x"), "expected numbers of layers"),
        (("layers", "nano", "--drop", "9"), "there is no layer 9"),
        (("top-k", "nano", "9"), "experts_per_token is 9"),
    ],
)
def test_what_cannot_be(aperto, tmp_path, arguments, message):
    result = aperto("shape", *arguments, "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()
