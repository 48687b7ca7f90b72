"""Adapters: PEFT's layout in and out, and every key that matches nothing refused."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from tests.tiny import write_tiny

from aperto.errors import AdapterError, FormatError, UsageError
from aperto.formats import open_checkpoint
from aperto.formats.adapter import (
    CONFIG,
    WEIGHTS,
    Adapter,
    LowRank,
    check_adapter,
    expert_key,
    matrix_of,
    read_adapter,
    write_adapter,
)
from aperto.formats.names import tensor_shapes

ATTENTION = tuple(f"layers.0.attn.{part}.weight" for part in ("q", "k", "v", "out"))
ROUTER = ("layers.1.moe.router.weight",)
BOTH = ("layers.1.moe.gate_up.weight", "layers.1.moe.down.weight")


@pytest.fixture
def base(tmp_path):
    """A tiny model with plain experts, as PEFT can train them."""
    return write_tiny(tmp_path / "base", tokenizer=True, expert_dtype="bf16")


def made(config, tensors, *, rank=3, experts=(0, 2), rslora=False, full=()):
    rng = np.random.default_rng(7)
    shapes = tensor_shapes(config)
    deltas = {}
    for name in tensors:
        *lead, out, inputs = shapes[name]
        keys = [expert_key(name, idx) for idx in experts] if lead else [name]
        for key in keys:
            a = rng.standard_normal((rank, inputs)).astype(np.float32)
            b = 0.1 * rng.standard_normal((out, rank)).astype(np.float32)
            deltas[key] = LowRank(a, b)
    replaced = {n: rng.standard_normal(shapes[n]).astype(np.float32) for n in full}
    return Adapter(rank, 6.0, rslora, deltas, replaced, "the base")


def assert_same(left, right):
    assert (left.rank, left.alpha, left.rslora, left.base) == (
        right.rank, right.alpha, right.rslora, right.base,
    )  # fmt: skip
    assert left.deltas.keys() == right.deltas.keys()
    for key, delta in left.deltas.items():
        np.testing.assert_array_equal(delta.a, right.deltas[key].a)
        np.testing.assert_array_equal(delta.b, right.deltas[key].b)
    assert left.replaced.keys() == right.replaced.keys()
    for key, array in left.replaced.items():
        np.testing.assert_array_equal(array, right.replaced[key])


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    "tensors", [ATTENTION, ROUTER, BOTH, BOTH[:1], BOTH[1:], ATTENTION + ROUTER + BOTH]
)
def test_what_is_written_is_read(base, tmp_path, tensors, rslora):
    config = open_checkpoint(base).config
    full = ("layers.0.attn.sinks", "layers.1.moe.norm.weight", "layers.0.attn.q.bias")
    adapter = made(config, tensors, rslora=rslora, full=full)
    write_adapter(tmp_path / "a", adapter, config)
    assert_same(read_adapter(tmp_path / "a", config), adapter)


@pytest.mark.parametrize("tensors", [ATTENTION + ROUTER, BOTH, BOTH[:1], BOTH[1:]])
def test_peft_applies_the_same_change(base, tmp_path, tensors):
    """The weights of PEFT's merged model are base + scaling * b @ a, matrix by matrix."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import PeftModel
        from transformers import GptOssForCausalLM

        config = open_checkpoint(base).config
        adapter = made(config, tensors)
        write_adapter(tmp_path / "a", adapter, config)
        plain = GptOssForCausalLM.from_pretrained(base, dtype=torch.float32)
        before = {name: value.clone() for name, value in plain.state_dict().items()}
        merged = PeftModel.from_pretrained(plain, tmp_path / "a").merge_and_unload()
    after = merged.state_dict()
    expected = {name: value.numpy().copy() for name, value in before.items()}
    for key, delta in adapter.deltas.items():
        tensor, expert = matrix_of(key)
        change = adapter.scaling * delta.b @ delta.a
        name = "model." + tensor.replace("attn.out", "self_attn.o_proj").replace(
            ".moe.gate_up.weight", ".mlp.experts.gate_up_proj"
        ).replace(".moe.down.weight", ".mlp.experts.down_proj").replace(".moe.", ".mlp.")
        for part in ("q", "k", "v"):
            name = name.replace(f".attn.{part}.", f".self_attn.{part}_proj.")
        if expert is None:
            expected[name] += change
        else:
            expected[name][expert] += change.T  # transformers keeps experts as [in, out]
    changed = 0
    for name, value in expected.items():
        # Two orders of a sum over rank 3, in float32: a few units of the last place of 1.
        np.testing.assert_allclose(after[name].numpy(), value, atol=2e-5, rtol=1e-5)
        changed += not np.array_equal(value, before[name].numpy())
    assert changed == len({matrix_of(key)[0] for key in adapter.deltas})


