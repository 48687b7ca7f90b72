"""Low-rank adapters on the torch twin: attached, trained, and handed over as files' adapters.

An adapted matrix computes W x + scaling * B A x; W is frozen. A is drawn, B begins at nought, so
that training begins at the base model. Small tensors (sinks, norms, biases) may be trained in full
beside them, in float32 whatever the rest has.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from aperto.adapt.attention import widen
from aperto.adapt.experts import PackedExperts
from aperto.adapt.model import ExpertLinear, GptOss, RMSNorm
from aperto.errors import ConfigError
from aperto.formats.adapter import Adapter, LowRank, check_adapter, expert_key, matrix_of

ATTENTION = ("attn.q", "attn.k", "attn.v", "attn.out")
_EXPERTS = ("moe.gate_up", "moe.down")
IN_FULL = {"sinks": ".sinks", "norms": "norm.weight", "biases": ".bias"}
"""Small tensors that can be trained in full: kind -> how their names end."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """What is adapted. Raises ConfigError on values out of range."""

    rank: int = 16
    """Inner width of each change."""
    alpha: float = 32.0
    """Numerator of the scaling."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) and not by alpha / rank."""
    dropout: float = 0.0
    """Share of a change's inputs that are left out in training."""
    targets: tuple[str, ...] = ATTENTION
    """Matrices of every layer: attn.q, attn.k, attn.v, attn.out, moe.router."""
    experts: Literal["none", "all"] | Mapping[int, tuple[int, ...]] = "none"
    """Whose matrices are adapted: none, all, or the experts named for each layer."""

    in_full: tuple[str, ...] = ()
    """Small tensors trained in full beside the changes: sinks, norms, biases."""
    first_layer: int = 0
    """Layers before this one are left as they are."""

    def __post_init__(self) -> None:
        if unknown := set(self.in_full) - IN_FULL.keys():
            raise ConfigError(
                f"in_full has {', '.join(sorted(unknown))}; expected some of {', '.join(IN_FULL)}"
            )
        unknown = set(self.targets) - {*ATTENTION, "moe.router"}
        if unknown:
            raise ConfigError(
                f"targets has {', '.join(sorted(unknown))}; expected some of "
                f"{', '.join(ATTENTION)}, moe.router"
            )
        if self.rank < 1:
            raise ConfigError(f"rank is {self.rank}; expected 1 or more")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; expected 0 or more and less than 1")
        if self.first_layer < 0:
            raise ConfigError(f"first_layer is {self.first_layer}; expected 0 or more")
        if not math.isfinite(self.alpha):
            raise ConfigError(f"alpha is {self.alpha}; expected a number")

    @property
    def scaling(self) -> float:
        """The factor of every change."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def experts_of(self, layer: int, num_experts: int) -> tuple[int, ...]:
        """The adapted experts of a layer. Raises ConfigError for one that is not there."""
        if self.experts == "none":
            return ()
        if self.experts == "all":
            return tuple(range(num_experts))
        chosen = tuple(sorted(set(dict(self.experts).get(layer, ()))))
        if any(not 0 <= expert < num_experts for expert in chosen):
            raise ConfigError(
                f"experts of layer {layer} are {chosen}; expected numbers below {num_experts}"
            )
        return chosen


class Change(nn.Module):
    """scaling * B A x, in float32."""

    def __init__(self, inputs: int, outputs: int, config: LoraConfig) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(config.rank, inputs))
        self.b = nn.Parameter(torch.zeros(outputs, config.rank))
        self.scaling, self.dropout = config.scaling, config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> what is added to the product [..., out], in x's dtype."""
        kept = nn.functional.dropout(x.to(self.a.dtype), self.dropout, self.training)
        return (kept @ self.a.T @ self.b.T * self.scaling).to(x.dtype)


class LoraLinear(nn.Module):
    """A frozen linear layer with a change."""

    def __init__(self, base: nn.Linear, config: LoraConfig) -> None:
        super().__init__()
        self.base = base
        self.change = Change(base.in_features, base.out_features, config)

    @property
    def out_features(self) -> int:
        """Outputs of the layer."""
        return self.base.out_features

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        product: Tensor = self.base(x)
        return product + self.change(x)


class LoraExperts(nn.Module):
    """One matrix of all experts, some of them with a change."""

    def __init__(
        self, base: ExpertLinear | PackedExperts, experts: tuple[int, ...], config: LoraConfig
    ) -> None:
        super().__init__()
        self.base = base
        _, outputs, inputs = base.shape
        self.changes = nn.ModuleDict({str(e): Change(inputs, outputs, config) for e in experts})

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        """x [M, in], sorted by expert, `counts` rows each -> [M, out]."""
        product: Tensor = self.base(x, counts)
        parts = [
            out + self.changes[str(expert)](rows) if str(expert) in self.changes else out
            for expert, (rows, out) in enumerate(
                zip(x.split(counts), product.split(counts), strict=True)
            )
        ]
        return torch.cat(parts)


