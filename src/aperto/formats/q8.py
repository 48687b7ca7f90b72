"""Q8_0, GGUF's 8-bit format: blocks of 32 values, one f16 scale and 32 int8 each (34 bytes)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from aperto.errors import TensorError

BLOCK = 32
BLOCK_BYTES = 34


def encode_q8_0(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Quantise [..., K] values to uint8 [..., K/32, 34], bit for bit as ggml's reference does.

    The scale is amax / 127 in float32. The quotients are rounded half away from zero against that
    float32 scale; only the stored scale is rounded to f16.
    Raises TensorError for K not a multiple of 32, and for values that are not finite or whose scale
    is beyond f16.
    """
    if values.shape[-1] % BLOCK:
        raise TensorError(
            f"Q8_0 needs rows of a multiple of {BLOCK} values; found {values.shape[-1]}"
        )
    blocks = np.ascontiguousarray(values, dtype=np.float32).reshape(
        *values.shape[:-1], values.shape[-1] // BLOCK, BLOCK
    )
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    if not (scale <= np.finfo(np.float16).max).all():
        raise TensorError(
            "found a block whose Q8_0 scale is not a finite f16 number; expected finite weights "
            f"below {127 * float(np.finfo(np.float16).max):.4g} in magnitude"
        )
    # A denormal scale has an infinite inverse in float32; ggml then stores garbage, we store zeros.
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(scale > 0, np.float32(1) / scale, np.float32(0))
    inverse[~np.isfinite(inverse)] = 0
    scaled = blocks * inverse
    magnitude = np.abs(scaled)
    floor = np.floor(magnitude)
    rounded = floor + (magnitude - floor >= np.float32(0.5))
    quants = np.copysign(rounded, scaled).astype(np.int8)
    with np.errstate(under="ignore"):
        half = scale.astype("<f2")
    return np.concatenate([half.view(np.uint8), quants.view(np.uint8)], axis=-1)


def decode_q8_0(blocks: NDArray[Any]) -> NDArray[np.float32]:
    """Return the exact values of uint8 [..., K/32, 34] as float32 [..., K]."""
    scale = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
    quants = blocks[..., 2:].view(np.int8).astype(np.float32)
    return (quants * scale).reshape(*blocks.shape[:-2], blocks.shape[-2] * BLOCK)
