"""Supervised fine-tuning as one job: a checkpoint and examples in, a folder out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from aperto.adapt.batches import Batch, RowBatches, batch_of
from aperto.adapt.data import Dataset
from aperto.adapt.estimate import layer_seconds, step_seconds
from aperto.adapt.job import Job, JobConfig, Subject
from aperto.adapt.packing import Row, pack
from aperto.adapt.train import (
    Outcome,
    StepReport,
    cross_entropy,
    cross_entropy_from,
    fit,
    mean_loss,
)
from aperto.adapt.trunk import Trunk
from aperto.errors import ConfigError

_ROUTING_TOKENS = 8192
"""Tokens of the data that tell which experts it uses most."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig(JobConfig):
    """How examples are learnt. Raises ConfigError on values out of range."""

    epochs: float = 1.0
    """Times that every row is learnt."""
    steps: int | None = None
    """Optimiser steps, in place of epochs."""
    length: int = 1024
    """Tokens of a packed row."""
    rows_per_step: int = 8
    """Rows that one optimiser step learns from."""
    rows_per_batch: int = 1
    """Of these, rows that go through the model at once."""
    fast: int = 0
    """Train this many layers from the top, the results of those below kept on disk; 0: all."""

    def __post_init__(self) -> None:
        JobConfig.__post_init__(self)
        if self.steps is None and not self.epochs > 0:
            raise ConfigError(f"epochs is {self.epochs}; expected a number above 0")
        if self.length < 2:
            raise ConfigError(f"length is {self.length}; expected 2 tokens or more")
        if self.fast < 0:
            raise ConfigError(f"fast is {self.fast}; expected a number of layers, or 0 for all")

    def num_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the run."""
        return self.steps or max(round(self.epochs * steps_per_epoch), 1)


class Finetune(Job):
    """A job that learns examples.

    Args:
        subject: the model.
        dataset: what is learnt, and what is held out.
        config: how it is trained.
        out: see `Job`.
        padding_id: token that fills rows up.

    Raises:
        DataError: the data does not fit the rows.
        UsageError, ConfigError, MemoryLimitError: as `Job` does.
    """

    def __init__(
        self,
        subject: Subject,
        dataset: Dataset,
        config: FinetuneConfig,
        out: Path,
        *,
        padding_id: int = 0,
    ) -> None:
        self.rows = pack(dataset.train, config.length, padding_id=padding_id)
        self._held_out = pack(dataset.held_out, config.length, padding_id=padding_id)
        self._settings = config
        self._first = subject.source.config.num_layers - config.fast if config.fast else 0
        self.batches = RowBatches(
            self.rows,
            rows_per_step=config.rows_per_step,
            rows_per_batch=config.rows_per_batch,
            seed=config.seed,
            device=config.device,
        )
        super().__init__(
            _from_layer(subject, config.fast, self._first),
            config,
            out,
            asked={"data": _digest(self.rows)},
            steps=config.num_steps(self.batches.steps_per_epoch),
            batch_tokens=config.rows_per_batch * config.length,
            row_tokens=config.length,
            texts=self._texts,
            first_computed=self._first,
        )

    def seconds(self) -> float:
        """What the run will take on this machine."""
        model, first = self.model, self._first
        total = step_seconds(model, self.batches(0), first) * self.steps
        if first:  # of a layer's time about a third is its forward pass
            row = batch_of(self.rows[:1], self._settings.device)
            total += layer_seconds(model, row, first) / 3 * first * len(self.rows)
            model.zero_grad(set_to_none=True)
        return total

    def run(
        self,
        watch: Callable[[StepReport], None] | None = None,
        watch_trunk: Callable[[int, int], None] | None = None,
    ) -> Outcome:
        """Train, or go on. Raises what `fit` raises.

        Args:
            watch: told of every step.
            watch_trunk: told of every row that went through the layers that are not trained, and
                of their number, where these are kept on disk.
        """
        config, first = self._settings, self._first
        if first:
            self.folder.begin()
            dtype = getattr(torch, config.dtype)
            trunk = Trunk(self.folder.path, self.model, self.rows, first, dtype)
            trunk.fill(watch_trunk)
            self.batches.trunk_of = trunk.of
        return fit(
            self.model,
            self.trainable,
            self.batches,
            cross_entropy_from(first) if first else cross_entropy,
            self.optimiser(),
            config.train_config(self.steps),
            self.folder,
            evaluate=self._evaluate if self._held_out else None,
            watch=watch,
            publish=self.publish,
        )

    def _texts(self) -> Iterator[Batch]:
        count = max(_ROUTING_TOKENS // self._settings.length, 1)
        return (batch_of([row], self._settings.device) for row in self.rows[:count])

    def _evaluate(self) -> dict[str, float]:
        batches = (batch_of([row], self._settings.device) for row in self._held_out)
        return {"eval_loss": mean_loss(self.model, batches, cross_entropy)}


def _from_layer(subject: Subject, fast: int, first: int) -> Subject:
    """The subject with its top `fast` layers alone trained, `first` and those after it; 0: all."""
    if not fast:
        return subject
    if first < 0 or subject.adapted is None:
        raise ConfigError(
            f"fast is {fast}; expected at most {fast + first} layers, adapted and not trained whole"
        )
    adapted = dataclasses.replace(subject.adapted, first_layer=first)
    return dataclasses.replace(subject, adapted=adapted)


def _digest(rows: Sequence[Row]) -> str:
    """A hash of what is learnt."""
    found = hashlib.sha256()
    for row in rows:
        for array in (row.token_ids, row.weights, row.segments):
            found.update(array.tobytes())
    return found.hexdigest()
