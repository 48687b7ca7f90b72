"""A model whose weights were all trained, seen as one more source of tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from aperto.config import ModelConfig
from aperto.errors import TensorError
from aperto.formats import mxfp4
from aperto.formats.adapter import Float32
from aperto.formats.checkpoint import TensorSource, TokenizerSource
from aperto.formats.merged import rounded
from aperto.formats.tensor import DType, Tensor, TensorInfo, num_bytes


class Retrained:
    """New values in the types of a base model; Q8_0 becomes BF16, experts are rounded to MXFP4.

    Args:
        base: the model that training began at; its expert matrices are MXFP4.
        weights: given a canonical name, the values now, of the base's shape.
    """

    def __init__(self, base: TensorSource, weights: Callable[[str], Float32]) -> None:
        self._base, self._weights = base, weights

    @property
    def config(self) -> ModelConfig:
        """Architecture of the base."""
        return self._base.config

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """Generation defaults of the base."""
        return self._base.generation_config

    def names(self) -> tuple[str, ...]:
        """Canonical names of the base."""
        return self._base.names()

    def tokenizer_source(self) -> TokenizerSource:
        """Vocabulary of the base."""
        return self._base.tokenizer_source()

    def info(self, name: str) -> TensorInfo:
        """Describe a tensor as `tensor` will return it."""
        info = self._base.info(name)
        if info.dtype is not DType.Q8_0:
            return info
        nbytes = num_bytes(DType.BF16, info.shape)
        return dataclasses.replace(info, dtype=DType.BF16, nbytes=nbytes)

    def tensor(self, name: str) -> Tensor:
        """Round a tensor to its stored type. Raises TensorError where a value is not finite."""
        info, values = self.info(name), self._weights(name)
        if info.dtype is not DType.MXFP4:
            return Tensor(name, info.dtype, info.shape, rounded(values, info.dtype, name))
        try:
            return Tensor(name, info.dtype, info.shape, *mxfp4.encode(values))
        except ValueError as problem:
            raise TensorError(f"{name}: {problem}") from problem
