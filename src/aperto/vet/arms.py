"""The arms of a release: which model each one is, and what is left to be asked of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from aperto.errors import UsageError
from aperto.formats import open_checkpoint, quantize_experts
from aperto.formats.adapter import Adapter, LowRank, matrix_of, read_adapter
from aperto.formats.checkpoint import TensorSource
from aperto.formats.lineage import Lineage, Parent
from aperto.formats.merged import Merged
from aperto.formats.names import is_expert_weight, tensor_shapes
from aperto.formats.write import write_checkpoint
from aperto.vet.protocol import Arm, Protocol
from aperto.vet.rows import Effort


@dataclasses.dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint, and the adapter on it where there is one."""

    name: str
    """As given."""
    sha256: str
    """Of its tensors, and of the adapter's weights."""
    checkpoint: Path
    adapter: Path | None = None

    def to_json(self) -> dict[str, str]:
        """What a report says of it."""
        return {"name": self.name, "sha256": self.sha256}


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """Questions of one suite at one effort that an arm is asked."""

    suite: str
    effort: Effort
    num_items: int
    epochs: int
    done: Collection[tuple[str, int]] = ()
    """Items and repeats whose rows are there already."""

    @property
    def left(self) -> int:
        """Answers that are missing."""
        return self.num_items * self.epochs - len(self.done)


def models_of(
    protocol: Protocol,
    base: Model,
    adapted: Model,
    *,
    requantised: Path | None = None,
    worst_case: Model | None = None,
) -> dict[Arm, Model]:
    """The model of each registered arm.

    Raises UsageError for a worst case that is not registered, or registered and not given.
    """
    if (worst_case is not None) != (Arm.WORST_CASE in protocol.arms):
        given = "was given" if worst_case else "was not given"
        raise UsageError(
            f"the worst case {given}; the protocol's arms are {', '.join(protocol.arms)}"
        )
    found = {Arm.BASE: base, Arm.ADAPTED: adapted, Arm.BASE_AGAIN: base}
    if requantised is not None and Arm.BASE_REQUANTISED in protocol.arms:
        name = f"{base.name}, written again"
        found[Arm.BASE_REQUANTISED] = Model(name, base.sha256, requantised)
    if worst_case is not None:
        found[Arm.WORST_CASE] = worst_case
    return {arm: found[arm] for arm in protocol.arms if arm in found}


def write_requantised(base: Model, adapted: Model, out: Path) -> None:
    """Write the base as the adapted model was made, with nothing changed.

    The matrices that an adapter changes, or of a checkpoint all experts, are widened, summed with
    zero and rounded again: what that alone does is the format's effect and not the training's.
    """
    checkpoint = open_checkpoint(base.checkpoint)
    source = quantize_experts(checkpoint)
    if adapted.adapter is None:
        keys: Iterable[str] = _expert_keys(source)
    else:
        keys = read_adapter(adapted.adapter, checkpoint.config).deltas
    merged = Merged(source, _zero(source, keys))
    lineage = Lineage((Parent(base.name, base.sha256),), ("written again with nothing changed",))
    vocabulary = source.tokenizer_source()
    write_checkpoint(merged, out, "hf", tokenizer_from=vocabulary, lineage=lineage)


def _expert_keys(source: TensorSource) -> list[str]:
    return [
        f"{name}:{expert}"
        for name in source.names()
        if is_expert_weight(name)
        for expert in range(source.info(name).shape[0])
    ]


def _zero(source: TensorSource, keys: Iterable[str]) -> Adapter:
    """An adapter that changes these matrices by nothing."""
    shapes = tensor_shapes(source.config)
    deltas = {}
    for key in keys:
        rows, width = shapes[matrix_of(key)[0]][-2:]
        deltas[key] = LowRank(np.zeros((1, width), np.float32), np.zeros((rows, 1), np.float32))
    return Adapter(rank=1, alpha=1.0, rslora=False, deltas=deltas)
