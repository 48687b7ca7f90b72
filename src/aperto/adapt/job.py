"""A training job: a model, what of it is trained, and the folder that the result is written to.

The folder holds an adapter, as PEFT lays it out, or, where every weight is trained, a model; and in
`run/` what the job was asked for, its state and its log, so that the same job given again goes on
where it was left. What is learnt, and how, is said by `finetune`, `preference` and `reward`.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from aperto.adapt import lora, qat
from aperto.adapt.batches import Batch
from aperto.adapt.device import attention_on, check_device, check_optimiser
from aperto.adapt.estimate import MemoryEstimate, estimate_memory
from aperto.adapt.figures import write_figures
from aperto.adapt.lora import LoraConfig
from aperto.adapt.model import GptOss
from aperto.adapt.optimiser import OptimiserName, make_optimiser
from aperto.adapt.routing import hottest_experts
from aperto.adapt.schedule import Schedule, Shape
from aperto.adapt.state import RunFolder
from aperto.adapt.train import TrainConfig
from aperto.errors import ConfigError, UsageError
from aperto.formats.adapter import write_adapter
from aperto.formats.checkpoint import TensorSource
from aperto.formats.disk import sync_file
from aperto.formats.lineage import FILE as LINEAGE_FILE
from aperto.formats.lineage import Lineage
from aperto.formats.retrained import Retrained
from aperto.formats.write import write_checkpoint

RUN = "run"
DtypeName = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JobConfig:
    """How a job trains, whatever it learns. Raises ConfigError on values out of range."""

    learning_rate: float = 2e-4
    """Highest learning rate."""
    schedule: Shape = "cosine"
    """How the rate falls."""
    warmup: float = 0.03
    """Share of the steps over which the rate rises."""
    optimiser: OptimiserName = "adamw"
    """Moments of 4 bytes a value, or of 1."""
    weight_decay: float = 0.0
    """Share of each trained value taken off in a step, times the rate."""
    max_gradient_norm: float = 1.0
    """Longer gradients are shortened to this."""
    evaluate_every: int = 0
    """Steps between evaluations of what is held out; 0: at the end alone."""
    dtype: DtypeName = "bfloat16"
    """Of activations and of what is frozen; what is trained is float32."""
    qat: bool = False
    """Round trained experts to MXFP4 in every forward pass, as they will be stored."""
    device: str = "cpu"
    """Where the twin computes: cpu, cuda or mps."""
    seed: int = 0
    """Of all that is drawn."""

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup is {self.warmup}; expected a share of 0 or more, below 1")

    def train_config(self, steps: int) -> TrainConfig:
        """The loop's settings for so many steps."""
        rise = int(self.warmup * steps)
        return TrainConfig(
            schedule=Schedule(
                steps=steps, peak=self.learning_rate, shape=self.schedule, warmup=rise
            ),
            seed=self.seed,
            max_gradient_norm=self.max_gradient_norm,
            evaluate_every=self.evaluate_every,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The model of a job, and what of it is trained."""

    source: TensorSource
    """The base model, its experts in MXFP4 (see `formats.quantize_experts`)."""
    lineage: Lineage
    """Of the base model, with the base as its first parent."""
    adapted: LoraConfig | None
    """What of the model is adapted; None trains every weight, in float32."""
    hottest: int = 0
    """Adapt so many experts of each layer too, those that the data uses most."""
    licences: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Texts that go with what is derived from the base, by file name."""
    available_bytes: int | None = None
    """Memory that the job may take; None: whatever it takes."""


class Job:
    """A model in training.

    Args:
        subject: the model.
        config: how it is trained.
        out: the folder of what is trained; a new one, or one that this job left.
        asked: what else the result depends on, as JSON values; a folder of another job is refused.
        steps: optimiser steps in all.
        batch_tokens: tokens that go through the model at once.
        row_tokens: of these, tokens that may see each other.
        texts: batches of what will be learnt, to tell which experts they use most.
        first_computed: layers before this one are not computed in a step.

    Raises:
        UsageError: the folder holds something else.
        ConfigError: settings that exclude each other.
        MemoryLimitError: the job takes more memory than is available.
    """

    def __init__(
        self,
        subject: Subject,
        config: JobConfig,
        out: Path,
        *,
        asked: Mapping[str, Any],
        steps: int,
        batch_tokens: int,
        row_tokens: int,
        texts: Callable[[], Iterable[Batch]],
        first_computed: int = 0,
    ) -> None:
        if subject.adapted is None and (config.dtype != "float32" or subject.hottest):
            raise ConfigError(
                f"every weight is to be trained in {config.dtype}, {subject.hottest} experts of "
                "each layer chosen; expected float32 and none chosen"
            )
        check_device(config.device)
        check_optimiser(config.device, config.optimiser)
        self._subject, self._config, self._out = subject, config, out
        self._batch_tokens, self._row_tokens = batch_tokens, row_tokens
        self._first_computed = first_computed
        self.adapted = subject.adapted
        """What is adapted, with the experts that were chosen; None: every weight is trained."""
        self.steps = steps
        """Optimiser steps in all."""
        if out.exists() and any(out.iterdir()) and not (out / RUN).is_dir():
            raise UsageError(
                f"{out} is not empty and holds no run; expected a new folder, or one that this "
                "command left; choose another --out"
            )
        self.folder = RunFolder(out / RUN, {**self._identity(), **asked})
        if self.adapted is None:
            self._require_memory()  # before all of it is read
        self.model = GptOss.from_checkpoint(
            subject.source,
            dtype=getattr(torch, config.dtype),
            packed=self.adapted is not None,
        )
        self.model.recompute, self.model.attend = True, attention_on(config.device)
        self.model.to(config.device)
        self.trainable = self._attached(texts)
        """What is trained, by name."""
        self._require_memory()

    def memory(self) -> MemoryEstimate:
        """What the run takes at its highest."""
        source = self._subject.source
        infos = [source.info(name) for name in source.names()]
        if self.adapted is None:
            weights, trained = 0, sum(math.prod(info.shape) for info in infos)
        else:
            below = tuple(f"layers.{index}." for index in range(self._first_computed))
            weights = sum(info.nbytes for info in infos if not info.name.startswith(below))
            trained = sum(p.numel() for p in self.trainable.values())
        return estimate_memory(
            source.config,
            weights=weights,
            trained=trained,
            batch_tokens=self._batch_tokens,
            value_bytes=getattr(torch, self._config.dtype).itemsize,
            optimiser=self._config.optimiser,
            num_layers=source.config.num_layers - self._first_computed,
            scores=self._num_scores(),
        )

    def _num_scores(self) -> int:
        """Scores of one layer's attention that exist at once; none where it is blocked."""
        if self._config.device == "cpu":
            return 0
        heads = self._subject.source.config.num_attention_heads
        return self._batch_tokens * self._row_tokens * heads

    def optimiser(self) -> torch.optim.Optimizer:
        """A new optimiser of what is trained."""
        return make_optimiser(
            self._config.optimiser,
            self.trainable.values(),
            weight_decay=self._config.weight_decay,
        )

    def publish(self, step: int) -> None:
        """Put what is trained, as it is after so many steps, in place of what the folder holds."""
        base = self._subject.lineage.parents[0].name
        lineage = self._subject.lineage.then(f"adapted {base}: {step} of {self.steps} steps")
        with tempfile.TemporaryDirectory(prefix=".fresh.", dir=self._out) as made:
            fresh = Path(made) / "fresh"
            if self.adapted is None:
                trained = Retrained(self._subject.source, self._values)
                write_checkpoint(trained, fresh, "hf", lineage=lineage)
            else:
                adapter = lora.to_adapter(self.model, self.adapted, base)
                write_adapter(fresh, adapter, self.model.config)
                (fresh / LINEAGE_FILE).write_text(lineage.to_json(), encoding="utf-8")
            for name, text in self._subject.licences.items():
                (fresh / name).write_text(text, encoding="utf-8")
            for file in sorted(fresh.iterdir()):
                sync_file(file)
                file.replace(self._out / file.name)
        write_figures(self.folder.path)

    def _attached(self, texts: Callable[[], Iterable[Batch]]) -> dict[str, torch.nn.Parameter]:
        """Make the model ready to be trained; what is trained, by name."""
        if self.adapted is None:
            trainable = dict(self.model.named_parameters())
            if self._config.qat:
                qat.attach_whole(self.model)
            return trainable
        if self._subject.hottest:
            found = hottest_experts(self.model, texts(), self._subject.hottest)
            first = self.adapted.first_layer
            experts = {layer: these for layer, these in found.items() if layer >= first}
            self.adapted = dataclasses.replace(self.adapted, experts=experts)
        lora.attach(self.model, self.adapted, self._config.seed)
        if self._config.qat:
            qat.attach(self.model)
        self.model.to(self._config.device)
        return lora.trainable(self.model)

    def _require_memory(self) -> None:
        if self._subject.available_bytes is not None:
            self.memory().require(self._subject.available_bytes)

    def _values(self, name: str) -> NDArray[np.float32]:
        return self.trainable[name].detach().float().cpu().numpy()

    def _identity(self) -> dict[str, Any]:
        """What every job's result depends on."""
        base = self._subject.lineage.parents[0]
        return {
            "base": base.name,
            "base_hash": base.hash,
            "hottest": self._subject.hottest,
            "threads": torch.get_num_threads(),
            **dataclasses.asdict(self._config),
            **({"whole": True} if self.adapted is None else _settings_of(self.adapted)),
        }


def use_threads(count: int) -> None:
    """Compute on so many threads; the bits of a run depend on their number."""
    torch.set_num_threads(count)


def _settings_of(adapted: LoraConfig) -> dict[str, Any]:
    settings = dataclasses.asdict(adapted)
    if isinstance(adapted.experts, Mapping):
        settings["experts"] = {str(k): list(v) for k, v in adapted.experts.items()}
    return {f"adapter_{name}": value for name, value in settings.items()}
