"""Tensors as they lie in a checkpoint: dtypes, quantised blocks, and their float32 values."""

from __future__ import annotations

import dataclasses
import enum
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aperto.errors import TensorError
from aperto.formats import mxfp4, q8

Array = NDArray[Any]

BLOCK = 32
"""Values per MXFP4 and per Q8_0 block."""


class DType(enum.StrEnum):
    """Storage types of the canonical tensors."""

    BF16 = "BF16"
    F16 = "F16"
    F32 = "F32"
    Q8_0 = "Q8_0"
    MXFP4 = "MXFP4"


_BYTES_PER_BLOCK = {
    DType.BF16: 2 * BLOCK,
    DType.F16: 2 * BLOCK,
    DType.F32: 4 * BLOCK,
    DType.Q8_0: 34,
    DType.MXFP4: 17,
}

PLAIN_TYPES: dict[DType, np.dtype[Any]] = {
    DType.BF16: np.dtype("<u2"),
    DType.F16: np.dtype("<f2"),
    DType.F32: np.dtype("<f4"),
}
"""Types with one stored number an element; BF16 as its 16 raw bits."""


def num_bytes(dtype: DType, shape: tuple[int, ...]) -> int:
    """Bytes that a tensor of this type and shape takes, its scales included."""
    return math.prod(shape) * _BYTES_PER_BLOCK[dtype] // BLOCK


def bf16_to_float32(bits: Array) -> NDArray[np.float32]:
    """Widen raw BF16 bits, uint16 of any shape, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float32_to_bf16(values: Array) -> NDArray[np.uint16]:
    """Round float32 values of any shape to BF16 bits, to nearest, ties to even.

    Raises TensorError for NaN and infinities, and for values that would round to infinity.
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    result = rounded.astype(np.uint16)
    if ((result & np.uint16(0x7F80)) == 0x7F80).any() or not np.isfinite(values).all():
        raise TensorError(
            "found values that are not finite, or too large for BF16; expected finite weights; "
            "the tensor cannot be stored as BF16"
        )
    return result


@dataclasses.dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a tensor without touching its data."""

    name: str
    """Canonical name."""
    dtype: DType
    """Type in which `Checkpoint.tensor` returns it."""
    shape: tuple[int, ...]
    """Logical shape in elements."""
    nbytes: int
    """Bytes of the tensor in this type."""
    file: Path | None
    """File that holds it (the first one, where several do); None for computed tensors."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """One canonical tensor; `data` may be a read-only view into a mapped file."""

    name: str
    """Canonical name."""
    dtype: DType
    """Storage type of `data`."""
    shape: tuple[int, ...]
    """Logical shape in elements."""
    data: Array
    """BF16: uint16 bits [shape]; F16, F32: [shape]; Q8_0: uint8 [..., K/32, 34] (f16 scale, then 32
    int8); MXFP4: uint8 [..., K/32, 16], byte j = elements 2j (low nibble) and 2j+1 (high)."""
    scales: Array | None = None
    """MXFP4 only: uint8 E8M0 exponents [..., K/32]."""

    @property
    def nbytes(self) -> int:
        """Bytes of data and scales."""
        return num_bytes(self.dtype, self.shape)

    def to_float32(self) -> NDArray[np.float32]:
        """Return the exact values, [shape]."""
        match self.dtype:
            case DType.BF16:
                return bf16_to_float32(self.data)
            case DType.Q8_0:
                return q8.decode_q8_0(self.data).reshape(self.shape)
            case DType.MXFP4:
                assert self.scales is not None
                return mxfp4.decode(self.data, self.scales)
            case _:
                return self.data.astype(np.float32)
