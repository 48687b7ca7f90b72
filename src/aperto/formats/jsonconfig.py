"""config.json of the Hugging Face and the original layout, to and from ModelConfig."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aperto.config import LayerConfig, ModelConfig, RopeConfig
from aperto.errors import ConfigError, FormatError, UnsupportedError
from aperto.formats.jsonfile import Fields

MAX_LAYERS = 1024
MAX_EXPERTS = 1 << 16
MAX_WIDTH = 1 << 20
MAX_VOCAB = 1 << 24
SWIGLU_ALPHA = 1.702


def build_config(where: str, **values: Any) -> ModelConfig:
    """Build a ModelConfig; what it refuses becomes a FormatError that names the file."""
    try:
        return ModelConfig(**values)
    except ConfigError as problem:
        raise FormatError(f"{where}: {problem}") from problem


def sizes(fields: Fields) -> dict[str, int]:
    """Read the widths that both layouts spell alike."""
    return {
        "vocab_size": fields.count("vocab_size", high=MAX_VOCAB),
        "hidden_size": fields.count("hidden_size", high=MAX_WIDTH),
        "intermediate_size": fields.count("intermediate_size", high=MAX_WIDTH),
        "head_dim": fields.count("head_dim", high=MAX_WIDTH),
        "num_attention_heads": fields.count("num_attention_heads", high=MAX_WIDTH),
        "num_key_value_heads": fields.count("num_key_value_heads", high=MAX_WIDTH),
    }


# --- Hugging Face -------------------------------------------------------------------------------


def from_hf(raw: dict[str, Any], generation: Mapping[str, Any], where: str) -> ModelConfig:
    """Read a Hugging Face config.json.

    Raises FormatError for fields that are missing or out of range, UnsupportedError for an
    architecture that is not gpt-oss or a variation of it that aperto cannot compute.
    """
    fields = Fields(raw, where)
    _check_hf_architecture(fields)
    num_layers = fields.count("num_hidden_layers", high=MAX_LAYERS)
    return build_config(
        where,
        **sizes(fields),
        layers=_hf_layers(fields, num_layers),
        rope=_hf_rope(fields),
        max_context=fields.count("max_position_embeddings", default=131072),
        swiglu_limit=fields.number("swiglu_limit", default=7.0),
        rms_norm_eps=fields.number("rms_norm_eps", high=1.0, default=1e-5),
        eos_token_ids=eos_ids(generation, raw, where),
        pad_token_id=pad_id(fields, "pad_token_id"),
    )


def _check_hf_architecture(fields: Fields) -> None:
    kind = fields.raw.get("model_type")
    if kind not in ("gpt_oss", "gpt_oss_puzzle"):
        raise UnsupportedError(
            f"{fields.where}: model_type is {kind!r:.80}; aperto runs gpt_oss and "
            "gpt_oss_puzzle only"
        )
    alpha = fields.number("swiglu_alpha", default=SWIGLU_ALPHA)
    if alpha != SWIGLU_ALPHA:
        raise UnsupportedError(f"{fields.where}: swiglu_alpha is {alpha}; expected {SWIGLU_ALPHA}")
    if not fields.flag("attention_bias", True):
        raise UnsupportedError(f"{fields.where}: attention_bias is false; expected true")
    activation = fields.raw.get("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedError(f"{fields.where}: hidden_act is {activation!r:.40}; expected 'silu'")
    quantization = fields.raw.get("quantization_config") or {}
    if not isinstance(quantization, dict):
        raise fields.error("quantization_config", quantization, "an object")
    method = quantization.get("quant_method", "mxfp4")
    if method != "mxfp4":
        raise UnsupportedError(
            f"{fields.where}: the weights are quantised by {method!r:.40}; expected mxfp4 or plain "
            "BF16; use the publisher's unquantised version"
        )


def _hf_layers(fields: Fields, num_layers: int) -> tuple[LayerConfig, ...]:
    top_k = fields.count("num_experts_per_tok", "experts_per_token", high=MAX_EXPERTS)
    blocks = fields.raw.get("block_configs")
    if blocks is not None:
        return _hf_block_configs(fields, blocks, num_layers, top_k)
    experts = fields.count("num_local_experts", "num_experts", high=MAX_EXPERTS)
    kinds = fields.raw.get("layer_types")
    if kinds is None:
        # The published default where the config is silent: windowed first, then alternating.
        kinds = ["sliding_attention", "full_attention"] * (num_layers // 2 + 1)
        kinds = kinds[:num_layers]
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise fields.error("layer_types", kinds, f"a list of {num_layers} attention kinds")
    windows = {"full_attention": 0}
    if "sliding_attention" in kinds:
        windows["sliding_attention"] = fields.count("sliding_window")
    for kind in kinds:
        if not isinstance(kind, str) or kind not in windows:
            raise fields.error("layer_types", kind, "sliding_attention or full_attention")
    return tuple(LayerConfig(windows[kind], experts, top_k) for kind in kinds)


def _hf_block_configs(
    fields: Fields, blocks: Any, num_layers: int, top_k: int
) -> tuple[LayerConfig, ...]:
    """Read per-layer settings as in pruned models; a null window means the whole context."""
    if not isinstance(blocks, list) or len(blocks) != num_layers:
        raise fields.error("block_configs", blocks, f"a list of {num_layers} objects")
    layers = []
    for index, block in enumerate(blocks):
        if not isinstance(block, dict):
            raise fields.error(f"block_configs[{index}]", block, "an object")
        own = Fields(block, f"{fields.where}, block_configs[{index}]")
        layers.append(
            LayerConfig(
                window=own.count("sliding_window", default=0, low=0),
                num_experts=own.count("num_local_experts", high=MAX_EXPERTS),
                experts_per_token=own.count("num_experts_per_tok", high=MAX_EXPERTS, default=top_k),
            )
        )
    return tuple(layers)


def _hf_rope(fields: Fields) -> RopeConfig:
    """Read rope_parameters (transformers 5) or rope_scaling with rope_theta (before)."""
    name, raw = fields.first("rope_parameters", "rope_scaling")
    if raw is None:
        raise fields.error(name, raw, "the rotary settings (rope_parameters or rope_scaling)")
    if not isinstance(raw, dict):
        raise fields.error(name, raw, "an object")
    rope = Fields(raw, f"{fields.where}, {name}")
    theta = rope.number("rope_theta", low=1.0, high=1e12, default=0.0) or fields.number(
        "rope_theta", low=1.0, high=1e12, default=150000.0
    )
    kind = raw.get("rope_type", raw.get("type", "yarn"))
    if kind == "default":
        return RopeConfig(theta=theta, factor=1.0)
    if kind != "yarn":
        raise UnsupportedError(f"{rope.where}: rope_type is {kind!r:.40}; expected yarn or default")
    config = RopeConfig(
        theta=theta,
        factor=rope.number("factor", low=1.0),
        beta_fast=rope.number("beta_fast", default=32.0),
        beta_slow=rope.number("beta_slow", default=1.0),
        original_context=rope.count(
            "original_max_position_embeddings",
            default=fields.count("initial_context_length", default=4096),
        ),
        truncate=rope.flag("truncate", True),
    )
    _check_concentration(rope, config.factor)
    return config


def _check_concentration(rope: Fields, factor: float) -> None:
    """Refuse attention scalings other than YaRN's own."""
    expected = 0.1 * math.log(factor) + 1.0
    given = rope.number("attention_factor", default=expected)
    if abs(given - expected) > 1e-6 or rope.raw.get("mscale") or rope.raw.get("mscale_all_dim"):
        raise UnsupportedError(
            f"{rope.where}: a custom attention_factor or mscale was found; expected YaRN's own, "
            f"{expected:.6g}"
        )


