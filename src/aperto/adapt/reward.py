"""Reward-driven tuning: answers drawn, rewarded, and the better ones of each group made likelier.

Group-relative policy optimisation (Shao et al. 2024): every task is answered several times by the
model as it is; an answer's advantage is its reward's distance from the group's mean, in the group's
standard deviations. A token's loss is the clipped surrogate of PPO,
-min(r A, clip(r, 1 - e, 1 + e) A), with r the probability that the twin gives it over the one that
it was drawn with, plus, where asked for, the distance from the model that training began at
(exp(d) - d - 1 with d = log p_base - log p, Schulman's estimator). Losses are averaged over tokens.

Answers come from a callable, such as the native engine, with the log probabilities they were drawn
with; how far these lie from the twin's is measured in every step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aperto.adapt import lora
from aperto.adapt.batches import Batch
from aperto.adapt.job import Job, JobConfig, Subject
from aperto.adapt.packing import Example
from aperto.adapt.preference import side_by_side
from aperto.adapt.reward_rows import RewardTask
from aperto.adapt.train import Outcome, StepReport, Sums, descend, drawn_from
from aperto.errors import ConfigError, TrainingError
from aperto.formats.adapter import Adapter
from aperto.harmony import ANALYSIS, FINAL, Message, parse, render
from aperto.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class Rollout:
    """One answer as it was drawn, at temperature 1."""

    token_ids: tuple[int, ...]
    """What was drawn, the token that ends the turn included."""
    log_probabilities: tuple[float, ...]
    """Of each token, from the model that drew it."""


class Policy(Protocol):
    """What draws answers."""

    def update(self, adapter: Adapter) -> None:
        """Draw from the base model with this adapter from now on."""

    def draw(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_tokens: int
    ) -> list[Rollout]:
        """An answer to each prompt, by prompt and seed alone, whatever is drawn beside it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Attempt:
    """An answer as a reward function sees it."""

    final: str
    """What is said to the user; empty where the answer was cut before that."""
    analysis: str
    """What was thought before."""
    calls: tuple[tuple[str, str], ...]
    """Calls of functions: name and JSON arguments, as text."""
    num_tokens: int
    """Tokens drawn."""
    is_complete: bool
    """Whether the turn ended by itself."""


Reward = Callable[[Mapping[str, Any], Attempt], float]
"""(the task's row, an answer to it) -> how good it is; more is better."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RewardConfig(JobConfig):
    """How rewards are learnt. Raises ConfigError on values out of range."""

    steps: int = 100
    """Optimiser steps."""
    tasks_per_step: int = 4
    """Tasks of a step."""
    attempts: int = 8
    """Answers to each."""
    max_tokens: int = 512
    """Longest answer."""
    clip: float = 0.2
    """How far the ratio of probabilities counts."""
    base_weight: float = 0.0
    """Weight of the distance from the base model; 0 does not compute it."""

    def __post_init__(self) -> None:
        JobConfig.__post_init__(self)
        least = {"steps": 1, "tasks_per_step": 1, "attempts": 2, "max_tokens": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {low} or more")
        if not 0 < self.clip < 1:
            raise ConfigError(f"clip is {self.clip}; expected a number between 0 and 1")
        if self.base_weight < 0:
            raise ConfigError(f"base_weight is {self.base_weight}; expected 0 or more")


def advantages(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each answer [..., attempts]: its reward's distance from the mean, in deviations."""
    spread = rewards - rewards.mean(-1, keepdims=True)
    deviation = np.sqrt((spread**2).mean(-1, keepdims=True))
    return np.divide(spread, deviation, out=np.zeros_like(spread), where=deviation > 1e-8)


