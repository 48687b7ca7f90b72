"""Merging: exact where the type allows it, untouched bytes elsewhere, and a lineage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.formats.test_adapter import ATTENTION, BOTH, ROUTER, made
from tests.tiny import write_tiny

from aperto.errors import AdapterError, FormatError
from aperto.formats import open_checkpoint, quantize_experts, write_checkpoint
from aperto.formats.adapter import Adapter, matrix_of, write_adapter
from aperto.formats.lineage import FILE, Lineage, Parent
from aperto.formats.merged import Merged
from aperto.formats.mxfp4 import decode, encode
from aperto.formats.tensor import DType, bf16_to_float32, float32_to_bf16

FULL = ("layers.0.attn.sinks", "layers.1.moe.norm.weight")
LINEAGE = Lineage((Parent("base", "0123"), Parent("a", "4567")), ("merged a into base",))


@pytest.fixture
def base(tmp_path):
    return open_checkpoint(write_tiny(tmp_path / "base", tokenizer=True))


@pytest.mark.parametrize("layout", ["hf", "openai", "gguf"])
def test_what_is_not_changed_keeps_its_bytes_in_every_layout(base, tmp_path, layout):
    adapter = made(base.config, ATTENTION + ROUTER + BOTH, full=FULL)
    path = tmp_path / ("m.gguf" if layout == "gguf" else "m")
    merged = Merged(base, adapter)
    write_checkpoint(merged, path, layout, lineage=LINEAGE)
    written = open_checkpoint(path)
    changed = {matrix_of(key)[0] for key in adapter.deltas}
    for name in base.names():
        before, after = base.tensor(name), written.tensor(name)
        if name in adapter.replaced:
            np.testing.assert_array_equal(after.to_float32(), adapter.replaced[name])
        elif name not in changed:
            np.testing.assert_array_equal(after.to_float32(), before.to_float32())
        elif after.scales is not None:
            others = [i for i in range(before.shape[0]) if f"{name}:{i}" not in adapter.deltas]
            np.testing.assert_array_equal(after.data[others], before.data[others])
            np.testing.assert_array_equal(after.scales[others], before.scales[others])
    assert set(merged.errors) == changed
    assert written.lineage == LINEAGE and written.lineage.vetted == "no"


def test_changed_matrices_are_the_rounded_sum(base):
    adapter = made(base.config, ATTENTION + BOTH)
    merged = Merged(base, adapter)
    for key, delta in adapter.deltas.items():
        name, expert = matrix_of(key)
        before, after = base.tensor(name), merged.tensor(name)
        change = np.float32(adapter.scaling) * (delta.b @ delta.a)
        if expert is None:
            exact = before.to_float32() + change
            expected = bf16_to_float32(float32_to_bf16(exact))
            np.testing.assert_array_equal(after.to_float32(), expected)
            assert merged.errors[name].of_values < 2**-8  # half a unit of BF16's eight bits
        else:
            exact = before.to_float32()[expert] + change
            np.testing.assert_array_equal(after.to_float32()[expert], decode(*encode(exact)))
            assert 0 < merged.errors[name].of_values < 0.2


def test_transformers_and_the_merged_model_agree_where_nothing_is_rounded(tmp_path):
    """With float32 attention the sum is kept, so PEFT's live adapter gives the same logits."""
    import warnings

    from tests.tiny import hf_oracle

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import PeftModel
        from transformers import GptOssForCausalLM

        stored = write_tiny(tmp_path / "base", tokenizer=True, expert_dtype="bf16")
        folder = tmp_path / "wide"
        write_checkpoint(open_checkpoint(stored), folder, "hf", dense=DType.F32)
        base = open_checkpoint(folder)
        adapter = made(base.config, ATTENTION)
        write_adapter(tmp_path / "a", adapter, base.config)
        plain = GptOssForCausalLM.from_pretrained(folder, dtype=torch.float32)
        live = PeftModel.from_pretrained(plain, tmp_path / "a").eval()
        ids = list(range(1, 40))
        with torch.no_grad():
            expected = live(torch.tensor([ids])).logits[0].numpy()
    write_checkpoint(Merged(base, adapter), tmp_path / "m", "hf")
    found = hf_oracle(tmp_path / "m")(ids)
    # Sums of some hundred float32 terms in another order: 1e-5 of logits of deviation 3, at most.
    assert np.abs(found - expected).max() < 1e-4 * expected.std()


def test_merging_with_the_wrong_model_fails(base, tmp_path):
    other = open_checkpoint(write_tiny(tmp_path / "other", hidden=32, windows=(8,)))
    with pytest.raises(AdapterError, match="does not fit"):
        Merged(other, made(base.config, ATTENTION))


def test_plain_experts_are_quantised_first(tmp_path):
    plain = open_checkpoint(write_tiny(tmp_path / "base", tokenizer=True, expert_dtype="bf16"))
    source = quantize_experts(plain)
    merged = Merged(source, made(plain.config, BOTH))
    untouched = np.array([1, 3])
    before, after = source.tensor(BOTH[0]), merged.tensor(BOTH[0])
    np.testing.assert_array_equal(after.data[untouched], before.data[untouched])


def test_an_empty_adapter_changes_nothing(base):
    merged = Merged(base, Adapter(1, 1.0, False, {}))
    for name in base.names():
        np.testing.assert_array_equal(merged.tensor(name).data, base.tensor(name).data)
    assert merged.errors == {}


@pytest.mark.parametrize("text", ["{}", '{"format": 2}', "no", '{"format": 1, "parents": 3}'])
def test_a_damaged_lineage_is_an_error(tmp_path, text):
    folder = write_tiny(tmp_path / "base", tokenizer=True)
    (folder / FILE).write_text(text)
    with pytest.raises(FormatError):
        open_checkpoint(folder)
