"""Direct preference optimisation: of two answers to a prompt the preferred one made more likely.

The loss of a pair is -log sigmoid(beta * margin), where the margin is how much more the model has
moved towards the preferred answer than towards the other: the difference of their
log probabilities, minus that of the model that training began at (Rafailov et al. 2023). With label
smoothing e, the pair counts as swapped with probability e (Mitchell 2023). The margin alone may
grow while both answers become unlikely; `sft_weight` adds the preferred answer's own loss a token,
which holds it up (Pang et al. 2024).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aperto.adapt.batches import Batch
from aperto.adapt.estimate import step_seconds
from aperto.adapt.job import Job, JobConfig, Subject
from aperto.adapt.model import GptOss
from aperto.adapt.packing import PADDING, Example
from aperto.adapt.pairs import Pair, PairSet
from aperto.adapt.train import Outcome, StepReport, Sums, descend, drawn_from
from aperto.errors import ConfigError
from aperto.formats.disk import replace_file

REFERENCE = "reference.npy"
_MULTIPLE = 32
"""Pairs are filled up to a multiple of this, so that few shapes are seen."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceConfig(JobConfig):
    """How preferences are learnt. Raises ConfigError on values out of range."""

    epochs: float = 1.0
    """Times that every pair is learnt."""
    steps: int | None = None
    """Optimiser steps, in place of epochs."""
    pairs_per_step: int = 8
    """Pairs that one optimiser step learns from, each a batch of its own."""
    beta: float = 0.1
    """How closely the model is held to the one that training began at; more is closer."""
    label_smoothing: float = 0.0
    """Probability that a pair is taken to be the wrong way round."""

    sft_weight: float = 0.0
    """Weight of the preferred answer's own mean loss a token; 0: preferences alone."""

    def __post_init__(self) -> None:
        JobConfig.__post_init__(self)
        if self.sft_weight < 0:
            raise ConfigError(f"sft_weight is {self.sft_weight}; expected 0 or more")
        if self.steps is None and not self.epochs > 0:
            raise ConfigError(f"epochs is {self.epochs}; expected a number above 0")
        if not self.beta > 0:
            raise ConfigError(f"beta is {self.beta}; expected a number above 0")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(
                f"label_smoothing is {self.label_smoothing}; expected 0 or more and less than 0.5"
            )
        if self.pairs_per_step < 1:
            raise ConfigError(f"pairs_per_step is {self.pairs_per_step}; expected 1 or more")


