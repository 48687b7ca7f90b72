"""A model with an adapter folded in, seen as one more source of tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aperto import native
from aperto.config import ModelConfig
from aperto.errors import TensorError
from aperto.formats import mxfp4
from aperto.formats.adapter import Adapter, Float32, LowRank, check_adapter, matrix_of
from aperto.formats.checkpoint import TensorSource, TokenizerSource
from aperto.formats.names import is_expert_weight
from aperto.formats.tensor import DType, Tensor, TensorInfo, float32_to_bf16, num_bytes


@dataclasses.dataclass(frozen=True, slots=True)
class MergeError:
    """How far the stored sum lies from the exact one."""

    of_change: float
    """Root mean square of the difference over that of the adapter's change."""
    of_values: float
    """The same over that of the values."""

    def __str__(self) -> str:
        return f"rounding is {self.of_change:.3g} of the change, {self.of_values:.3g} of the values"


class Merged:
    """base + scaling * b @ a for each change, rounded to the type in which the tensor is stored.

    What the adapter does not change is passed through untouched: of an expert tensor, the blocks
    of all other experts. Changed experts are quantised to MXFP4 again; Q8_0 becomes BF16.

    Args:
        base: the model; its expert matrices are MXFP4 (see `quantize_experts`).
        adapter: what to fold in. Raises AdapterError if it does not fit.
    """

    def __init__(self, base: TensorSource, adapter: Adapter) -> None:
        check_adapter(adapter, base.config)
        self._base = base
        self._adapter = adapter
        self._changes: dict[str, dict[int | None, LowRank]] = {}
        for key, delta in adapter.deltas.items():
            name, expert = matrix_of(key)
            self._changes.setdefault(name, {})[expert] = delta
        self.errors: dict[str, MergeError] = {}
        """What rounding took from each changed tensor; fills as tensors are read."""

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
        dtype = self._stored_as(name, info.dtype)
        if dtype is info.dtype:
            return info
        return dataclasses.replace(info, dtype=dtype, nbytes=num_bytes(dtype, info.shape))

    def _stored_as(self, name: str, dtype: DType) -> DType:
        if name in self._adapter.replaced:
            return DType.F32
        return DType.BF16 if name in self._changes and dtype is DType.Q8_0 else dtype

    def tensor(self, name: str) -> Tensor:
        """Read a tensor, changed where the adapter changes it.

        Raises TensorError where a sum is not finite or does not fit its type.
        """
        tensor = self._base.tensor(name)
        changes = self._changes.get(name)
        if name in self._adapter.replaced:
            return Tensor(name, DType.F32, tensor.shape, self._adapter.replaced[name])
        if changes is None:
            return tensor
        if is_expert_weight(name):
            return self._with_experts(tensor, changes)
        before = tensor.to_float32()
        exact = before + self._change(changes[None])
        dtype = self._stored_as(name, tensor.dtype)
        merged = Tensor(name, dtype, tensor.shape, rounded(exact, dtype, name))
        self._report(name, [(before, exact, merged.to_float32())])
        return merged

    def _change(self, delta: LowRank) -> Float32:
        return np.float32(self._adapter.scaling) * (delta.b @ delta.a)

    def _with_experts(self, tensor: Tensor, changes: Mapping[int | None, LowRank]) -> Tensor:
        assert tensor.scales is not None, "experts are MXFP4"
        blocks, scales = tensor.data.copy(), tensor.scales.copy()
        rows = []
        for expert, delta in changes.items():
            before = mxfp4.decode(tensor.data[expert], tensor.scales[expert])
            exact = before + self._change(delta)
            try:
                native.encode_mxfp4(exact, blocks[expert], scales[expert])
            except ValueError as problem:
                raise TensorError(f"{tensor.name}, expert {expert}: {problem}") from problem
            rows.append((before, exact, mxfp4.decode(blocks[expert], scales[expert])))
        self._report(tensor.name, rows)
        return Tensor(tensor.name, DType.MXFP4, tensor.shape, blocks, scales)

    def _report(self, name: str, rows: list[tuple[Float32, Float32, Float32]]) -> None:
        """rows: (before, exact sum, as stored) of each changed matrix."""
        noise = sum(_power(stored - exact) for _, exact, stored in rows)
        change = sum(_power(exact - before) for before, exact, _ in rows)
        values = sum(_power(exact) for _, exact, _ in rows)
        self.errors[name] = MergeError(_ratio(noise, change), _ratio(noise, values))


def _power(values: Float32) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _ratio(noise: float, signal: float) -> float:
    return math.sqrt(noise / signal) if signal else 0.0


def rounded(values: Float32, dtype: DType, name: str) -> NDArray[Any]:
    """float32 values in the type a dense tensor is stored in. Raises TensorError unless finite."""
    if dtype is DType.BF16:
        return float32_to_bf16(values)
    narrow = values.astype(np.float16 if dtype is DType.F16 else np.float32)
    if not np.isfinite(narrow).all():
        raise TensorError(f"{name}: the merged values are not finite in {dtype}; expected finite")
    return narrow
