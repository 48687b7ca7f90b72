"""Bytes and operations: the published counts for 20b, and plain loops for odd shapes."""

from __future__ import annotations

import pytest

from aperto.config import LayerConfig, ModelConfig
from aperto.machine import Limits
from aperto.measure import limits


def shape(num_layers: int = 24, num_experts: int = 32) -> ModelConfig:
    layers = (LayerConfig(0 if i % 2 else 128, num_experts, 4) for i in range(num_layers))
    return ModelConfig(201088, 2880, 2880, 64, 64, 8, tuple(layers))


def test_bytes_of_a_20b_token() -> None:
    # Weights: q, k, v, out; head; four experts a layer. Q8_0 takes 34 bytes for 32, MXFP4 17.
    attention, head, experts = 24 * 26_542_080, 201088 * 2880, 24 * 4 * 3 * 2880 * 2880
    # In float32: two norms, biases of q, k, v and out, sinks, biases of four experts, router.
    small = 24 * (2 * 2880 + 4096 + 2 * 512 + 2880 + 64 + 4 * (5760 + 2880) + 32 * 2881)
    rest = experts * 17 // 32 + small * 4
    assert limits.decode_bytes(shape(), "q8", 0) == (attention + head) * 34 // 32 + rest
    assert limits.decode_bytes(shape(), "exact", 0) == (attention + head) * 2 + rest


def test_keys_and_values_stop_growing_behind_a_window() -> None:
    config = shape()
    per_token = 12 * 2 * 512 * 2  # full layers x (keys and values) x width x f16
    at = [limits.decode_bytes(config, "q8", depth) for depth in (0, 128, 129, 4096)]
    assert at[1] - at[0] == 128 * 2 * per_token
    assert at[2] - at[1] == per_token
    assert at[3] - at[1] == (4096 - 128) * per_token


def test_operations_of_a_prompt_against_a_plain_count() -> None:
    config = ModelConfig(96, 64, 32, 16, 4, 2, (LayerConfig(3, 8, 2), LayerConfig(0, 4, 1)))
    tokens = 7
    expected = 96 * 64  # the head, once
    for layer in config.layers:
        for position in range(tokens):
            expected += 64 * (64 + 32 + 32) + 64 * 64  # q, k, v; out
            expected += 64 * layer.num_experts
            expected += layer.experts_per_token * 3 * 64 * 32
            seen = position + 1 if layer.window == 0 else min(layer.window, position + 1)
            expected += 4 * 16 * seen * 2  # scores and weighted sum
    assert limits.prefill_macs(config, tokens) == expected


def test_speeds_follow_the_machine() -> None:
    config, here = shape(), Limits(2, 30e9, 800e9, 200e9)
    decode = limits.decode_limit(config, "q8", 0, here)
    assert decode == pytest.approx(30e9 / limits.decode_bytes(config, "q8", 0))
    fast = limits.prefill_limit(config, "q8", 512, here)
    assert fast == pytest.approx(4 * limits.prefill_limit(config, "exact", 512, here))
