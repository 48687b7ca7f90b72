"""GGUF metadata of a gpt-oss model, as llama.cpp expects it."""

from __future__ import annotations

from typing import Any

from aperto.config import ModelConfig
from aperto.formats import vocabulary
from aperto.formats.checkpoint import TensorSource, TokenizerSource
from aperto.formats.gguf import Int32List
from aperto.formats.tensor import DType

_FILE_TYPES = {DType.MXFP4: 38, DType.Q8_0: 7, DType.BF16: 32, DType.F16: 1, DType.F32: 0}


def gguf_metadata(
    source: TensorSource, tokenizer: TokenizerSource, kinds: set[str], name: str
) -> dict[str, Any]:
    """Build the metadata; `aperto.` keys appear only where gpt-oss has no key for a setting."""
    file_type = next(number for kind, number in _FILE_TYPES.items() if str(kind) in kinds)
    config = source.config
    metadata: dict[str, Any] = {
        "general.architecture": "gpt-oss",
        "general.type": "model",
        "general.name": name,
        "general.file_type": file_type,
        "general.quantization_version": 2,
    }
    metadata |= {f"gpt-oss.{key}": value for key, value in _architecture(config).items()}
    if config.swiglu_limit != 7.0:
        metadata["aperto.swiglu_limit"] = config.swiglu_limit
    if config.rope.truncate:
        metadata["aperto.rope_truncate"] = True
    return metadata | _vocabulary(config, vocabulary.as_lists(tokenizer, config.vocab_size))


def _architecture(config: ModelConfig) -> dict[str, Any]:
    rope = config.rope
    own: dict[str, Any] = {
        "block_count": config.num_layers,
        "context_length": config.max_context,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "expert_feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(rope.theta),
        "rope.dimension_count": config.head_dim,
        "expert_count": _once([layer.num_experts for layer in config.layers]),
        "expert_used_count": _once([layer.experts_per_token for layer in config.layers]),
    }
    if rope.factor != 1.0:
        own |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope.factor),
            "rope.scaling.original_context_length": rope.original_context,
        }
        if (rope.beta_fast, rope.beta_slow) != (32.0, 1.0):
            own["rope.scaling.yarn_beta_fast"] = float(rope.beta_fast)
            own["rope.scaling.yarn_beta_slow"] = float(rope.beta_slow)
    return own | _windows([layer.window for layer in config.layers])


def _once(values: list[int]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else values


def _windows(windows: list[int]) -> dict[str, Any]:
    """State the windows: one and every other layer as published, else a period or lists."""
    sizes = {window for window in windows if window}
    if len(sizes) != 1:
        return {"attention.sliding_window": windows if sizes else [0] * len(windows)}
    own: dict[str, Any] = {"attention.sliding_window": sizes.pop()}
    flags = [bool(window) for window in windows]
    if flags == [index % 2 == 0 for index in range(len(windows))]:
        return own
    for period in range(len(windows) + 1):
        if flags == [period == 0 or i % period < period - 1 for i in range(len(windows))]:
            return own | {"attention.sliding_window_pattern": period}
    return own | {"attention.sliding_window_pattern": flags}


def _vocabulary(config: ModelConfig, source: TokenizerSource) -> dict[str, Any]:
    own: dict[str, Any] = {}
    if source.kind == "bundled":
        own["tokenizer.ggml.model"] = "none"
    else:
        own |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-4o",
            "tokenizer.ggml.tokens": list(source.tokens),
            "tokenizer.ggml.token_type": Int32List(source.token_types),
        }
        if source.merges:
            own["tokenizer.ggml.merges"] = list(source.merges)
    if config.eos_token_ids:
        own["tokenizer.ggml.eos_token_id"] = config.eos_token_ids[0]
    if len(config.eos_token_ids) > 1:
        own["aperto.eos_token_ids"] = list(config.eos_token_ids)
    if config.pad_token_id is not None:
        own["tokenizer.ggml.padding_token_id"] = config.pad_token_id
    return own
