"""Q8_0 bit for bit as the gguf package makes it."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from aperto.errors import TensorError
from aperto.formats.q8 import decode_q8_0, encode_q8_0

Q8_0 = gguf.GGMLQuantizationType.Q8_0
# Block scales are f16: magnitudes whose scale amax / 127 is a normal f16 number, and zero.
sizes = st.floats(min_value=0.0078125, max_value=2.0**20, width=32)
values = st.one_of(st.just(0.0), sizes, sizes.map(lambda x: -x))


def assert_as_gguf(rows: np.ndarray) -> None:
    ours = encode_q8_0(rows)
    np.testing.assert_array_equal(ours.reshape(len(rows), -1), gguf.quantize(rows, Q8_0))
    np.testing.assert_array_equal(
        decode_q8_0(ours), gguf.dequantize(ours.reshape(len(rows), -1), Q8_0)
    )


@given(hnp.arrays(np.float32, (3, 64), elements=values))
def test_same_bytes_as_the_gguf_package(rows: np.ndarray) -> None:
    assert_as_gguf(rows)


def test_same_bytes_on_weights_of_every_size() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, (64, 256)) * 10.0 ** rng.uniform(-4, 4, (64, 1))
    assert_as_gguf(rows.astype(np.float32))


def test_halves_round_away_from_zero() -> None:
    row = np.zeros(32, np.float32)
    row[:5] = [127.0, 0.5, -0.5, 1.5, 2.5]  # the scale is exactly 1
    assert encode_q8_0(row)[0, 2:7].view(np.int8).tolist() == [127, 1, -1, 2, 3]


def test_zeros() -> None:
    assert not encode_q8_0(np.zeros((2, 32), np.float32)).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e10])
def test_values_without_a_finite_scale_are_refused(bad: float) -> None:
    row = np.zeros(32, np.float32)
    row[3] = bad
    with pytest.raises(TensorError, match="finite"):
        encode_q8_0(row)


def test_rows_must_be_whole_blocks() -> None:
    with pytest.raises(TensorError, match="multiple of 32"):
        encode_q8_0(np.zeros((2, 40), np.float32))
