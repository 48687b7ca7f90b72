"""The training loop: gradients of a step summed in a fixed order, and resumed to the bit.

What a step does depends on the parameters, the optimiser, the seed and the step's number alone, so
a run that was killed and goes on from its last state ends in the same bits as one that was not, on
the same machine with as many threads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from aperto.adapt.batches import Batch
from aperto.adapt.state import RunFolder
from aperto.errors import ConfigError, TrainingError

Objective = Callable[[Any, Any], tuple[Tensor, float]]
"""(model, batch) -> the sum of a batch's losses, and the sum of the weights they count with."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sums:
    """What a step's losses add up to."""

    loss: float
    """Sum of the losses."""
    weight: float
    """Sum of the weights they count with; the mean's divisor."""
    tokens: int
    """Tokens that went through the model, padding aside."""
    measures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What else is worth knowing of the step, by name."""


Gradients = Callable[[int], Sums]
"""Given a step's number, add the gradient of the sum of its losses to what is trained."""


class Rates(Protocol):
    """The number of steps of a run, and their learning rates; see `schedule.Schedule`."""

    @property
    def steps(self) -> int:
        """Steps in all."""

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How a run goes. Raises ConfigError on values out of range."""

    schedule: Rates
    """Number of steps and learning rates."""
    seed: int = 0
    """Of all that is drawn at random in a step."""
    max_gradient_norm: float = 1.0
    """Longer gradients are shortened to this length; 0 leaves them."""
    save_every_s: float = 300.0
    """Seconds after which the state is saved; it is saved at the end as well."""
    evaluate_every: int = 0
    """Steps between evaluations; 0 evaluates at the end alone."""

    def __post_init__(self) -> None:
        for name in ("max_gradient_norm", "save_every_s", "evaluate_every"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 0 or more")


@dataclasses.dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Mean loss of the step's learnt tokens, before its update."""
    tokens: int
    """Tokens that went through the model, padding aside."""
    learning_rate: float
    """Rate of the update."""
    grad_norm: float
    """Length of the gradient before it was shortened."""
    seconds: float
    """What the step took."""
    measures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What else is worth knowing of it, by name."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second."""
        return self.tokens / max(self.seconds, 1e-9)


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    step: int
    """Steps done in all."""
    steps: int
    """Steps asked for."""
    resumed_at: int
    """Steps that an earlier process had done."""
    measures: Mapping[str, float]
    """Of the last evaluation."""

    @property
    def finished(self) -> bool:
        """Whether every step was done; a run that was interrupted can be resumed."""
        return self.step == self.steps


def cross_entropy(model: Any, batch: Batch) -> tuple[Tensor, float]:
    """The objective of plain fine-tuning: `GptOss.loss` of the tokens that are learnt."""
    loss = model.loss(batch.token_ids, batch.weights, batch.segments)
    return loss, float(batch.weights[:, 1:].sum())


def cross_entropy_from(first_layer: int) -> Objective:
    """`cross_entropy`, from what the layers before `first_layer` gave; see `trunk`."""

    def objective(model: Any, batch: Batch) -> tuple[Tensor, float]:
        layers = range(first_layer, len(model.layers))
        x = model.through(batch.trunk, batch.segments, layers)
        loss = model.loss_at(x, batch.token_ids, batch.weights)
        return loss, float(batch.weights[:, 1:].sum())

    return objective


def mean_loss(model: nn.Module, batches: Iterable[Batch], objective: Objective) -> float:
    """Mean loss over batches, nothing learnt."""
    total = weight = 0.0
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in batches:
            loss, share = objective(model, batch)
            total, weight = total + float(loss), weight + share
    model.train(was_training)
    return total / weight if weight else math.nan


def fit(
    model: nn.Module,
    trainable: Mapping[str, nn.Parameter],
    batches: Callable[[int], Iterable[Any]],
    objective: Objective,
    optimiser: Optimizer,
    config: TrainConfig,
    folder: RunFolder,
    *,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    watch: Callable[[StepReport], None] | None = None,
    publish: Callable[[int], None] | None = None,
) -> Outcome:
    """Train, or go on with a run that was interrupted.

    Args:
        model: what `objective` is given.
        trainable: parameters by name; all that training changes, and all that is saved.
        batches: what step number n, from 0, learns from; must depend on n alone.
        objective: see `Objective`.
        optimiser: over the values of `trainable`; the schedule sets its rate, or, where its groups
            name a "scale", the rate times that.
        config: schedule, seed and intervals.
        folder: where state and log are kept.
        evaluate: measures of the model as it is, by name.
        watch: told of every step.
        publish: called with the number of steps after each saved state.

    Raises:
        TrainingError: a loss or a gradient is not a number. The state before that step is saved.
        DiskSpaceError: a state could not be written; the one before it is there.
    """
    model.train()
    gradients = _gradients_of(model, batches, objective, config.seed)
    return descend(
        gradients,
        trainable,
        optimiser,
        config,
        folder,
        evaluate=evaluate,
        watch=watch,
        publish=publish,
    )


