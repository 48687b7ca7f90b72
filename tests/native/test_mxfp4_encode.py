"""The native MXFP4 encoder: the bytes of the NumPy codec, whatever the values and their order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aperto import _native
from aperto.formats import mxfp4

property_test = settings(max_examples=100, deadline=None)
seeds = st.integers(0, 2**32)
shapes = st.tuples(st.sampled_from([1, 2, 31, 32, 33, 70]), st.sampled_from([32, 64, 96]))
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
ORDERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rows": lambda a: np.ascontiguousarray(a),
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "every other row": lambda a: np.repeat(a, 2, axis=0)[1::2],
    "every other column": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "backwards": lambda a: np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1],
}
orders = st.sampled_from(sorted(ORDERS))


def encode(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """Blocks, scales and the sums of the error, from floats or bfloat16 bits."""
    rows, width = values.shape
    blocks = np.full((rows, width // 32, 16), 0xAA, np.uint8)
    scales = np.full((rows, width // 32), 0xAA, np.uint8)
    native = _native.encode_mxfp4 if values.dtype == np.float32 else _native.encode_mxfp4_bf16
    return blocks, scales, native(values, blocks, scales)


def assert_same_bytes(values: np.ndarray, stored: np.ndarray) -> None:
    blocks, scales, _ = encode(stored)
    expected = mxfp4.encode(values)
    np.testing.assert_array_equal(scales, expected[1])
    np.testing.assert_array_equal(blocks, expected[0])


def widen(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


@property_test
@given(hnp.arrays(np.float32, st.sampled_from([(1, 32), (3, 64), (33, 32)]), elements=finite))
def test_same_bytes_on_any_finite_floats(values: np.ndarray) -> None:
    """Among them both zeros, denormals and the largest floats."""
    assert_same_bytes(values, values)


@property_test
@given(seeds, shapes, orders, st.booleans())
def test_same_bytes_on_every_exponent_in_any_order(
    seed: int, shape: tuple[int, int], order: str, bf16: bool
) -> None:
    """Random bit patterns; half the blocks within a few powers of two, as weights are."""
    rng = np.random.default_rng(seed)
    exponents = rng.integers(0, 255, (shape[0], shape[1] // 32, 1))
    narrow = np.clip(exponents - rng.integers(0, 6, (*exponents.shape[:2], 32)), 0, 254)
    wide = rng.integers(0, 255, narrow.shape)
    chosen = np.where(rng.integers(0, 2, exponents.shape), narrow, wide).reshape(shape)
    bits = rng.integers(0, 2, shape) << 31 | chosen << 23 | rng.integers(0, 1 << 23, shape)
    stored = (bits >> 16).astype(np.uint16) if bf16 else bits.astype(np.uint32).view(np.float32)
    assert_same_bytes(widen(stored) if bf16 else stored, ORDERS[order](stored))


@property_test
@given(seeds, st.integers(-149, 125))
def test_same_bytes_on_ties_and_next_to_them(seed: int, exponent: int) -> None:
    """Multiples of an eighth of a unit hold every tie; the neighbours must fall to their side."""
    rng = np.random.default_rng(seed)
    eighths = rng.integers(-63, 64, (8, 32)).astype(np.float64)
    values = np.ldexp(eighths, exponent - 3).astype(np.float32)
    toward = rng.choice(np.float32([-np.inf, 0, np.inf]), values.shape)
    values = np.where(rng.integers(0, 2, values.shape), np.nextafter(values, toward), values)
    values = np.where(np.isfinite(values), values, 0).astype(np.float32)
    assert_same_bytes(values, values)


def test_every_bfloat16_against_every_scale_it_can_meet() -> None:
    """One block a scale: its largest value, and 31 of the patterns up to it."""
    patterns = np.arange(0x7F80, dtype=np.uint16)
    rng = np.random.default_rng(0)
    for largest in range(0x0080, 0x7F80, 0x0080):
        inside = rng.choice(patterns[max(0, largest - 0x500) : largest + 0x7F], (16, 31))
        signs = rng.integers(0, 2, inside.shape).astype(np.uint16) << np.uint16(15)
        bits = np.concatenate([np.full((16, 1), largest + 0x7F, np.uint16), inside | signs], axis=1)
        assert_same_bytes(widen(bits), bits)


@property_test
@given(seeds, shapes, orders)
def test_sums_of_the_error(seed: int, shape: tuple[int, int], order: str) -> None:
    values = np.random.default_rng(seed).normal(0, 0.05, shape).astype(np.float32)
    blocks, scales, (noise, power, max_abs) = encode(ORDERS[order](values))
    difference = mxfp4.decode(blocks, scales).astype(np.float64) - values
    # In float32: the difference (half an ulp, twice in its square), the square, five levels of
    # sums: 8 roundings of 2^-24. The rest is double.
    assert noise == pytest.approx((difference**2).sum(), rel=8 * 2.0**-24)
    assert power == pytest.approx((values.astype(np.float64) ** 2).sum(), rel=8 * 2.0**-24)
    assert max_abs == pytest.approx(np.abs(difference).max(), rel=2.0**-24)


def test_zeros_have_scale_and_error_zero() -> None:
    values = np.zeros((2, 64), np.float32)
    values[1] = -0.0
    blocks, scales, error = encode(values)
    assert not scales.any() and not blocks[0].any()
    assert (blocks[1] == 0x88).all()  # signs are kept
    assert error == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7F81, 0xFFC0])
@pytest.mark.parametrize("where", [(0, 0), (33, 40), (69, 63)])
def test_values_that_are_not_finite_are_refused(bits: int, where: tuple[int, int]) -> None:
    stored = np.zeros((70, 64), np.uint16)
    stored[where] = bits
    for values in (stored, ORDERS["transposed"](stored), widen(stored)):
        with pytest.raises(ValueError, match="finite"):
            encode(values)


def test_shapes_that_do_not_fit_are_refused() -> None:
    values = np.zeros((4, 64), np.float32)
    blocks, scales = np.zeros((4, 2, 16), np.uint8), np.zeros((4, 2), np.uint8)
    with pytest.raises(ValueError, match="multiple of 32"):
        _native.encode_mxfp4(values[:, :40], blocks, scales)
    with pytest.raises(ValueError, match="scales is"):
        _native.encode_mxfp4(values, blocks, scales[:3].copy())
    with pytest.raises(ValueError, match="blocks is"):
        _native.encode_mxfp4(values, blocks[:, :1].copy(), scales)
    with pytest.raises(TypeError):  # a converted copy of the target would be filled and lost
        _native.encode_mxfp4(values, blocks.astype(np.int32), scales)
