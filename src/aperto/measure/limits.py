"""What the work itself costs: bytes a decoded token must touch, multiply-adds of a prompt."""

from __future__ import annotations

from aperto.config import LayerConfig, ModelConfig, Precision
from aperto.machine import Limits

BLOCK = 32
MXFP4_BLOCK_BYTES = 17
DENSE_BYTES_A_BLOCK = {"q8": 34, "exact": 64}
KV_VALUE_BYTES = {"q8": 2, "exact": 4}
SMALL_BYTES = 4  # norms, biases, sinks and router are kept in float32


def _attention_weights(config: ModelConfig) -> int:
    return config.hidden_size * 2 * (config.q_size + config.kv_size)


def _expert_weights(config: ModelConfig, layer: LayerConfig) -> int:
    """Weights of the experts that one token visits."""
    return layer.experts_per_token * 3 * config.hidden_size * config.intermediate_size


def _small_values(config: ModelConfig, layer: LayerConfig) -> int:
    """Router, norms, biases and sinks that one token needs."""
    attention = config.hidden_size + config.q_size + 2 * config.kv_size + config.num_attention_heads
    experts = layer.experts_per_token * (2 * config.intermediate_size + config.hidden_size)
    router = layer.num_experts * (config.hidden_size + 1)
    return 2 * config.hidden_size + attention + experts + router


def _visible(layer: LayerConfig, depth: int) -> int:
    return min(layer.window, depth) if layer.window else depth


def decode_bytes(config: ModelConfig, precision: Precision, depth: int) -> int:
    """Bytes of memory that one token at `depth` must read: weights it visits, and its KV."""
    dense = config.vocab_size * config.hidden_size + config.num_layers * _attention_weights(config)
    total = dense // BLOCK * DENSE_BYTES_A_BLOCK[precision]
    for layer in config.layers:
        total += _expert_weights(config, layer) // BLOCK * MXFP4_BLOCK_BYTES
        total += _small_values(config, layer) * SMALL_BYTES
        total += _visible(layer, depth) * 2 * config.kv_size * KV_VALUE_BYTES[precision]
    return total


def prefill_macs(config: ModelConfig, tokens: int) -> int:
    """Multiply-adds of a prompt of `tokens` tokens into an empty cache; the head runs once."""
    total = config.vocab_size * config.hidden_size
    for layer in config.layers:
        weights = _attention_weights(config) + _expert_weights(config, layer)
        total += tokens * (weights + layer.num_experts * config.hidden_size)
        pairs = sum(_visible(layer, position + 1) for position in range(tokens))
        total += pairs * 2 * config.q_size
    return total


def decode_limit(config: ModelConfig, precision: Precision, depth: int, limits: Limits) -> float:
    """Tokens/s at `depth` that reading the bytes alone would allow."""
    return limits.read_bytes_per_s / decode_bytes(config, precision, depth)


def prefill_limit(config: ModelConfig, precision: Precision, tokens: int, limits: Limits) -> float:
    """Tokens/s of a prompt that the multiply-adds alone would allow, in the precision's units."""
    peak = limits.int8_macs_per_s if precision == "q8" else limits.f32_macs_per_s
    return tokens * peak / prefill_macs(config, tokens)
