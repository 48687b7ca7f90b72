"""Fine-tuning as one job: a checkpoint and data in, a folder with what was trained out.

The folder holds an adapter, as PEFT lays it out, or, where every weight was trained, a model; and
in `run/` what the run was asked for, its state and its log, so that the same job given again goes
on where it was left.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from aperto.adapt import lora, qat
from aperto.adapt.batches import RowBatches, batch_of
from aperto.adapt.data import Dataset
from aperto.adapt.device import attention_on, check_device
from aperto.adapt.estimate import (
    MemoryEstimate,
    estimate_memory,
    layer_seconds,
    step_seconds,
)
from aperto.adapt.figures import write_figures
from aperto.adapt.lora import LoraConfig
from aperto.adapt.model import GptOss
from aperto.adapt.optimiser import OptimiserName, make_optimiser
from aperto.adapt.packing import Row, pack
from aperto.adapt.routing import hottest_experts
from aperto.adapt.schedule import Schedule, Shape
from aperto.adapt.state import RunFolder
from aperto.adapt.train import (
    Outcome,
    StepReport,
    TrainConfig,
    cross_entropy,
    cross_entropy_from,
    fit,
    mean_loss,
)
from aperto.adapt.trunk import Trunk
from aperto.errors import ConfigError, UsageError
from aperto.formats.adapter import write_adapter
from aperto.formats.checkpoint import TensorSource
from aperto.formats.disk import sync_file
from aperto.formats.lineage import FILE as LINEAGE_FILE
from aperto.formats.lineage import Lineage
from aperto.formats.retrained import Retrained
from aperto.formats.write import write_checkpoint

RUN = "run"
_ROUTING_TOKENS = 8192
"""Tokens of the data that tell which experts it uses most."""
DtypeName = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """How an adapter is trained. Raises ConfigError on values out of range."""

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
    """Steps between evaluations of the held-out rows; 0: at the end alone."""
    dtype: DtypeName = "bfloat16"
    """Of activations and of what is frozen; what is trained is float32."""
    qat: bool = False
    """Round trained experts to MXFP4 in every forward pass, as they will be stored."""
    fast: int = 0
    """Train this many layers from the top, the results of those below kept on disk; 0: all."""
    device: str = "cpu"
    """Where the twin computes: cpu, cuda or mps."""
    seed: int = 0
    """Of all that is drawn."""

    def __post_init__(self) -> None:
        if self.steps is None and not self.epochs > 0:
            raise ConfigError(f"epochs is {self.epochs}; expected a number above 0")
        if self.length < 2:
            raise ConfigError(f"length is {self.length}; expected 2 tokens or more")
        if self.fast < 0:
            raise ConfigError(f"fast is {self.fast}; expected a number of layers, or 0 for all")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup is {self.warmup}; expected a share of 0 or more, below 1")

    def num_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the run."""
        return self.steps or max(round(self.epochs * steps_per_epoch), 1)