def eos_ids(generation: Mapping[str, Any], raw: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """Return the declared end-of-generation ids, generation_config first."""
    value = generation.get("eos_token_id", raw.get("eos_token_id"))
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for item in ids:
        if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < MAX_VOCAB:
            raise FormatError(f"{where}: eos_token_id is {value!r:.80}; expected token ids")
    return tuple(ids)


def pad_id(fields: Fields, name: str) -> int | None:
    """Return the padding token id, where one is named."""
    if fields.raw.get(name) is None:
        return None
    return fields.count(name, low=0, high=MAX_VOCAB)


def to_hf(config: ModelConfig, *, experts_are_mxfp4: bool) -> dict[str, Any]:
    """Write a Hugging Face config.json; layers that differ in kind become `block_configs`."""
    rope = config.rope
    first = config.layers[0]
    windows = {layer.window for layer in config.layers if layer.window}
    uniform = len(windows) <= 1 and all(
        (layer.num_experts, layer.experts_per_token) == (first.num_experts, first.experts_per_token)
        for layer in config.layers
    )
    scaling: dict[str, Any] = {
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
        "factor": rope.factor,
        "original_max_position_embeddings": rope.original_context,
        "rope_type": "yarn",
        "truncate": rope.truncate,
    }
    if rope.factor == 1.0:
        scaling = {"rope_type": "default"}
    raw: dict[str, Any] = {
        "architectures": ["GptOssForCausalLM" if uniform else "GptOssPuzzleForCausalLM"],
        "model_type": "gpt_oss" if uniform else "gpt_oss_puzzle",
        "attention_bias": True,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "experts_per_token": first.experts_per_token,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initial_context_length": rope.original_context,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "layer_types": [
            "sliding_attention" if layer.window else "full_attention" for layer in config.layers
        ],
        "max_position_embeddings": config.max_context,
        "num_attention_heads": config.num_attention_heads,
        "num_experts_per_tok": first.experts_per_token,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "num_local_experts": first.num_experts,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": scaling,
        "rope_theta": rope.theta,
        "sliding_window": max(windows, default=None),
        "swiglu_limit": config.swiglu_limit,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    if config.eos_token_ids:
        raw["eos_token_id"] = config.eos_token_ids[0]
    if config.pad_token_id is not None:
        raw["pad_token_id"] = config.pad_token_id
    if experts_are_mxfp4:
        raw["quantization_config"] = {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        }
    if not uniform:
        raw["block_configs"] = [
            {
                "num_local_experts": layer.num_experts,
                "num_experts_per_tok": layer.experts_per_token,
                "sliding_window": layer.window or None,
            }
            for layer in config.layers
        ]
    return raw


# --- original -----------------------------------------------------------------------------------


def from_openai(raw: dict[str, Any], generation: Mapping[str, Any], path: Path) -> ModelConfig:
    """Read the original layout's config.json, which knows one window for every other layer.

    `layers`, `rms_norm_eps`, `max_position_embeddings` and `rope_truncate` are aperto's additions,
    written only where a model departs from the published pattern.
    """
    fields = Fields(raw, str(path))
    num_layers = fields.count("num_hidden_layers", high=MAX_LAYERS)
    rope = RopeConfig(
        theta=fields.number("rope_theta", low=1.0, high=1e12, default=150000.0),
        factor=fields.number("rope_scaling_factor", low=1.0, default=32.0),
        beta_fast=fields.number("rope_ntk_beta", default=32.0),
        beta_slow=fields.number("rope_ntk_alpha", default=1.0),
        original_context=fields.count("initial_context_length", default=4096),
        truncate=fields.flag("rope_truncate", False),
    )
    return build_config(
        str(path),
        **sizes(fields),
        layers=_openai_layers(fields, num_layers),
        rope=rope,
        max_context=fields.count("max_position_embeddings", default=_scaled_context(rope)),
        swiglu_limit=fields.number("swiglu_limit", default=7.0),
        rms_norm_eps=fields.number("rms_norm_eps", high=1.0, default=1e-5),
        eos_token_ids=eos_ids(generation, raw, str(path)),
    )


def _openai_layers(fields: Fields, num_layers: int) -> tuple[LayerConfig, ...]:
    raw = fields.raw.get("layers")
    if raw is None:
        window = fields.count("sliding_window")
        experts = fields.count("num_experts", high=MAX_EXPERTS)
        top_k = fields.count("experts_per_token", high=MAX_EXPERTS)
        # The layout's own rule: the window applies to every other layer, the first included.
        return tuple(
            LayerConfig(0 if index % 2 else window, experts, top_k) for index in range(num_layers)
        )
    if not isinstance(raw, list) or len(raw) != num_layers:
        raise fields.error("layers", raw, f"a list of {num_layers} objects")
    layers = []
    for index, item in enumerate(raw):
        if not isinstance(item, dict):
            raise fields.error(f"layers[{index}]", item, "an object")
        own = Fields(item, f"{fields.where}, layers[{index}]")
        layers.append(
            LayerConfig(
                own.count("sliding_window", low=0),
                own.count("num_experts", high=MAX_EXPERTS),
                own.count("experts_per_token", high=MAX_EXPERTS),
            )
        )
    return tuple(layers)


def _scaled_context(rope: RopeConfig) -> int:
    return min(int(rope.original_context * rope.factor), 1 << 31)


def to_openai(config: ModelConfig) -> dict[str, Any]:
    """Write the original layout's config.json."""
    rope = config.rope
    first = config.layers[0]
    window = max((layer.window for layer in config.layers), default=0)
    raw: dict[str, Any] = {
        "num_hidden_layers": config.num_layers,
        "num_experts": first.num_experts,
        "experts_per_token": first.experts_per_token,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "swiglu_limit": config.swiglu_limit,
        "head_dim": config.head_dim,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "sliding_window": window,
        "initial_context_length": rope.original_context,
        "rope_theta": rope.theta,
        "rope_scaling_factor": rope.factor,
        "rope_ntk_alpha": rope.beta_slow,
        "rope_ntk_beta": rope.beta_fast,
    }
    published = tuple(
        LayerConfig(0 if index % 2 else window, first.num_experts, first.experts_per_token)
        for index in range(config.num_layers)
    )
    if config.layers != published or not window:
        raw["layers"] = [
            {
                "sliding_window": layer.window,
                "num_experts": layer.num_experts,
                "experts_per_token": layer.experts_per_token,
            }
            for layer in config.layers
        ]
    if config.rms_norm_eps != 1e-5:
        raw["rms_norm_eps"] = config.rms_norm_eps
    if config.max_context != _scaled_context(rope):
        raw["max_position_embeddings"] = config.max_context
    if rope.truncate:
        raw["rope_truncate"] = True
    return raw
