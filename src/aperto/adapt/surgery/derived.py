"""A model seen as it is, for others to change a part of; and the same weights under other settings.

`with_context` changes how far positions reach (YaRN): settings alone, every byte is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from aperto.config import ModelConfig
from aperto.errors import ConfigError
from aperto.formats.checkpoint import TensorSource, TokenizerSource
from aperto.formats.tensor import Tensor, TensorInfo


class Derived:
    """Everything of `base` passed through; a kind of change overrides what it changes.

    Args:
        base: the model to begin with.
        config: the settings of the result; None for those of the base.
    """

    def __init__(self, base: TensorSource, config: ModelConfig | None = None) -> None:
        self.base = base
        """The model that is changed."""
        self.config: ModelConfig = config or base.config
        """Architecture of the result."""

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """Generation defaults of the base."""
        return self.base.generation_config

    def names(self) -> tuple[str, ...]:
        """Canonical names of the result."""
        return self.base.names()

    def tokenizer_source(self) -> TokenizerSource:
        """Vocabulary of the result."""
        return self.base.tokenizer_source()

    def info(self, name: str) -> TensorInfo:
        """Describe a tensor of the result without reading it."""
        return self.base.info(name)

    def tensor(self, name: str) -> Tensor:
        """Read a tensor of the result."""
        return self.base.tensor(name)


def with_context(
    config: ModelConfig, tokens: int, *, factor: float | None = None, original: int | None = None
) -> ModelConfig:
    """Settings for sequences of up to `tokens`.

    A longer context stretches positions by tokens / original; a shorter one leaves them as they
    are, as the weights were trained so. `factor` (1: no stretching) and `original`, the context
    in tokens before any stretching, win over that.
    Raises ConfigError for numbers that make no sense.
    """
    rope = config.rope
    before = original or (rope.original_context if rope.factor > 1 else config.max_context)
    if tokens < 1 or before < 1:
        raise ConfigError(f"context is {tokens} of {before} tokens; expected 1 or more of each")
    if factor is None:
        stretched = tokens > config.max_context or original is not None
        factor = max(tokens / before, 1.0) if stretched else rope.factor
    if factor < 1:
        raise ConfigError(f"factor is {factor}; expected 1, for no stretching, or more")
    changed = dataclasses.replace(rope, factor=float(factor), original_context=before)
    return dataclasses.replace(config, max_context=tokens, rope=changed)