def attach(model: GptOss, config: LoraConfig, seed: int = 0) -> None:
    """Freeze the model and add changes to it, in place. A depends on `seed` and the names alone.

    Raises ConfigError where the settings name experts or layers that are not there.
    """
    if config.first_layer >= len(model.layers):
        raise ConfigError(
            f"first_layer is {config.first_layer}; expected less than {len(model.layers)}"
        )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    _train_in_full(model, config)
    for index, layer in enumerate(model.layers):
        if index < config.first_layer:
            continue
        chosen = config.experts_of(index, model.config.layers[index].num_experts)
        for target in config.targets:
            part, _, name = target.partition(".")
            module = getattr(layer, part)
            setattr(module, name, LoraLinear(getattr(module, name), config))
        for target in _EXPERTS if chosen else ():
            name = target.partition(".")[2]
            setattr(layer.moe, name, LoraExperts(getattr(layer.moe, name), chosen, config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, change in changes(model):
            # As PEFT draws it: uniform within 1 / sqrt(inputs).
            bound = 1 / math.sqrt(change.a.shape[1])
            drawn = torch.rand(change.a.shape, generator=generator) * 2 * bound - bound
            change.a.copy_(drawn)


def _train_in_full(model: GptOss, config: LoraConfig) -> None:
    """Put a float32 parameter of its own in place of each small tensor that is trained."""
    endings = tuple(IN_FULL[kind] for kind in config.in_full)
    before = tuple(f"layers.{index}." for index in range(config.first_layer))
    for name, parameter in list(model.named_parameters()) if endings else ():
        if not name.endswith(endings) or name.startswith(before):
            continue
        module_name, _, own = name.rpartition(".")
        module = model.get_submodule(module_name)
        if isinstance(module, RMSNorm):
            module.dtype = parameter.dtype
        setattr(module, own, nn.Parameter(widen(parameter.detach()).clone()))


def trained_in_full(model: GptOss) -> Iterator[tuple[str, nn.Parameter]]:
    """The small tensors that are trained in full, by canonical name."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name.endswith(tuple(IN_FULL.values())):
            yield name.replace(".base.", "."), parameter


def changes(model: GptOss) -> Iterator[tuple[str, Change]]:
    """The changes of an adapted model by the keys of `formats.adapter`, layer by layer."""
    for index, layer in enumerate(model.layers):
        for target in (*ATTENTION, "moe.router", *_EXPERTS):
            part, _, name = target.partition(".")
            module = getattr(getattr(layer, part), name)
            tensor = f"layers.{index}.{target}.weight"
            if isinstance(module, LoraLinear):
                yield tensor, module.change
            elif isinstance(module, LoraExperts):
                for expert, change in module.changes.items():
                    assert isinstance(change, Change)
                    yield expert_key(tensor, int(expert)), change


@contextmanager
def without_changes(model: GptOss) -> Iterator[None]:
    """The base model, inside; small tensors that are trained in full stay as they are."""
    found = [change for _, change in changes(model)]
    scalings = [change.scaling for change in found]
    for change in found:
        change.scaling = 0.0
    try:
        yield
    finally:
        for change, scaling in zip(found, scalings, strict=True):
            change.scaling = scaling


def trainable(model: GptOss) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    low_rank = {
        f"{key}.{side}": getattr(change, side) for key, change in changes(model) for side in "ab"
    }
    return low_rank | dict(trained_in_full(model))


def to_adapter(model: GptOss, config: LoraConfig, base: str = "") -> Adapter:
    """The changes as they are now. Raises AdapterError where one holds NaN or infinity."""
    deltas = {
        key: LowRank(
            change.a.detach().float().cpu().numpy().copy(),
            change.b.detach().float().cpu().numpy().copy(),
        )
        for key, change in changes(model)
    }
    replaced = {
        name: parameter.detach().float().cpu().numpy().copy()
        for name, parameter in trained_in_full(model)
    }
    adapter = Adapter(config.rank, config.alpha, config.rslora, deltas, replaced, base)
    check_adapter(adapter, model.config)
    return adapter


def load(model: GptOss, adapter: Adapter) -> LoraConfig:
    """Attach an adapter as it was trained; returns its settings.

    Raises AdapterError where it does not fit.
    """
    check_adapter(adapter, model.config)
    config = _config_of(adapter)
    attach(model, config)
    with torch.no_grad():
        for key, change in changes(model):
            delta = adapter.deltas.get(key)
            if delta is None:  # a matrix that only other layers change
                change.a.zero_()
                continue
            change.a.copy_(torch.from_numpy(delta.a))
            change.b.copy_(torch.from_numpy(delta.b))
        for name, parameter in trained_in_full(model):
            if name in adapter.replaced:
                parameter.copy_(torch.from_numpy(adapter.replaced[name]))
    return config


def _config_of(adapter: Adapter) -> LoraConfig:
    targets: set[str] = set()
    experts: dict[int, set[int]] = {}
    for key in adapter.deltas:
        tensor, expert = matrix_of(key)
        _, layer, target = tensor.removesuffix(".weight").split(".", 2)
        if expert is None:
            targets.add(target)
        else:
            experts.setdefault(int(layer), set()).add(expert)
    ordered = tuple(name for name in (*ATTENTION, "moe.router") if name in targets)
    return LoraConfig(
        rank=adapter.rank,
        alpha=adapter.alpha,
        rslora=adapter.rslora,
        targets=ordered,
        experts={layer: tuple(sorted(these)) for layer, these in experts.items()} or "none",
        in_full=tuple(
            kind
            for kind, ending in IN_FULL.items()
            if any(name.endswith(ending) for name in adapter.replaced)
        ),
    )
