"""Configuration: the model's architecture, the engine's settings, the user's config file.

The only module that reads environment variables.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from aperto.errors import ConfigError

Precision = Literal["q8", "exact"]
PRECISIONS: tuple[Precision, ...] = ("q8", "exact")


@dataclasses.dataclass(frozen=True, slots=True)
class LayerConfig:
    """What may differ from one transformer layer to the next."""

    window: int
    """Attention window in tokens, the token itself included; 0 means the whole context."""
    num_experts: int
    """Number of experts of the layer."""
    experts_per_token: int
    """How many experts each token is routed to."""


@dataclasses.dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding with YaRN scaling by parts (arXiv 2309.00071, section 3.2)."""

    theta: float = 150000.0
    """Base of the geometric frequency series."""
    factor: float = 32.0
    """Context extension factor; 1.0 turns YaRN off."""
    beta_fast: float = 32.0
    """Rotations over the original context above which a frequency is left alone (ntk_beta)."""
    beta_slow: float = 1.0
    """Rotations over the original context below which a frequency is fully interpolated (ntk_alpha)."""
    original_context: int = 4096
    """Context length in tokens the model was first trained on."""
    truncate: bool = False
    """Whether the ramp's ends are rounded to whole dimensions (gpt-oss: no)."""


@dataclasses.dataclass(frozen=True, slots=True)
class ModelConfig:
    """Architecture of a gpt-oss checkpoint."""

    vocab_size: int
    """Rows of the embedding and of the head."""
    hidden_size: int
    """Width of the residual stream."""
    intermediate_size: int
    """Width inside one expert."""
    head_dim: int
    """Width of one attention head."""
    num_attention_heads: int
    """Query heads."""
    num_key_value_heads: int
    """Key and value heads; divides num_attention_heads."""
    layers: tuple[LayerConfig, ...]
    """One entry a transformer layer, in order."""
    rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    """Rotary embedding settings."""
    max_context: int = 131072
    """Longest supported sequence in tokens (max_position_embeddings)."""
    swiglu_limit: float = 7.0
    """Clamp of the expert activation's inputs."""
    rms_norm_eps: float = 1e-5
    """Epsilon of every RMSNorm."""
    eos_token_ids: tuple[int, ...] = ()
    """Token ids that the checkpoint declares as ends of generation."""
    pad_token_id: int | None = None
    """Padding token id, where the checkpoint names one."""

    @property
    def num_layers(self) -> int:
        """Number of transformer layers."""
        return len(self.layers)

    @property
    def q_size(self) -> int:
        """Rows of the query projection."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of the key (and of the value) projection."""
        return self.num_key_value_heads * self.head_dim

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "head_dim",
            "num_attention_heads",
            "num_key_value_heads",
            "max_context",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
                raise ConfigError(f"{name} is {value!r}; expected a positive integer")
        if not self.layers:
            raise ConfigError("the model has no layers; expected at least one")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        for name in ("hidden_size", "intermediate_size"):
            if getattr(self, name) % 32:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; expected a multiple of 32, "
                    "the MXFP4 block length"
                )
        if self.head_dim % 16:
            raise ConfigError(f"head_dim is {self.head_dim}; expected a multiple of 16")
        for index, layer in enumerate(self.layers):
            if layer.window < 0:
                raise ConfigError(f"layer {index}: window is {layer.window}; expected >= 0")
            if not 1 <= layer.experts_per_token <= layer.num_experts:
                raise ConfigError(
                    f"layer {index}: experts_per_token is {layer.experts_per_token}; "
                    f"expected 1..{layer.num_experts}"
                )
