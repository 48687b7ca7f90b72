"""The native decoder of MXFP4 against the plain one, bit for bit in both types."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aperto import native
from aperto._native import kernels
from aperto.formats import mxfp4
from aperto.formats.tensor import bf16_to_float32


def decoded(blocks: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shape = (blocks.shape[0], blocks.shape[1] * 32)
    wide, narrow = np.empty(shape, np.float32), np.empty(shape, np.uint16)
    native.decode_mxfp4(blocks, scales, wide)
    native.decode_mxfp4_bf16(blocks, scales, narrow)
    return wide, narrow


@given(seed=st.integers(0, 2**32), rows=st.integers(0, 5), blocks=st.integers(1, 6))
def test_decoders_agree(seed: int, rows: int, blocks: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (rows, blocks, 16), dtype=np.uint8)
    scales = rng.integers(0, mxfp4.MAX_SCALE + 1, (rows, blocks), dtype=np.uint8)
    wide, narrow = decoded(codes, scales)
    expected = mxfp4.decode(codes, scales)
    np.testing.assert_array_equal(wide.view(np.uint32), expected.view(np.uint32))
    np.testing.assert_array_equal(bf16_to_float32(narrow), expected)


@pytest.mark.parametrize("isa", native.isa_names())
def test_every_instruction_set_looks_up_the_same(isa: str) -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    for scale in range(mxfp4.MAX_SCALE + 1):
        scales = np.full((1, 16), scale, np.uint8)
        narrow = np.empty((1, 512), np.uint16)
        kernels.decode_mxfp4_bf16(isa, codes, scales, narrow)
        expected = mxfp4.decode(codes, scales).view(np.uint32) >> 16
        np.testing.assert_array_equal(narrow, expected)


def test_every_code_under_every_scale() -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    for scale in range(mxfp4.MAX_SCALE + 1):
        scales = np.full((1, 16), scale, np.uint8)
        wide, narrow = decoded(codes, scales)
        np.testing.assert_array_equal(wide, mxfp4.decode(codes, scales))
        np.testing.assert_array_equal(bf16_to_float32(narrow), wide)


def test_shapes_are_checked() -> None:
    blocks, scales = np.zeros((2, 3, 16), np.uint8), np.zeros((2, 3), np.uint8)
    with pytest.raises(ValueError, match="values is"):
        native.decode_mxfp4(blocks, scales, np.empty((2, 64), np.float32))
    with pytest.raises(ValueError, match="scales is"):
        native.decode_mxfp4(blocks, scales[:, :2], np.empty((2, 96), np.float32))
