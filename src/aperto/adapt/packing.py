"""Examples packed into rows of one length: none is split, none sees another."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aperto.errors import DataError

PADDING = -1
"""Segment of what fills a row up."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One text to learn from.

    Raises:
        DataError: ids and weights do not have one length, or there are no ids.
    """

    token_ids: NDArray[np.int32]
    """Token ids, int32 [n]."""
    weights: NDArray[np.float32]
    """Weight of each token in the loss, float32 [n]; 0 where it is given and not learnt."""
    source: str = ""
    """Where it comes from, "file:line"."""
    digests: tuple[str, ...] = ()
    """What it asks, as `registry.digest` writes it; to find rows that are test questions."""

    def __post_init__(self) -> None:
        if self.token_ids.shape != self.weights.shape or self.token_ids.ndim != 1 or not len(self):
            raise DataError(
                f"example {self.source!r} has ids of shape {self.token_ids.shape} and weights of "
                f"shape {self.weights.shape}; expected two vectors of one length, 1 or more"
            )

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_learnt(self) -> int:
        """Tokens that the loss counts; the first never does, since nothing comes before it."""
        return int(np.count_nonzero(self.weights[1:]))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Examples one after the other, filled up to a fixed length."""

    token_ids: NDArray[np.int32]
    """Token ids, int32 [T]."""
    weights: NDArray[np.float32]
    """Weight of each token in the loss, float32 [T]; 0 for the first of each example."""
    segments: NDArray[np.int32]
    """Number of each token's example in the row, int32 [T]; `PADDING` at the end of the row."""

    @property
    def num_tokens(self) -> int:
        """Tokens that are no padding."""
        return int(np.count_nonzero(self.segments != PADDING))


def pack(examples: Sequence[Example], length: int, *, padding_id: int = 0) -> list[Row]:
    """Rows of `length` tokens that hold every example once, whole.

    Longest first, each goes to the fullest row that still has room for it (best fit). What a row
    holds depends on the examples and their order alone. Rows are in the order of the first example
    they hold; inside a row, examples keep theirs.

    Raises:
        DataError: an example is longer than a row.
    """
    longest = max(map(len, examples), default=0)
    if longest > length:
        example = max(examples, key=len)
        raise DataError(
            f"{example.source}: {longest} tokens do not fit into rows of {length}; expected "
            f"examples of at most {length}; ask for longer rows, or have long examples cut"
        )
    rows = sorted(_places(list(map(len, examples)), length))
    return [_row([examples[i] for i in members], length, padding_id) for members in rows]


def _places(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Which examples, by index and in order, share a row."""
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        at = bisect.bisect_left(free, (lengths[index], 0))
        if at == len(free):
            left, row = length, len(rows)
            rows.append([])
        else:
            left, row = free.pop(at)
        rows[row].append(index)
        bisect.insort(free, (left - lengths[index], row))
    return [sorted(members) for members in rows]


def _row(examples: Sequence[Example], length: int, padding_id: int) -> Row:
    token_ids = np.full(length, padding_id, np.int32)
    weights = np.zeros(length, np.float32)
    segments = np.full(length, PADDING, np.int32)
    start = 0
    for segment, example in enumerate(examples):
        end = start + len(example)
        token_ids[start:end] = example.token_ids
        weights[start + 1 : end] = example.weights[1:]
        segments[start:end] = segment
        start = end
    return Row(token_ids, weights, segments)
