"""The MXFP4 codec against its definition, and against the gguf package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aperto.errors import TensorError
from aperto.formats import mxfp4
from aperto.formats.ggufmodel import from_gguf_nibbles, to_gguf_nibbles

VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
rows = hnp.arrays(np.float32, st.sampled_from([(32,), (2, 64), (3, 1, 32)]), elements=finite)
blocks = st.tuples(
    hnp.arrays(np.uint8, (4, 16)), hnp.arrays(np.uint8, (4,), elements=st.integers(0, 252))
)


def plain_decode(data: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """One value at a time, in double precision."""
    out = []
    for block, scale in zip(data.reshape(-1, 16), scales.ravel(), strict=True):
        for byte in block:
            out += [
                VALUES[byte & 15] * 2.0 ** (int(scale) - 127),
                VALUES[byte >> 4] * 2.0 ** (int(scale) - 127),
            ]
    return np.array(out)


@given(blocks)
def test_decode_is_the_definition(pair: tuple[np.ndarray, np.ndarray]) -> None:
    data, scales = pair[0][:, None, :], pair[1][:, None]
    np.testing.assert_array_equal(mxfp4.decode(data, scales).ravel(), plain_decode(data, scales))


@given(rows)
def test_encoding_what_encode_made_changes_nothing(values: np.ndarray) -> None:
    data, scales = mxfp4.encode(values)
    again = mxfp4.encode(mxfp4.decode(data, scales))
    np.testing.assert_array_equal(again[0], data)
    np.testing.assert_array_equal(again[1], scales)


@given(rows)
def test_error_is_bounded_by_the_grid(values: np.ndarray) -> None:
    """In units of the scale: half the gap to the next grid point, or the excess over 6."""
    data, scales = mxfp4.encode(values)
    unit = np.ldexp(1.0, scales.astype(int) - 127)[..., None]
    exact = values.astype(np.float64).reshape(*scales.shape, 32) / unit
    decoded = mxfp4.decode(data, scales).astype(np.float64).reshape(*scales.shape, 32) / unit
    size = np.abs(exact)
    half_gap = np.select([size <= 2, size <= 4, size <= 6], [0.25, 0.5, 1.0], size - 6)
    assert (np.abs(exact - decoded) <= half_gap).all()
    assert size.max() < 8


@given(rows)
def test_the_largest_magnitude_lies_in_four_to_eight_units(values: np.ndarray) -> None:
    _, scales = mxfp4.encode(values)
    largest = np.abs(values).reshape(*scales.shape, 32).max(axis=-1).astype(np.float64)
    units = largest / np.ldexp(1.0, scales.astype(int) - 127)
    assert ((units >= 4) | (scales == 0)).all()


def test_ties_go_to_the_even_code() -> None:
    values = np.zeros(32, np.float32)
    values[:9] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.75, 4.0]
    decoded = mxfp4.decode(*mxfp4.encode(values))
    assert decoded[:9].tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, -1.0, 4.0]


def test_values_above_six_units_saturate() -> None:
    values = np.full(32, 7.9, np.float32)
    assert set(mxfp4.decode(*mxfp4.encode(values)).tolist()) == {6.0}


def test_zeros_and_denormals() -> None:
    data, scales = mxfp4.encode(np.zeros((2, 64), np.float32))
    assert not data.any() and not scales.any()
    tiny = np.full(32, 2.0**-149, np.float32)
    np.testing.assert_array_equal(mxfp4.decode(*mxfp4.encode(tiny)), np.zeros(32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    values = np.zeros(64, np.float32)
    values[40] = bad
    with pytest.raises(TensorError, match="finite"):
        mxfp4.encode(values)


def test_bad_shapes_and_scales_are_refused() -> None:
    with pytest.raises(TensorError, match="multiple of 32"):
        mxfp4.encode(np.zeros((4, 33), np.float32))
    with pytest.raises(TensorError, match="do not belong together"):
        mxfp4.decode(np.zeros((2, 3, 16), np.uint8), np.zeros((2, 2), np.uint8))


@pytest.mark.parametrize("scale", [253, 254, 255])
def test_scales_that_no_finite_float32_weight_has_are_refused(scale: int) -> None:
    """6 * 2^(253 - 127) is beyond float32, and 255 is NaN."""
    scales = np.zeros((2, 3), np.uint8)
    scales[1, 2] = scale
    with pytest.raises(TensorError, match=rf"block \(1, 2\) is {scale}; expected 0\.\.252"):
        mxfp4.decode(np.zeros((2, 3, 16), np.uint8), scales)


def test_the_largest_scale_decodes_to_finite_values_and_is_the_largest_encoded() -> None:
    codes = np.full((1, 16), 0x77, np.uint8)
    values = mxfp4.decode(codes, np.array([mxfp4.MAX_SCALE], np.uint8))
    assert values.tolist() == [6 * 2.0**125] * 32
    largest = np.full(32, np.finfo(np.float32).max)
    assert mxfp4.encode(largest)[1].tolist() == [mxfp4.MAX_SCALE]


def test_the_gguf_package_decodes_the_same_values() -> None:
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (8, 4, 16), dtype=np.uint8)
    scales = rng.integers(100, 140, (8, 4)).astype(np.uint8)
    stored = np.concatenate([scales[..., None], to_gguf_nibbles(data)], axis=-1).reshape(8, 68)
    theirs = gguf.dequantize(stored, gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(theirs, mxfp4.decode(data, scales))


def test_the_scale_rule_is_that_of_the_gguf_package() -> None:
    values = np.random.default_rng(1).normal(0, 0.05, (16, 128)).astype(np.float32)
    theirs = gguf.quantize(values, gguf.GGMLQuantizationType.MXFP4).reshape(16, 4, 17)
    data, scales = mxfp4.encode(values)
    np.testing.assert_array_equal(theirs[..., 0], scales)
    # No random value is a tie; the signs of zeros differ, which the values do not show.
    decoded = mxfp4.decode(from_gguf_nibbles(theirs[..., 1:]), theirs[..., 0])
    np.testing.assert_array_equal(decoded, mxfp4.decode(data, scales))


@given(hnp.arrays(np.uint8, (3, 16)))
def test_nibble_orders_are_inverse(data: np.ndarray) -> None:
    np.testing.assert_array_equal(from_gguf_nibbles(to_gguf_nibbles(data)), data)


def test_error_report() -> None:
    report = mxfp4.error(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    assert report.max_abs == 0.5
    assert report.relative_rms == pytest.approx(0.1)
    assert "0.1" in str(report)
    assert mxfp4.error(np.zeros(3), np.zeros(3)).relative_rms == 0.0


@given(st.floats(0, 8, exclude_max=True, width=32))
def test_codes_are_those_of_a_search(unit: float) -> None:
    """The bit trick against a plain search for the nearest grid point, ties to the even code."""
    distances = [abs(VALUES[code] - unit) for code in range(8)]
    nearest = [code for code in range(8) if distances[code] == min(distances)]
    expected = nearest[0] if len(nearest) == 1 else next(c for c in nearest if c % 2 == 0)
    values = np.zeros(32, np.float32)
    values[:2] = [7.5, unit]  # the first one fixes the scale at 1
    data, scales = mxfp4.encode(values)
    assert scales[0] == 127
    assert data[0, 0] >> 4 == expected
