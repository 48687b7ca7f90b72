"""Which packed rows each step learns from: a shuffle an epoch, by seed and step number alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from aperto.adapt.packing import Row
from aperto.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows that go through the model together; each tensor is [B, T]."""

    token_ids: torch.Tensor
    """Token ids, int64."""
    weights: torch.Tensor
    """Weight of each token in the loss, float32."""
    segments: torch.Tensor
    """Number of each token's example in its row, int64."""
    num_tokens: int
    """Tokens that are no padding."""
    trunk: torch.Tensor | None = None
    """Residual stream [B, T, H] before the first layer that is trained, where it is known."""


def batch_of(rows: Sequence[Row], device: torch.device | str = "cpu") -> Batch:
    """Rows of one length as one batch."""

    def stacked(name: str, dtype: torch.dtype) -> torch.Tensor:
        stack = np.stack([getattr(row, name) for row in rows])
        return torch.from_numpy(stack).to(device=device, dtype=dtype)

    return Batch(
        stacked("token_ids", torch.int64),
        stacked("weights", torch.float32),
        stacked("segments", torch.int64),
        sum(row.num_tokens for row in rows),
    )


class RowBatches:
    """The batches of each step, over as many epochs as the steps need.

    Args:
        rows: packed rows of one length.
        rows_per_step: rows that one optimiser step learns from; the last step of an epoch takes
            what is left.
        rows_per_batch: of these, rows that go through the model at once.
        seed: draws the order of each epoch.
        device: where the batches are put.

    Raises:
        ConfigError: a number is out of range, or there are no rows.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        *,
        rows_per_step: int,
        rows_per_batch: int = 1,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if not rows or rows_per_step < 1 or rows_per_batch < 1:
            raise ConfigError(
                f"{len(rows)} rows, {rows_per_step} a step and {rows_per_batch} a batch; expected "
                "1 or more of each"
            )
        self._rows = rows
        self._rows_per_step = rows_per_step
        self._rows_per_batch = rows_per_batch
        self._seed = seed
        self._device = device
        self.trunk_of: Callable[[Sequence[int]], torch.Tensor] | None = None
        """Given rows' indices, their residual stream before the first layer that is trained."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every row was learnt once."""
        return -(-len(self._rows) // self._rows_per_step)

    def rows_of(self, step: int) -> list[int]:
        """Indices of the rows of one step, counted from 0."""
        epoch, at = divmod(step, self.steps_per_epoch)
        drawn = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
        order = drawn.permutation(len(self._rows))
        begin = at * self._rows_per_step
        return [int(i) for i in order[begin : begin + self._rows_per_step]]

    def __call__(self, step: int) -> Iterator[Batch]:
        """The batches of one step, in their order."""
        chosen = self.rows_of(step)
        for begin in range(0, len(chosen), self._rows_per_batch):
            part = chosen[begin : begin + self._rows_per_batch]
            batch = batch_of([self._rows[i] for i in part], self._device)
            if self.trunk_of is not None:
                batch = dataclasses.replace(batch, trunk=self.trunk_of(part).to(self._device))
            yield batch
