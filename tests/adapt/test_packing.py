"""Packing: every example once, whole, and always in the same place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aperto.adapt.packing import PADDING, Example, pack
from aperto.errors import DataError


def example(length, start=0):
    ids = np.arange(start, start + length, dtype=np.int32)
    return Example(ids, np.ones(length, np.float32), f"rows.jsonl:{start}")


@settings(deadline=None)
@given(st.lists(st.integers(1, 20), max_size=30), st.integers(20, 50))
def test_every_example_is_there_once_and_whole(lengths, length):
    examples = [example(n, 1000 * i) for i, n in enumerate(lengths)]
    rows = pack(examples, length, padding_id=7)
    found = []
    for row in rows:
        for segment in sorted(set(row.segments.tolist()) - {PADDING}):
            at = row.segments == segment
            found.append(row.token_ids[at].tolist())
            # The first token of an example is never learnt: nothing comes before it.
            assert row.weights[at].tolist() == [0.0] + [1.0] * (int(at.sum()) - 1)
        assert (row.token_ids[row.segments == PADDING] == 7).all()
        assert (row.weights[row.segments == PADDING] == 0).all()
    assert sorted(found) == sorted(e.token_ids.tolist() for e in examples)
    # Two rows that would fit into one are never both there.
    sizes = sorted(row.num_tokens for row in rows)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > length


def test_too_long_an_example_is_named():
    with pytest.raises(DataError, match=r"rows.jsonl:0: 9 tokens do not fit into rows of 8"):
        pack([example(9)], 8)


def test_ids_and_weights_of_one_length():
    with pytest.raises(DataError, match="expected two vectors of one length"):
        Example(np.zeros(3, np.int32), np.zeros(2, np.float32))