def surrogate(now: Tensor, drawn: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Loss of each token from its log probabilities now and when it was drawn; shapes alike."""
    ratio = torch.exp(now - drawn)
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantage, clipped * advantage)


def distance(now: Tensor, base: Tensor) -> Tensor:
    """Schulman's estimate of the divergence from the base model, token by token; never negative."""
    log_ratio = base - now
    return torch.exp(log_ratio) - log_ratio - 1


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """One answer with all that its loss needs."""

    example: Example
    log_probabilities: tuple[float, ...]
    advantage: float


class RewardJob(Job):
    """A job that learns from rewards.

    Args:
        subject: the model, adapted.
        tasks: what is asked.
        reward: tells how good an answer is.
        policy: draws the answers.
        tokenizer: the model's.
        config: how it is trained.
        out: see `Job`.
        reward_digest: of the reward function's text; a changed one is another run.

    Raises:
        UsageError, ConfigError, MemoryLimitError: as `Job` does.
    """

    def __init__(
        self,
        subject: Subject,
        tasks: Sequence[RewardTask],
        reward: Reward,
        policy: Policy,
        tokenizer: Tokenizer,
        config: RewardConfig,
        out: Path,
        reward_digest: str = "",
    ) -> None:
        if subject.adapted is None or subject.hottest:
            raise ConfigError("rewards train adapters, of attention or of all experts; not more")
        if config.base_weight and subject.adapted.in_full:
            raise ConfigError(
                "the distance from the base model needs changes that can be left out; expected no "
                f"{', '.join(subject.adapted.in_full)} with base_weight {config.base_weight}"
            )
        self._tasks, self._reward, self._policy = tasks, reward, policy
        self._tokenizer, self._settings = tokenizer, config
        self._prompts = [render(task.conversation, tokenizer) for task in tasks]
        longest = max(len(prompt) for prompt in self._prompts) + config.max_tokens
        super().__init__(
            subject,
            config,
            out,
            asked={"data": _digest(tasks), "reward": reward_digest},
            steps=config.steps,
            batch_tokens=longest,
            row_tokens=longest,
            texts=lambda: (),
        )

    def run(self, watch: Callable[[StepReport], None] | None = None) -> Outcome:
        """Train, or go on; `watch` is told of every step. Raises what `descend` raises."""
        self.folder.begin()
        self.model.train()
        return descend(
            self._gradients,
            self.trainable,
            self.optimiser(),
            self._settings.train_config(self.steps),
            self.folder,
            watch=watch,
            publish=self.publish,
        )

    def _gradients(self, step: int) -> Sums:
        drawn, rewards = self._answers(step)
        num_tokens = sum(len(one.log_probabilities) for one in drawn)
        loss_sum = gap = largest = 0.0
        for place, one in enumerate(drawn):
            batch = side_by_side([one.example], self._settings.device)
            with drawn_from(self._settings.seed, step, place):
                loss, distances = self._loss(batch, one)
                loss.backward()
            loss_sum += float(loss.detach())
            gap, largest = gap + float(distances.sum()), max(largest, float(distances.max()))
        tokens = sum(len(one.example) for one in drawn)
        measures = {
            "reward": float(rewards.mean()),
            "gap": gap / num_tokens,
            "largest gap": largest,
            "decided": float((rewards.std(-1) > 1e-8).mean()),
            "answer tokens": num_tokens / len(drawn),
        }
        return Sums(loss_sum, num_tokens, tokens, measures)

    def _loss(self, batch: Batch, one: _Drawn) -> tuple[Tensor, Tensor]:
        """The sum of an answer's losses, and how far its tokens' log probabilities lie apart."""
        now = self._answer(batch)
        then = torch.tensor(one.log_probabilities, dtype=now.dtype, device=now.device)
        advantage = torch.full_like(now, one.advantage)
        loss = surrogate(now, then, advantage, self._settings.clip).sum()
        if self._settings.base_weight:
            with torch.no_grad(), lora.without_changes(self.model):
                base = self._answer(batch)
            loss = loss + self._settings.base_weight * distance(now, base).sum()
        return loss, (now.detach() - then).abs()

    def _answer(self, batch: Batch) -> Tensor:
        """Log probability of each token of the answer."""
        found = self.model.log_probabilities(batch.token_ids, batch.weights, batch.segments)
        return found[batch.weights[:, 1:] != 0]

    def _answers(self, step: int) -> tuple[list[_Drawn], NDArray[np.float64]]:
        """The answers of a step with their advantages, and the rewards [tasks, attempts]."""
        assert self.adapted is not None, "rewards train adapters"
        config = self._settings
        chosen = [task for task in self._chosen(step) for _ in range(config.attempts)]
        seeds = [_seed(config.seed, step, place) for place in range(len(chosen))]
        self._policy.update(lora.to_adapter(self.model, self.adapted))
        rollouts = self._policy.draw(
            [self._prompts[task] for task in chosen], seeds, config.max_tokens
        )
        values = [
            self._value(self._tasks[task], rollout)
            for task, rollout in zip(chosen, rollouts, strict=True)
        ]
        rewards = np.asarray(values).reshape(-1, config.attempts)
        drawn = [
            _Drawn(
                _as_example(self._prompts[task], rollout.token_ids),
                rollout.log_probabilities,
                float(advantage),
            )
            for task, rollout, advantage in zip(
                chosen, rollouts, advantages(rewards).ravel(), strict=True
            )
        ]
        return drawn, rewards

    def _value(self, task: RewardTask, rollout: Rollout) -> float:
        """What the reward function says. Raises TrainingError where it fails."""
        attempt = attempt_of(rollout.token_ids, self._tokenizer)
        try:
            value = float(self._reward(task.fields, attempt))
        except Exception as problem:
            raise TrainingError(
                f"{task.source}: the reward function raised {type(problem).__name__}: {problem}; "
                "the state before this step is kept; correct the function and begin again in a "
                "new folder"
            ) from problem
        if not math.isfinite(value):
            raise TrainingError(
                f"{task.source}: the reward is {value}; expected a finite number; the state "
                "before this step is kept"
            )
        return value

    def _chosen(self, step: int) -> list[int]:
        """The tasks of a step: in an order an epoch, drawn by seed and epoch alone."""
        count = min(self._settings.tasks_per_step, len(self._tasks))
        per_epoch = len(self._tasks) // count
        epoch, at = divmod(step, per_epoch)
        drawn = np.random.Generator(np.random.Philox(key=[self._settings.seed, epoch]))
        order = drawn.permutation(len(self._tasks))
        return [int(i) for i in order[at * count : (at + 1) * count]]


def attempt_of(token_ids: Sequence[int], tokenizer: Tokenizer) -> Attempt:
    """An answer's tokens, read as harmony."""
    parser = parse(token_ids, tokenizer)
    ends = {tokenizer.special_id(name) for name in ("<|return|>", "<|call|>")}
    said = parser.messages
    return Attempt(
        _text(said, FINAL),
        _text(said, ANALYSIS),
        tuple((m.recipient, m.text) for m in said if m.recipient is not None),
        len(token_ids),
        bool(token_ids) and token_ids[-1] in ends,
    )


def _text(messages: Sequence[Message], channel: str) -> str:
    return "".join(m.text for m in messages if m.channel == channel and m.recipient is None)


def _as_example(prompt: Sequence[int], answer: Sequence[int]) -> Example:
    ids = np.asarray([*prompt, *answer], np.int32)
    return Example(ids, np.asarray([0.0] * len(prompt) + [1.0] * len(answer), np.float32))


def _seed(seed: int, step: int, place: int) -> int:
    digest = hashlib.sha256(f"answer.{seed}.{step}.{place}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def _digest(tasks: Sequence[RewardTask]) -> str:
    found = hashlib.sha256()
    for task in tasks:
        found.update(json.dumps(task.fields, sort_keys=True, default=str).encode())
    return found.hexdigest()
