"""MXFP4 codec: blocks of 32 four-bit values that share one power-of-two scale.

A value is one of {0, 0.5, 1, 1.5, 2, 3, 4, 6}, signed, times 2^(scale - 127). Byte j of a block
holds element 2j in its low nibble and 2j+1 in its high one. docs/mxfp4.md states the rules.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aperto.errors import TensorError

BLOCK = 32
BLOCK_BYTES = 16
MAX_SCALE = 252
"""Largest scale whose values all fit float32, and the largest that `encode` makes; 255 is NaN."""
GRID = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)
"""Magnitudes of the codes 0 to 7; codes 8 to 15 are the same, negated."""

_VALUES = np.concatenate([GRID, -GRID])
_PAIRS = np.stack(  # byte -> (low nibble's value, high nibble's value)
    [_VALUES[np.arange(256) & 15], _VALUES[np.arange(256) >> 4]], axis=-1
)
_SCALES = np.ldexp(1.0, np.arange(MAX_SCALE + 1) - 127).astype(np.float32)
_CHUNK = 1 << 17  # values encoded at a time: the temporaries stay in the CPU's cache


@dataclasses.dataclass(frozen=True, slots=True)
class QuantizationError:
    """How far quantised values lie from the originals."""

    relative_rms: float
    """Root mean square of the difference over that of the values; 0 where all are zero."""
    max_abs: float
    """Largest absolute difference."""

    def __str__(self) -> str:
        return f"relative RMS error {self.relative_rms:.4g}, largest error {self.max_abs:.4g}"


def check_scales(scales: NDArray[Any], name: str = "tensor") -> None:
    """Raise TensorError if any E8M0 scale is 255, which means NaN, or 253 or 254.

    Under these two the codes of 4 and 6 reach past float32, so no finite weights were stored so.
    """
    if scales.size and int(scales.max()) > MAX_SCALE:
        where = tuple(int(i) for i in np.argwhere(scales > MAX_SCALE)[0])
        raise TensorError(
            f"{name}: the MXFP4 scale of block {where} is {int(scales[where])}; expected "
            f"0..{MAX_SCALE}: larger ones make values beyond float32, and 255 stands for NaN; the "
            "file is damaged or was made from weights that are not finite"
        )


def decode(blocks: NDArray[Any], scales: NDArray[Any]) -> NDArray[np.float32]:
    """Return the exact values of uint8 [..., K/32, 16] and scales [..., K/32] as float32 [..., K].

    Raises TensorError for shapes that do not belong together and for scales above 252.
    """
    if blocks.shape[-1:] != (BLOCK_BYTES,) or blocks.shape[:-1] != scales.shape:
        raise TensorError(
            f"MXFP4 blocks {blocks.shape} and scales {scales.shape} do not belong together; "
            f"expected [..., {BLOCK_BYTES}] and the same without the last axis"
        )
    check_scales(scales)
    values: NDArray[np.float32] = _PAIRS[blocks].reshape(*scales.shape, BLOCK)
    # The product may be a float32 denormal and is still exact.
    values *= _SCALES[scales][..., None]
    return values.reshape(*scales.shape[:-1], scales.shape[-1] * BLOCK)


def encode(values: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Quantise [..., K] values to blocks uint8 [..., K/32, 16] and scales uint8 [..., K/32].

    The scale of a block is 2^(floor(log2(amax)) - 2), so that the largest magnitude falls into
    [4, 8) units; each value goes to the nearest grid point, ties to the even code, above 6 to 6.
    A block of zeros has scale code 0. The sign of a value that rounds to zero is kept.
    Raises TensorError for K not a multiple of 32 and for NaN or infinite values.
    """
    if not values.shape or values.shape[-1] % BLOCK:
        raise TensorError(
            f"MXFP4 needs rows of a multiple of {BLOCK} values; found shape {values.shape}"
        )
    num_blocks = math.prod(values.shape) // BLOCK
    flat = values.reshape(num_blocks, BLOCK)
    blocks = np.empty((num_blocks, BLOCK_BYTES), dtype=np.uint8)
    scales = np.empty(num_blocks, dtype=np.uint8)
    step = _CHUNK // BLOCK
    for start in range(0, num_blocks, step):
        part = slice(start, start + step)
        blocks[part], scales[part] = _encode_blocks(flat[part].astype(np.float32))
    shape = (*values.shape[:-1], values.shape[-1] // BLOCK)
    return blocks.reshape(*shape, BLOCK_BYTES), scales.reshape(shape)


def _encode_blocks(values: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Quantise float32 [n, 32] to ([n, 16], [n])."""
    magnitude = np.abs(values)
    largest = magnitude.max(axis=-1)
    if not np.isfinite(largest).all():
        raise TensorError(
            "found NaN or infinite values; expected finite weights; MXFP4 cannot hold them"
        )
    # frexp gives amax = m * 2^e with m in [0.5, 1), so floor(log2(amax)) is e - 1, exactly.
    exponent = np.where(largest > 0, np.frexp(largest)[1] - 3, -127)
    exponent = np.maximum(exponent, -127)
    units = magnitude * np.ldexp(np.float32(1), -exponent)[:, None]
    codes = _nearest_codes(units)
    codes |= np.signbit(values).astype(np.uint8) << np.uint8(3)
    return codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4)), (exponent + 127).astype(np.uint8)


def _nearest_codes(units: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Map magnitudes in [0, 8) to codes 0..7, nearest first, ties to even, above 6 to 7.

    From 1 on the grid is float32 with one mantissa bit, so rounding the bits there and dropping the
    rest gives 254 for 1.0 (code 2), 255 for 1.5, and so on; below 1 the grid is even steps of 0.5.
    """
    bits = units.view(np.uint32)
    kept = (bits + np.uint32(0x1FFFFF) + ((bits >> np.uint32(22)) & np.uint32(1))) >> np.uint32(22)
    normal = np.minimum(kept, np.uint32(259)).astype(np.int32) - 252
    small = np.rint(units + units).astype(np.int32)
    codes: NDArray[np.int32] = np.where(units < 1, small, normal)
    return codes.astype(np.uint8)


def error(values: NDArray[Any], quantized: NDArray[Any]) -> QuantizationError:
    """Compare values with what their quantised form decodes to (same shapes)."""
    difference = quantized.astype(np.float64) - values
    power = float(np.square(values, dtype=np.float64).mean()) if values.size else 0.0
    noise = float(np.square(difference).mean()) if values.size else 0.0
    return QuantizationError(
        relative_rms=math.sqrt(noise / power) if power else 0.0,
        max_abs=float(np.abs(difference).max()) if values.size else 0.0,
    )