def test_keys_that_match_nothing_fail(base, tmp_path):
    config = open_checkpoint(base).config
    good = made(config, ATTENTION)
    for key in ("layers.9.attn.q.weight", "layers.0.attn.sinks", "embedding.weight:1"):
        wrong = Adapter(3, 6.0, False, {**good.deltas, key: good.deltas[ATTENTION[0]]})
        with pytest.raises(AdapterError, match=key):
            check_adapter(wrong, config)
    wrong = Adapter(3, 6.0, False, {ATTENTION[1]: good.deltas[ATTENTION[0]]})
    with pytest.raises(AdapterError, match="the matrix"):
        write_adapter(tmp_path / "a", wrong, config)
    assert not (tmp_path / "a").exists()


def rewritten(folder, change):
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(settings | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora is set"),
        ({"r": 0}, "r is 0"),
        ({"r": 2}, "rank 3|expected"),
        ({"lora_alpha": "much"}, "lora_alpha is 'much'"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"bias": "all"}, "biases"),
    ],
)
def test_settings_that_are_not_supported_fail(base, tmp_path, change, message):
    config = open_checkpoint(base).config
    write_adapter(tmp_path / "a", made(config, ATTENTION + BOTH), config)
    rewritten(tmp_path / "a", change)
    with pytest.raises(AdapterError, match=message):
        read_adapter(tmp_path / "a", config)


def test_unknown_keys_and_halves_of_pairs_fail(base, tmp_path):
    from safetensors.numpy import load_file, save_file

    config = open_checkpoint(base).config
    write_adapter(tmp_path / "a", made(config, ATTENTION), config)
    arrays = load_file(tmp_path / "a" / WEIGHTS)
    for key, message in (
        ("base_model.model.lm_head.lora_A.weight", "only lora_A"),
        ("base_model.model.model.layers.0.mlp.gate.weight", "no change that can be applied"),
        ("base_model.model.model.embed_tokens.weight", "no change that can be applied"),
    ):
        save_file({**arrays, key: np.zeros((3, 4), np.float32)}, tmp_path / "a" / WEIGHTS)
        with pytest.raises(AdapterError, match=message):
            read_adapter(tmp_path / "a", config)
    pair = {f"base_model.model.model.nothing.lora_{s}.weight": np.ones((3, 3), "f4") for s in "AB"}
    save_file({**arrays, **pair}, tmp_path / "a" / WEIGHTS)
    with pytest.raises(AdapterError, match=r"no module 'model\.nothing'"):
        read_adapter(tmp_path / "a", config)


def test_damage_and_places_that_are_taken(base, tmp_path):
    config = open_checkpoint(base).config
    adapter = made(config, ATTENTION)
    write_adapter(tmp_path / "a", adapter, config)
    with pytest.raises(UsageError, match="exists"):
        write_adapter(tmp_path / "a", adapter, config)
    with pytest.raises(AdapterError, match=CONFIG):
        read_adapter(base, config)
    path = tmp_path / "a" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FormatError):
        read_adapter(tmp_path / "a", config)