class Finetune:
    """A job that is ready to run.

    Args:
        source: the base model, its experts in MXFP4 (see `formats.quantize_experts`).
        dataset: what is learnt, and what is held out.
        adapted: what of the model is adapted; None trains every weight, in float32.
        hottest: adapt so many experts of each layer too, those that the data uses most.
        config: how it is trained.
        out: the folder of what is trained; a new one, or one that this job left.
        lineage: of the base model, with the base as its first parent.
        licences: texts that go with what is derived from the base, by file name.
        padding_id: token that fills rows up.
        available_bytes: memory that the job may take; None: whatever it takes.

    Raises:
        UsageError: the folder holds something else.
        DataError: the data does not fit the rows.
        ConfigError: settings that exclude each other.
        MemoryLimitError: the job takes more memory than is available.
    """

    def __init__(
        self,
        source: TensorSource,
        dataset: Dataset,
        adapted: LoraConfig | None,
        config: FinetuneConfig,
        out: Path,
        lineage: Lineage,
        *,
        hottest: int = 0,
        licences: Mapping[str, str] | None = None,
        padding_id: int = 0,
        available_bytes: int | None = None,
    ) -> None:
        if adapted is None and (config.dtype != "float32" or hottest or config.fast):
            raise ConfigError(
                f"every weight is to be trained in {config.dtype}, {hottest} experts of each layer "
                f"chosen, fast {config.fast}; expected float32, none chosen, and 0"
            )
        num_layers = source.config.num_layers
        if config.fast > num_layers:
            raise ConfigError(f"fast is {config.fast}; expected at most {num_layers} layers")
        self._first = num_layers - config.fast if config.fast else 0
        if adapted is not None and self._first:
            adapted = dataclasses.replace(adapted, first_layer=self._first)
        check_device(config.device)
        self._config, self._out, self._lineage = config, out, lineage
        self.adapted = adapted
        """What is adapted, with the experts that were chosen; None: every weight is trained."""
        self._source, self._licences = source, licences or {}
        self.rows = pack(dataset.train, config.length, padding_id=padding_id)
        self._held_out = pack(dataset.held_out, config.length, padding_id=padding_id)
        self.batches = RowBatches(
            self.rows,
            rows_per_step=config.rows_per_step,
            rows_per_batch=config.rows_per_batch,
            seed=config.seed,
            device=config.device,
        )
        self.steps = config.num_steps(self.batches.steps_per_epoch)
        if out.exists() and any(out.iterdir()) and not (out / RUN).is_dir():
            raise UsageError(
                f"{out} is not empty and holds no run; expected a new folder, or one that this "
                "command left; choose another --out"
            )
        self.folder = RunFolder(out / RUN, {**self._identity(), "hottest": hottest})
        if adapted is None and available_bytes is not None:  # before it is read into memory
            self.memory().require(available_bytes)
        self.model = GptOss.from_checkpoint(
            source, dtype=getattr(torch, config.dtype), packed=adapted is not None
        )
        self.model.recompute, self.model.attend = True, attention_on(config.device)
        self.model.to(config.device)
        if adapted is None:
            self.trainable: dict[str, torch.nn.Parameter] = dict(self.model.named_parameters())
            if config.qat:
                qat.attach_whole(self.model)
        else:
            self._adapt(adapted, hottest)
        if available_bytes is not None:
            self.memory().require(available_bytes)

    def _adapt(self, adapted: LoraConfig, hottest: int) -> None:
        if hottest:
            rows = self.rows[: max(_ROUTING_TOKENS // self._config.length, 1)]
            batches = (batch_of([row], self._config.device) for row in rows)
            found = hottest_experts(self.model, batches, hottest)
            experts = {layer: these for layer, these in found.items() if layer >= self._first}
            adapted = self.adapted = dataclasses.replace(adapted, experts=experts)
        lora.attach(self.model, adapted, self._config.seed)
        if self._config.qat:
            qat.attach(self.model)
        self.model.to(self._config.device)
        self.trainable = lora.trainable(self.model)

    def memory(self) -> MemoryEstimate:
        """What the run takes at its highest."""
        infos = [self._source.info(name) for name in self._source.names()]
        if self.adapted is None:
            weights, trained = 0, sum(math.prod(info.shape) for info in infos)
        else:
            below = tuple(f"layers.{index}." for index in range(self._first))
            weights = sum(info.nbytes for info in infos if not info.name.startswith(below))
            trained = sum(p.numel() for p in self.trainable.values())
        return estimate_memory(
            self._source.config,
            weights=weights,
            trained=trained,
            batch_tokens=self._config.rows_per_batch * self._config.length,
            value_bytes=getattr(torch, self._config.dtype).itemsize,
            optimiser=self._config.optimiser,
            num_layers=self._source.config.num_layers - self._first,
        )

    def seconds(self) -> float:
        """What the run will take on this machine."""
        model, first = self.model, self._first
        total = step_seconds(model, self.batches(0), first) * self.steps
        if first:  # of a layer's time about a third is its forward pass
            row = batch_of(self.rows[:1], self._config.device)
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
        config = self._config
        if self._first:
            self.folder.begin()
            dtype = getattr(torch, config.dtype)
            trunk = Trunk(self.folder.path, self.model, self.rows, self._first, dtype)
            trunk.fill(watch_trunk)
            self.batches.trunk_of = trunk.of
        rise = int(config.warmup * self.steps)
        schedule = Schedule(
            steps=self.steps, peak=config.learning_rate, shape=config.schedule, warmup=rise
        )
        return fit(
            self.model,
            self.trainable,
            self.batches,
            cross_entropy_from(self._first) if self._first else cross_entropy,
            make_optimiser(
                config.optimiser, self.trainable.values(), weight_decay=config.weight_decay
            ),
            TrainConfig(
                schedule=schedule,
                seed=config.seed,
                max_gradient_norm=config.max_gradient_norm,
                evaluate_every=config.evaluate_every,
            ),
            self.folder,
            evaluate=self._evaluate if self._held_out else None,
            watch=watch,
            publish=self._publish,
        )

    def _evaluate(self) -> dict[str, float]:
        batches = (batch_of([row], self._config.device) for row in self._held_out)
        return {"eval_loss": mean_loss(self.model, batches, cross_entropy)}

    def _publish(self, step: int) -> None:
        """Put what is trained, as it is, in place of what the folder holds."""
        base = self._lineage.parents[0].name
        lineage = self._lineage.then(f"adapted {base}: {step} of {self.steps} steps")
        with tempfile.TemporaryDirectory(prefix=".fresh.", dir=self._out) as made:
            fresh = Path(made) / "fresh"
            if self.adapted is None:
                trained = Retrained(self._source, self._values)
                write_checkpoint(trained, fresh, "hf", lineage=lineage)
            else:
                adapter = lora.to_adapter(self.model, self.adapted, base)
                write_adapter(fresh, adapter, self.model.config)
                (fresh / LINEAGE_FILE).write_text(lineage.to_json(), encoding="utf-8")
            for name, text in self._licences.items():
                (fresh / name).write_text(text, encoding="utf-8")
            for file in sorted(fresh.iterdir()):
                sync_file(file)
                file.replace(self._out / file.name)
        write_figures(self.folder.path)

    def _values(self, name: str) -> NDArray[np.float32]:
        return self.trainable[name].detach().float().cpu().numpy()

    def _identity(self) -> dict[str, Any]:
        """All that the result depends on."""
        base = self._lineage.parents[0]
        return {
            "base": base.name,
            "base_hash": base.hash,
            "data": _digest(self.rows),
            "threads": torch.get_num_threads(),
            **dataclasses.asdict(self._config),
            **({"whole": True} if self.adapted is None else _settings_of(self.adapted)),
        }


def _settings_of(adapted: LoraConfig) -> dict[str, Any]:
    settings = dataclasses.asdict(adapted)
    if isinstance(adapted.experts, Mapping):
        settings["experts"] = {str(k): list(v) for k, v in adapted.experts.items()}
    return {f"adapter_{name}": value for name, value in settings.items()}


def use_threads(count: int) -> None:
    """Compute on so many threads; the bits of a run depend on their number."""
    torch.set_num_threads(count)


def _digest(rows: Sequence[Row]) -> str:
    """A hash of what is learnt."""
    found = hashlib.sha256()
    for row in rows:
        for array in (row.token_ids, row.weights, row.segments):
            found.update(array.tobytes())
    return found.hexdigest()