def descend(
    gradients: Gradients,
    trainable: Mapping[str, nn.Parameter],
    optimiser: Optimizer,
    config: TrainConfig,
    folder: RunFolder,
    *,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    watch: Callable[[StepReport], None] | None = None,
    publish: Callable[[int], None] | None = None,
) -> Outcome:
    """`fit`, for gradients that are made in another way, such as by several processes."""
    run = _Run(gradients, trainable, optimiser, config, folder)
    folder.begin()
    begun = run.resume()
    folder.cut_log(begun)
    measures: Mapping[str, float] = {}
    saved, steps = time.monotonic(), config.schedule.steps
    with _stop_requests() as stopping:
        while run.step < steps and not stopping():
            report = run.take_step()
            folder.append_log({**dataclasses.asdict(report), "tokens_per_s": report.tokens_per_s})
            if watch is not None:
                watch(report)
            if run.step == steps:
                break
            if evaluate is not None and run.step % (config.evaluate_every or steps) == 0:
                folder.append_log({"step": run.step, **evaluate()})
            if time.monotonic() - saved >= config.save_every_s:
                run.save(publish)
                saved = time.monotonic()
    if evaluate is not None and run.step == steps:
        measures = evaluate()
        if begun < steps:
            folder.append_log({"step": run.step, **measures})
    run.save(publish)
    return Outcome(run.step, steps, begun, measures)


def _gradients_of(
    model: nn.Module,
    batches: Callable[[int], Iterable[Any]],
    objective: Objective,
    seed: int,
) -> Gradients:
    """Gradients by autograd, batch after batch."""

    def gradients(step: int) -> Sums:
        loss_sum = weight_sum = 0.0
        tokens = 0
        for index, batch in enumerate(batches(step)):
            with drawn_from(seed, step, index):
                loss, weight = objective(model, batch)
                loss.backward()
            loss_sum, weight_sum = loss_sum + float(loss.detach()), weight_sum + weight
            tokens += batch.num_tokens
        return Sums(loss_sum, weight_sum, tokens)

    return gradients


class _Run:
    """What changes in the course of a run."""

    def __init__(
        self,
        gradients: Gradients,
        trainable: Mapping[str, nn.Parameter],
        optimiser: Optimizer,
        config: TrainConfig,
        folder: RunFolder,
    ) -> None:
        self._gradients, self._trainable, self._optimiser = gradients, trainable, optimiser
        self._config, self._folder = config, folder
        self.step = 0

    def resume(self) -> int:
        """Take up the saved state, if there is one; returns the steps it had done."""
        state = self._folder.load()
        if state is None:
            return 0
        with torch.no_grad():
            for name, parameter in self._trainable.items():
                parameter.copy_(state["parameters"][name])
        self._optimiser.load_state_dict(state["optimiser"])
        self.step = int(state["step"])
        return self.step

    def save(self, publish: Callable[[int], None] | None) -> None:
        """Write the state, then whatever is made of it."""
        self._folder.save(
            {
                "step": self.step,
                "parameters": {n: p.detach() for n, p in self._trainable.items()},
                "optimiser": self._optimiser.state_dict(),
            }
        )
        if publish is not None:
            publish(self.step)

    def take_step(self) -> StepReport:
        """One update. Raises TrainingError before it where a number is none."""
        begun = time.monotonic()
        try:
            sums = self._gradients(self.step)
        except TrainingError:  # whoever makes the gradients gives up: what was reached is kept
            self._optimiser.zero_grad(set_to_none=True)
            self.save(None)
            raise
        scale = 1 / sums.weight if sums.weight else 1.0
        norm, loss = self._normalise(scale), sums.loss * scale
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._give_up(loss, norm)
        rate = self._config.schedule.rate(self.step)
        for group in self._optimiser.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self.step += 1
        seconds = time.monotonic() - begun
        return StepReport(self.step, loss, sums.tokens, rate, norm, seconds, sums.measures)

    def _normalise(self, scale: float) -> float:
        """Scale the gradients, shorten them where they are too long; their length before that."""
        gradients = [p.grad for p in self._trainable.values() if p.grad is not None]
        for gradient in gradients:
            gradient.mul_(scale)
        norm = math.sqrt(sum(float(g.float().square().sum()) for g in gradients))
        limit = self._config.max_gradient_norm
        if limit and limit < norm < math.inf:
            for gradient in gradients:
                gradient.mul_(limit / norm)
        return norm

    def _give_up(self, loss: float, norm: float) -> None:
        self._optimiser.zero_grad(set_to_none=True)
        self.save(None)
        raise TrainingError(
            f"step {self.step + 1}: the loss is {loss} and its gradient has length {norm}; "
            f"expected numbers; what {self.step} steps reached is kept in {self._folder.path}; "
            "begin again in a new folder with a lower learning rate or a longer warm-up"
        )


@contextmanager
def drawn_from(seed: int, step: int, index: int) -> Iterator[None]:
    """Whatever is drawn inside depends on these numbers alone; outside nothing changes."""
    digest = hashlib.sha256(f"{seed}.{step}.{index}".encode()).digest()
    with torch.random.fork_rng():
        torch.manual_seed(int.from_bytes(digest[:7], "little"))
        yield


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Whether an interrupt or a request to end came: the step is finished first.

    A second interrupt ends at once; the last saved state is what is left then.
    """
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
