"""Random values of every size, and packed weight matrices beside their exact values."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import strategies as st

from aperto import _native
from aperto.formats import mxfp4, q8

KINDS = ("q8", "mxfp4_q8", "mxfp4", "bf16", "f32")
"""Weights: Q8_0 and MXFP4 against int8 activations; MXFP4, BF16 and F32 against floats."""

value_kinds = st.sampled_from(["normal", "sizes", "zeros", "denormals", "halves", "mixed"])


def floats(rng: np.random.Generator, kind: str, *shape: int) -> np.ndarray:
    """Finite float32 values of one kind; sizes stay where a square does not overflow."""
    x = rng.normal(size=shape)
    match kind:
        case "sizes":
            x *= 10.0 ** rng.uniform(-18, 15, shape)
        case "zeros":
            x *= rng.random(shape) < 0.1
        case "denormals":
            x *= 2.0**-130
        case "halves":
            x = np.round(x * 100) / 2
        case "mixed":
            picks = rng.integers(0, 5, shape)
            x *= np.array([1.0, 0.0, 1e-42, 1e9, -1e-9])[picks]
    return x.astype(np.float32)


def activations(rng: np.random.Generator, kind: str, rows: int, k: int) -> np.ndarray:
    """Rows of values, among them blocks that quantise to +-127 throughout and blocks of zeros."""
    a = floats(rng, kind, rows, k)
    blocks = a.reshape(-1, 32)
    flat = rng.random(len(blocks))
    ends = flat < 0.15
    blocks[ends] = rng.choice(np.float32([-3, 3]), (int(ends.sum()), 32))
    blocks[flat > 0.9] = 0
    return a


@dataclasses.dataclass(frozen=True)
class Product:
    """A weight matrix [rows, k] in tiles."""

    kind: str
    rows: int
    k: int
    tiles: np.ndarray
    source: Any

    @property
    def quantized(self) -> bool:
        return self.kind in ("q8", "mxfp4_q8")

    def arguments(self, a: np.ndarray, rows: np.ndarray) -> tuple[Any, ...]:
        """What kernels.matmul wants after the name of the instruction set."""
        tiles = self.kind.removesuffix("_q8") + "_tiles"
        return tiles, self.tiles, self.rows, a, rows, self.quantized

    def dequantized(self) -> np.ndarray:
        """The weights in float64, [rows, k]; MXFP4 scales of 0 and 1 count as zeros."""
        match self.kind:
            case "q8":
                return q8.decode_q8_0(self.source).astype(np.float64)
            case "bf16":
                bits = self.source.astype(np.uint32) << 16
                return bits.view(np.float32).astype(np.float64)
            case "f32":
                return self.source.astype(np.float64)
        blocks, scales = self.source
        values = mxfp4.decode(blocks, np.full_like(scales, 127)).astype(np.float64)
        factor = np.where(scales < 2, 0.0, np.exp2(scales.astype(np.float64) - 127))
        return values * np.repeat(factor, 32, axis=-1)

    def largest_scale(self) -> np.ndarray:
        """Largest power of two that multiplies a block of each row, [rows]."""
        if not self.kind.startswith("mxfp4"):
            return np.ones(self.rows)
        return np.exp2(self.source[1].astype(np.float64).max(axis=1) - 127)

    @classmethod
    def random(cls, rng: np.random.Generator, kind: str, rows: int, k: int, values: str) -> Product:
        """Codes and bytes of every kind; MXFP4 scales near one, or at the ends of their range."""
        if kind == "q8":
            source = rng.integers(0, 256, (rows, k // 32, 34), dtype=np.uint8)
            scales = floats(rng, "normal" if values == "sizes" else values, rows, k // 32)
            half = np.clip(scales, -6e4, 6e4).astype("<f2")
            source[..., :2] = half[..., None].view(np.uint8)
        elif kind in ("bf16", "f32"):
            source = floats(rng, values, rows, k)
            if kind == "bf16":
                source = (source.view(np.uint32) >> 16).astype(np.uint16)
        else:
            blocks = rng.integers(0, 256, (rows, k // 32, 16), dtype=np.uint8)
            near = rng.integers(118, 130, (rows, k // 32)).astype(np.uint8)
            ends = rng.choice(np.array([0, 1, 2, 3, 127, 253, 254], np.uint8), near.shape)
            source = blocks, near if values in ("normal", "zeros") else ends
        return cls.pack(kind, rows, k, source)

    @classmethod
    def extreme(cls, kind: str, rows: int, k: int, sign: int) -> Product:
        """Every weight at one end of its range."""
        if kind == "q8":
            source: Any = np.zeros((rows, k // 32, 34), np.uint8)
            source[..., :2] = np.array([1], "<f2").view(np.uint8)
            source[..., 2:] = np.array([127 if sign > 0 else -128], np.int8).view(np.uint8)
        elif kind == "bf16":
            source = np.full((rows, k), 0x4300 if sign > 0 else 0xC300, np.uint16)
        elif kind == "f32":
            source = np.full((rows, k), 128 * sign, np.float32)
        else:
            blocks = np.full((rows, k // 32, 16), 0x77 if sign > 0 else 0xFF, np.uint8)
            source = blocks, np.full((rows, k // 32), 127, np.uint8)
        return cls.pack(kind, rows, k, source)

    @classmethod
    def pack(cls, kind: str, rows: int, k: int, source: Any, interleaved: bool = False) -> Product:
        """Tiles of Q8_0 blocks, BF16 bits, floats, or (MXFP4 blocks, scales)."""
        name = kind.removesuffix("_q8")
        tiles = np.zeros(_native.tiles_bytes(f"{name}_tiles", rows, k), np.uint8)
        if name == "mxfp4":
            _native.pack_mxfp4(*source, interleaved, tiles)
        else:
            getattr(_native, f"pack_{name}")(source, tiles)
        return cls(kind, rows, k, tiles, source)
