"""The model in float64 NumPy, a line a formula: the truth that float32 results are measured by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from aperto.config import ModelConfig
from aperto.formats import Checkpoint

Array = np.ndarray


def logits(checkpoint: Checkpoint, ids: Sequence[int]) -> Array:
    """Logits [T, V] of a text."""
    config = checkpoint.config
    w = {
        name: checkpoint.tensor(name).to_float32().astype(np.float64) for name in checkpoint.names()
    }
    cos, sin = _rope(config, len(ids))
    x = w["embedding.weight"][list(ids)]
    for index, layer in enumerate(config.layers):
        prefix = f"layers.{index}."
        own = {name.removeprefix(prefix): w[name] for name in w if name.startswith(prefix)}
        x = x + _attention(config, layer.window, own, _norm(x, own["attn.norm.weight"]), cos, sin)
        normed = _norm(x, own["moe.norm.weight"])
        x = x + _experts(config.swiglu_limit, layer.experts_per_token, own, normed)
    return _norm(x, w["norm.weight"]) @ w["head.weight"].T


def _norm(x: Array, weight: Array) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-5) * weight


def _rope(config: ModelConfig, length: int) -> tuple[Array, Array]:
    """Cosines and sines [T, head_dim / 2] after YaRN, its concentration included."""
    rope, half = config.rope, config.head_dim // 2
    frequency = rope.theta ** (-np.arange(half) / half)
    concentration = 1.0
    if rope.factor > 1:
        concentration = 0.1 * math.log(rope.factor) + 1

        def pair(rotations: float) -> float:  # that turns this often over the original context
            turns = rope.original_context / (2 * math.pi * rotations)
            return half * math.log(turns) / math.log(rope.theta)

        low, high = pair(rope.beta_fast), pair(rope.beta_slow)
        stretched = np.clip((np.arange(half) - low) / (high - low), 0, 1)
        frequency = frequency * (1 - stretched) + frequency / rope.factor * stretched
    angle = np.arange(length)[:, None] * frequency
    return np.cos(angle) * concentration, np.sin(angle) * concentration


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _attention(
    config: ModelConfig, window: int, w: dict[str, Array], x: Array, cos: Array, sin: Array
) -> Array:
    def heads(part: str) -> Array:  # [T, heads, head_dim]
        product = x @ w[f"attn.{part}.weight"].T + w[f"attn.{part}.bias"]
        return product.reshape(len(x), -1, config.head_dim)

    group = config.num_attention_heads // config.num_key_value_heads
    q = _rotate(heads("q"), cos, sin)
    k = _rotate(heads("k"), cos, sin).repeat(group, axis=1)
    v = heads("v").repeat(group, axis=1)
    scores = np.einsum("thd,shd->hts", q, k) / math.sqrt(config.head_dim)
    distance = np.arange(len(x))[:, None] - np.arange(len(x))
    scores[:, (distance < 0) | (distance >= (window or len(x)))] = -np.inf
    sinks = np.broadcast_to(w["attn.sinks"][:, None, None], (*scores.shape[:2], 1))
    share = _softmax(np.concatenate([scores, sinks], axis=-1))[..., :-1]
    out = np.einsum("hts,shd->thd", share, v).reshape(len(x), -1)
    return out @ w["attn.out.weight"].T + w["attn.out.bias"]


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _experts(limit: float, top_k: int, w: dict[str, Array], x: Array) -> Array:
    router = x @ w["moe.router.weight"].T + w["moe.router.bias"]
    result = np.zeros_like(x)
    for t, scores in enumerate(router):
        chosen = np.argsort(-scores, kind="stable")[:top_k]
        for share, e in zip(_softmax(scores[chosen]), chosen, strict=True):
            both = w["moe.gate_up.weight"][e] @ x[t] + w["moe.gate_up.bias"][e]
            gate = np.minimum(both[::2], limit)
            up = np.clip(both[1::2], -limit, limit)
            act = gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
            result[t] += share * (w["moe.down.weight"][e] @ act + w["moe.down.bias"][e])
    return result
