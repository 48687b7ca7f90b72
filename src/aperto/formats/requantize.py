"""Plain expert weights, as fine-tunes are stored, seen as the MXFP4 that the model runs on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aperto import native
from aperto.config import ModelConfig
from aperto.errors import TensorError
from aperto.formats import mxfp4
from aperto.formats.checkpoint import TensorSource, TokenizerSource
from aperto.formats.lineage import Lineage
from aperto.formats.mxfp4 import QuantizationError
from aperto.formats.names import is_expert_weight
from aperto.formats.tensor import BLOCK, DType, Tensor, TensorInfo, num_bytes

_CHUNK_ROWS = 1024  # quantised by one thread at a time: bounds what is widened to float32


class QuantizedExperts:
    """A source whose expert matrices are MXFP4, quantised when read; the rest is passed through.

    `errors` holds, by canonical name, how far each quantised tensor lies from the original; it
    fills as tensors are read.
    """

    def __init__(self, source: TensorSource) -> None:
        self.source = source
        self.errors: dict[str, QuantizationError] = {}

    @property
    def config(self) -> ModelConfig:
        """Architecture of the source."""
        return self.source.config

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """Generation defaults of the source."""
        return self.source.generation_config

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes of the source, then one line on the error so far."""
        own: tuple[str, ...] = tuple(getattr(self.source, "notes", ()))
        if not self.errors:
            return own
        worst = max(self.errors.values(), key=lambda error: error.relative_rms)
        return (*own, f"{len(self.errors)} expert tensors quantised to MXFP4; worst: {worst}")

    @property
    def lineage(self) -> Lineage | None:
        """Lineage of the source."""
        return getattr(self.source, "lineage", None)

    def names(self) -> tuple[str, ...]:
        """Canonical names of the source."""
        return self.source.names()

    def tokenizer_source(self) -> TokenizerSource:
        """Vocabulary of the source."""
        return self.source.tokenizer_source()

    def info(self, name: str) -> TensorInfo:
        """Describe a tensor as `tensor` will return it."""
        info = self.source.info(name)
        if not _is_plain_expert(info):
            return info
        size = num_bytes(DType.MXFP4, info.shape)
        return TensorInfo(name, DType.MXFP4, info.shape, size, info.file)

    def tensor(self, name: str) -> Tensor:
        """Read a tensor; plain experts are quantised, on all CPUs.

        Raises TensorError for weights that are not finite.
        """
        tensor = self.source.tensor(name)
        if not _is_plain_expert(self.source.info(name)):
            return tensor
        return self._quantize(tensor)

    def _quantize(self, tensor: Tensor) -> Tensor:
        num_experts, rows, width = tensor.shape
        blocks = np.empty((num_experts, rows, width // BLOCK, mxfp4.BLOCK_BYTES), np.uint8)
        scales = np.empty((num_experts, rows, width // BLOCK), np.uint8)

        def encode(part: tuple[int, slice]) -> tuple[float, float, float]:
            return _encode(tensor, part, blocks[part], scales[part])

        parts = [
            (expert, slice(begin, begin + _CHUNK_ROWS))
            for expert in range(num_experts)
            for begin in range(0, rows, _CHUNK_ROWS)
        ]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            noise, power, largest = zip(*pool.map(encode, parts), strict=True)
        relative = (sum(noise) / sum(power)) ** 0.5 if sum(power) else 0.0
        self.errors[tensor.name] = QuantizationError(relative, max(largest))
        return Tensor(tensor.name, DType.MXFP4, tensor.shape, blocks, scales)


def _encode(
    tensor: Tensor,
    part: tuple[int, slice],
    blocks: NDArray[np.uint8],
    scales: NDArray[np.uint8],
) -> tuple[float, float, float]:
    """Fill blocks and scales of some rows of one expert; return the sums of their error."""
    data = tensor.data[part]
    try:
        if tensor.dtype is DType.BF16:
            return native.encode_mxfp4_bf16(data, blocks, scales)
        if tensor.dtype is not DType.F32:
            shape = (len(data), tensor.shape[-1])
            data = dataclasses.replace(tensor, data=data, shape=shape).to_float32()
        return native.encode_mxfp4(data, blocks, scales)
    except ValueError as problem:
        raise TensorError(f"{tensor.name}, expert {part[0]}: {problem}") from problem


def quantize_experts(source: TensorSource) -> TensorSource:
    """Return the source itself if its experts are MXFP4 already, else a `QuantizedExperts`."""
    if any(_is_plain_expert(source.info(name)) for name in source.names()):
        return QuantizedExperts(source)
    return source


def _is_plain_expert(info: TensorInfo) -> bool:
    return is_expert_weight(info.name) and info.dtype is not DType.MXFP4
