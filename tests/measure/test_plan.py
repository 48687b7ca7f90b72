import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import write_tiny

from aperto.config import LayerConfig, ModelConfig
from aperto.formats import open_checkpoint
from aperto.formats.packed import packed_bytes
from aperto.measure.plan import (
    PAGE_TOKENS,
    bytes_by_kind,
    default_context,
    plan_memory,
    readable_bytes,
    required_bytes,
    tensor_kind,
)

GIB = 2**30
LAYERS_20B = tuple(LayerConfig(128 if i % 2 == 0 else 0, 32, 4) for i in range(24))
CONFIG_20B = ModelConfig(
    vocab_size=201088,
    hidden_size=2880,
    intermediate_size=2880,
    head_dim=64,
    num_attention_heads=64,
    num_key_value_heads=8,
    layers=LAYERS_20B,
)


def plan_20b(**changes):
    options = {"precision": "q8", "context": 8192, "available_bytes": 16 * GIB} | changes
    return plan_memory(CONFIG_20B, **options)


def test_experts_of_20b_have_the_size_of_the_checkpoint():
    # 24 layers x 32 experts x 3 matrices of 2880 x 2880 at 17 bytes per 32 values.
    experts = plan_20b().items[0]
    assert experts.num_bytes == 24 * 32 * 3 * 2880 * 2880 * 17 // 32


def test_full_kv_of_20b_is_24_kib_a_token():
    # 12 whole-context layers, 2 (K and V) x 512 values x 2 bytes.
    item = next(i for i in plan_20b().items if i.name == "KV pages, whole context")
    assert item.num_bytes == 8192 * 12 * 2 * 512 * 2


def test_20b_fits_16_gib_at_8k_and_not_11():
    assert plan_20b().fits
    tight = plan_20b(available_bytes=11 * GIB)
    assert not tight.fits
    assert "free" in tight.advice[-1]


def test_too_long_a_context_names_the_longest_that_fits():
    total = plan_20b(context=8192).total_bytes
    plan = plan_20b(context=131072, available_bytes=total)
    assert plan.longest_context == 8192
    assert plan.advice[0] == "--context 8192 is the longest that fits"


def test_exact_that_does_not_fit_names_q8():
    q8 = plan_20b().total_bytes
    assert any(
        "--precision q8" in a and a.endswith("and fits")
        for a in plan_20b(precision="exact", available_bytes=q8).advice
    )
    assert any(
        "does not fit either" in a for a in plan_20b(precision="exact", available_bytes=GIB).advice
    )


@settings(deadline=None)
@given(
    context=st.integers(1, 131072),
    more=st.integers(0, 4096),
    precision=st.sampled_from(["q8", "exact"]),
)
def test_memory_never_shrinks_with_the_context(context, more, precision):
    assert required_bytes(CONFIG_20B, precision=precision, context=context) <= required_bytes(
        CONFIG_20B, precision=precision, context=context + more
    )


@settings(deadline=None)
@given(available=st.integers(11 * GIB, 24 * GIB))
def test_longest_context_fits_and_one_page_more_does_not(available):
    longest = plan_20b(available_bytes=available).longest_context
    if longest:
        assert required_bytes(CONFIG_20B, precision="q8", context=longest) <= available
    if longest < CONFIG_20B.max_context:
        more = required_bytes(CONFIG_20B, precision="q8", context=longest + PAGE_TOKENS)
        assert more > available


def test_default_context_is_the_engines():
    # 256 MiB of keys and values at 24 KiB a token are 10922 tokens: the power of two below.
    assert default_context(CONFIG_20B, "q8") == 8192


def test_every_window_group_is_counted():
    layers = (LayerConfig(64, 4, 2), LayerConfig(0, 4, 2), LayerConfig(128, 8, 2))
    config = dataclasses.replace(CONFIG_20B, layers=layers)
    names = [
        i.name for i in plan_memory(config, precision="q8", context=4096, available_bytes=GIB).items
    ]
    assert {"KV pages, window 64", "KV pages, window 128", "KV pages, whole context"} <= set(names)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("embedding.weight", "embedding"),
        ("head.weight", "head"),
        ("norm.weight", "norms"),
        ("layers.3.attn.norm.weight", "norms"),
        ("layers.3.attn.sinks", "attention"),
        ("layers.3.moe.router.bias", "router"),
        ("layers.3.moe.gate_up.weight", "experts"),
    ],
)
def test_tensor_kind(name, kind):
    assert tensor_kind(name) == kind


def test_bytes_by_kind_sorts_largest_first():
    tensors = [("norm.weight", 4), ("head.weight", 100), ("layers.0.attn.norm.weight", 4)]
    assert list(bytes_by_kind(tensors).items()) == [("head", 100), ("norms", 8)]


def test_readable_bytes():
    assert readable_bytes(3 * GIB // 2) == "1.50 GiB"
    assert readable_bytes(2**20) == "1.0 MiB"
    assert readable_bytes(1536) == "1.5 KiB"


@pytest.mark.parametrize("precision", ["q8", "exact"])
def test_planned_weights_are_what_packing_takes(tmp_path, precision):
    checkpoint = open_checkpoint(write_tiny(tmp_path / "tiny", hidden=128, intermediate=128))
    plan = plan_memory(checkpoint.config, precision=precision, context=64, available_bytes=GIB)
    planned = sum(item.num_bytes for item in plan.items[:5])
    # Packing pads rows to whole tiles: at these sizes only the 4 router rows, to 16 each layer.
    padding = 2 * (16 - 4) * 128 * 2
    assert packed_bytes(checkpoint, precision) == pytest.approx(planned, abs=padding)
