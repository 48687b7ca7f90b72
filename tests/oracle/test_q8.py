"""`q8` stays near `exact`, and docs/precision.md says how near."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.oracle.precision import SHAPES, measure, script
from tests.tiny import write_tiny

PAGE = (Path(__file__).parents[2] / "docs" / "precision.md").read_text()

# Rounding to int8 with the block's largest magnitude at 127: a step of amax / 127, an error of
# step / sqrt(12), and amax of 32 normal values is about 2.1 deviations. So each rounding of weights
# or activations adds r^2 = (2.1 / 127)^2 / 12 = 2.3e-5 of a product's variance. On the way of one
# layer lie ten: two each (weights and activations) for q, k, v and the output, one each for gate_up
# and down, whose weights are exact. Logits have a deviation of 3, and a small change d of them a KL
# divergence of var(d) / 2: 9 * 10 * r^2 / 2 = 1.0e-3 a layer, as much for embedding and head.
# Softmax and the product of gate and up may each double that variance.
KL_A_LAYER = 4 * 1.0e-3


@pytest.mark.parametrize("name", SHAPES)
def test_agreement_is_bounded_and_reported(name: str) -> None:
    """The figures are the same on every machine, so the page's rows are those measured here.

    Where experts are chosen, a rounding can change the choice, and that token's logits become
    another sample: such models are held by their rows and by the share of equal tokens alone.
    """
    agreement = measure(name)
    assert agreement.row(f"tiny, {name}", "random tokens") in PAGE.splitlines()
    assert agreement.kl.min() > -1e-9 and agreement.kl.max() > 0
    assert agreement.same_top > 0.8
    if SHAPES[name].get("experts") == 1:
        num_layers = len(SHAPES[name].get("windows", (8, 0)))
        assert agreement.kl.mean() < KL_A_LAYER * (num_layers + 1)


def test_the_script_prints_a_row_for_a_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_tiny(tmp_path / "model", tokenizer=True)
    text = tmp_path / "text.txt"
    text.write_text("the answer to the question " * 200)
    script.main([str(model), "--text", str(text), "--tokens", "300"])
    header, _, row = capsys.readouterr().out.splitlines()
    assert header.startswith("| model | text | tokens |")
    assert row.startswith(f"| {model} | text.txt | 300 | 0.0")
    with pytest.raises(SystemExit, match=r"error: .*nothing"):
        script.main([str(model), "--text", str(tmp_path / "nothing.txt")])