def preference_loss(margins: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Loss of each margin: -(1 - e) log sigmoid(beta m) - e log sigmoid(-beta m)."""
    scaled = beta * margins
    right, wrong = torch.nn.functional.logsigmoid(scaled), torch.nn.functional.logsigmoid(-scaled)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def answer_log_probabilities(model: GptOss, batch: Batch) -> Tensor:
    """Log probability of each row's answer [B]: the sum over the tokens with a weight."""
    return model.log_probabilities(batch.token_ids, batch.weights, batch.segments).sum(-1)


class Preference(Job):
    """A job that learns preferences.

    Args:
        subject: the model.
        pairs: what is learnt, and what is held out.
        config: how it is trained.
        out: see `Job`.

    Raises:
        UsageError, ConfigError, MemoryLimitError: as `Job` does.
    """

    def __init__(
        self, subject: Subject, pairs: PairSet, config: PreferenceConfig, out: Path
    ) -> None:
        self._pairs, self._settings = pairs, config
        self._reference: NDArray[np.float64] | None = None
        self.steps_per_epoch = -(-len(pairs.train) // config.pairs_per_step)
        longest = max(len(pair) for pair in (*pairs.train, *pairs.held_out))
        super().__init__(
            subject,
            config,
            out,
            asked={"data": _digest((*pairs.train, *pairs.held_out))},
            steps=config.steps or max(round(config.epochs * self.steps_per_epoch), 1),
            batch_tokens=2 * longest,
            row_tokens=longest,
            texts=lambda: (self._batch(pair) for pair in pairs.train),
        )

    def seconds(self) -> float:
        """What the run will take: the steps, and a forward pass of every pair before them."""
        batches = [self._batch(self._pairs.train[index]) for index in self._chosen(0)]
        step_s = step_seconds(self.model, batches)
        num_pairs = len(self._pairs.train) + len(self._pairs.held_out)
        return step_s * self.steps + step_s / 3 * num_pairs / len(batches)

    def run(
        self,
        watch: Callable[[StepReport], None] | None = None,
        watch_reference: Callable[[int, int], None] | None = None,
    ) -> Outcome:
        """Train, or go on. Raises what `fit` raises.

        Args:
            watch: told of every step, with its margin and accuracy.
            watch_reference: told of every pair that the model before training has scored.
        """
        self.folder.begin()
        self._reference = self._scored_before(watch_reference)
        self.model.train()
        return descend(
            self._gradients,
            self.trainable,
            self.optimiser(),
            self._settings.train_config(self.steps),
            self.folder,
            evaluate=self._evaluate if self._pairs.held_out else None,
            watch=watch,
            publish=self.publish,
        )

    def _gradients(self, step: int) -> Sums:
        chosen = self._chosen(step)
        loss_sum, tokens, margins = 0.0, 0, []
        for place, index in enumerate(chosen):
            batch = self._batch(self._pairs.train[index])
            with drawn_from(self._settings.seed, step, place):
                now = answer_log_probabilities(self.model, batch)
                margin = self._margin(now, index)
                loss = self._loss(margin)
                if weight := self._settings.sft_weight:
                    loss = loss - weight * now[0] / batch.weights[0].sum()
                loss.backward()
            loss_sum, tokens = loss_sum + float(loss.detach()), tokens + batch.num_tokens
            margins.append(float(margin.detach()))
        return Sums(loss_sum, len(chosen), tokens, _measures(margins))

    def _margin(self, now: Tensor, index: int) -> Tensor:
        """How much more the model moved towards the preferred answer of pair `index`."""
        assert self._reference is not None, "run has begun"
        before = self._reference[index]
        return (now[0] - now[1]) - float(before[0] - before[1])

    def _loss(self, margin: Tensor) -> Tensor:
        return preference_loss(margin, self._settings.beta, self._settings.label_smoothing)

    def _evaluate(self) -> dict[str, float]:
        self.model.eval()
        begin = len(self._pairs.train)
        with torch.no_grad():
            margins = [
                self._margin(answer_log_probabilities(self.model, self._batch(pair)), begin + place)
                for place, pair in enumerate(self._pairs.held_out)
            ]
            losses = [float(self._loss(margin)) for margin in margins]
        self.model.train()
        found = _measures([float(margin) for margin in margins])
        return {"eval_loss": sum(losses) / len(losses)} | {
            f"eval_{name}": value for name, value in found.items()
        }

    def _scored_before(self, watch: Callable[[int, int], None] | None) -> NDArray[np.float64]:
        """Log probabilities [pairs, 2] before training, the held-out pairs' last; kept on disk.

        Changes begin at nought, so the model is its own reference until the first step is taken.
        """
        file = self.folder.path / REFERENCE
        if file.exists():
            kept: NDArray[np.float64] = np.load(file)
            return kept
        pairs = (*self._pairs.train, *self._pairs.held_out)
        found = np.empty((len(pairs), 2))
        self.model.eval()
        with torch.no_grad():
            for index, pair in enumerate(pairs):
                found[index] = answer_log_probabilities(self.model, self._batch(pair)).cpu().numpy()
                if watch is not None:
                    watch(index + 1, len(pairs))
        data = io.BytesIO()
        np.save(data, found)
        replace_file(file, data.getvalue())
        return found

    def _chosen(self, step: int) -> list[int]:
        """The pairs of a step: an order an epoch, drawn by seed and epoch alone."""
        epoch, at = divmod(step, self.steps_per_epoch)
        drawn = np.random.Generator(np.random.Philox(key=[self._settings.seed, epoch]))
        begin = at * self._settings.pairs_per_step
        order = drawn.permutation(len(self._pairs.train))
        return [int(i) for i in order[begin : begin + self._settings.pairs_per_step]]

    def _batch(self, pair: Pair) -> Batch:
        """The preferred and the other answer as two rows."""
        return side_by_side([pair.chosen, pair.rejected], self._settings.device)


def side_by_side(examples: Sequence[Example], device: str) -> Batch:
    """One example a row, filled up to one length."""
    longest = max(len(example) for example in examples)
    length = -(-longest // _MULTIPLE) * _MULTIPLE
    ids = torch.zeros(len(examples), length, dtype=torch.int64)
    weights = torch.zeros(len(examples), length)
    segments = torch.full((len(examples), length), PADDING)
    for row, example in enumerate(examples):
        count = len(example)
        ids[row, :count] = torch.from_numpy(example.token_ids.astype(np.int64))
        weights[row, :count] = torch.from_numpy(example.weights)
        segments[row, :count] = 0
    tokens = sum(len(example) for example in examples)
    return Batch(ids.to(device), weights.to(device), segments.to(device), tokens)


def _measures(margins: Sequence[float]) -> dict[str, float]:
    """Mean margin, and the share of pairs that moved the right way."""
    values = np.asarray(margins)
    return {"margin": float(values.mean()), "accuracy": float((values > 0).mean())}


def _digest(pairs: Sequence[Pair]) -> str:
    found = hashlib.sha256()
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            found.update(side.token_ids.tobytes())
            found.update(side.weights.tobytes())
    return found.hexdigest()
