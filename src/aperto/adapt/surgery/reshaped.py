"""A model with other layers and fewer experts, seen as one more source of tensors.

Tensors are renamed and experts picked by index; what is kept is kept byte for byte, and nothing is
read before it is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aperto.config import LayerConfig, ModelConfig
from aperto.errors import ConfigError
from aperto.formats.checkpoint import TensorSource, TokenizerSource
from aperto.formats.names import tensor_shapes
from aperto.formats.tensor import Tensor, TensorInfo, num_bytes

_PICKED = ("moe.router.weight", "moe.router.bias", "moe.gate_up.weight", "moe.gate_up.bias",
           "moe.down.weight", "moe.down.bias")  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class LayerPlan:
    """Where a layer of the new model comes from."""

    source: int
    """Number of the layer in the old model."""
    experts: tuple[int, ...]
    """Experts that are kept, by their old numbers, in their new order."""
    config: LayerConfig
    """The new layer's settings."""


class Reshaped:
    """The layers of `plan`, in its order; all else is the base's.

    Raises:
        ConfigError: a plan names a layer or an expert that is not there, an expert twice, or more
            experts a token than are kept.
    """

    def __init__(self, base: TensorSource, plan: Sequence[LayerPlan]) -> None:
        for index, layer in enumerate(plan):
            _check(base.config, index, layer)
        self._base, self._plan = base, tuple(plan)
        self.config: ModelConfig = dataclasses.replace(
            base.config, layers=tuple(layer.config for layer in plan)
        )
        """Architecture of the result."""
        self._shapes = tensor_shapes(self.config)

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """Generation defaults of the base."""
        return self._base.generation_config

    def names(self) -> tuple[str, ...]:
        """Canonical names of the result."""
        return tuple(self._shapes)

    def tokenizer_source(self) -> TokenizerSource:
        """Vocabulary of the base."""
        return self._base.tokenizer_source()

    def info(self, name: str) -> TensorInfo:
        """Describe a tensor of the result without reading it."""
        old, _ = self._origin(name)
        info, shape = self._base.info(old), self._shapes[name]
        return dataclasses.replace(
            info, name=name, shape=shape, nbytes=num_bytes(info.dtype, shape)
        )

    def tensor(self, name: str) -> Tensor:
        """Read a tensor of the result."""
        old, experts = self._origin(name)
        tensor = self._base.tensor(old)
        if experts is None or experts == tuple(range(tensor.shape[0])):
            return dataclasses.replace(tensor, name=name)
        index = np.array(experts)
        scales = None if tensor.scales is None else tensor.scales[index]
        return Tensor(name, tensor.dtype, self._shapes[name], tensor.data[index], scales)

    def _origin(self, name: str) -> tuple[str, tuple[int, ...] | None]:
        """The base's name of a tensor, and the experts picked of it where it is one an expert."""
        head, _, rest = name.partition(".")
        if head != "layers":
            return name, None
        number, _, part = rest.partition(".")
        layer = self._plan[int(number)]
        return f"layers.{layer.source}.{part}", layer.experts if part in _PICKED else None


def unchanged(config: ModelConfig) -> list[LayerPlan]:
    """The plan that changes nothing; what others begin with."""
    return [
        LayerPlan(index, tuple(range(layer.num_experts)), layer)
        for index, layer in enumerate(config.layers)
    ]


def without_layers(config: ModelConfig, dropped: Sequence[int]) -> list[LayerPlan]:
    """Every layer but those. Raises ConfigError for one that is not there, or if none is left."""
    _check_layers(config, dropped)
    plan = [layer for layer in unchanged(config) if layer.source not in set(dropped)]
    if not plan:
        raise ConfigError(f"all {config.num_layers} layers are dropped; expected one to be left")
    return plan


def with_repeats(config: ModelConfig, repeated: Sequence[int]) -> list[LayerPlan]:
    """Those layers twice, one after the other. Raises ConfigError for one that is not there."""
    _check_layers(config, repeated)
    return [
        layer for layer in unchanged(config) for _ in range(1 + list(repeated).count(layer.source))
    ]


def with_top_k(config: ModelConfig, count: int) -> list[LayerPlan]:
    """Another number of experts a token in every layer."""
    return [_with(layer, experts_per_token=count) for layer in unchanged(config)]


def with_window(config: ModelConfig, window: int) -> list[LayerPlan]:
    """Another window in the layers that have one. Raises ConfigError for one below 1."""
    if window < 1:
        raise ConfigError(f"window is {window}; expected 1 token or more")
    return [
        _with(layer, window=window) if layer.config.window else layer for layer in unchanged(config)
    ]


def with_experts(config: ModelConfig, kept: Mapping[int, Sequence[int]]) -> list[LayerPlan]:
    """Those experts of the layers named; tokens go to no more than there are."""
    _check_layers(config, tuple(kept))
    return [_keeping(layer, kept.get(layer.source)) for layer in unchanged(config)]


def most_valuable(
    scores: Mapping[int, Sequence[float]], keep: Sequence[int]
) -> dict[int, tuple[int, ...]]:
    """The `keep[layer]` experts of each layer with the highest scores, ascending; ties to the
    lower number."""
    return {
        layer: tuple(sorted(np.argsort(-np.asarray(row), kind="stable")[: keep[layer]].tolist()))
        for layer, row in scores.items()
    }


def _keeping(layer: LayerPlan, experts: Sequence[int] | None) -> LayerPlan:
    if experts is None:
        return layer
    settings = layer.config
    top_k = min(settings.experts_per_token, len(experts))
    changed = dataclasses.replace(settings, num_experts=len(experts), experts_per_token=top_k)
    return LayerPlan(layer.source, tuple(experts), changed)


def _with(layer: LayerPlan, **fields: int) -> LayerPlan:
    return dataclasses.replace(layer, config=dataclasses.replace(layer.config, **fields))


def _check_layers(config: ModelConfig, numbers: Sequence[int]) -> None:
    wrong = [number for number in numbers if not 0 <= number < config.num_layers]
    if wrong:
        raise ConfigError(
            f"there is no layer {wrong[0]}; expected numbers from 0 to {config.num_layers - 1}"
        )


def _check(config: ModelConfig, index: int, layer: LayerPlan) -> None:
    _check_layers(config, (layer.source,))
    there, kept = config.layers[layer.source].num_experts, layer.experts
    if not kept or len(set(kept)) != len(kept) or not all(0 <= e < there for e in kept):
        raise ConfigError(
            f"layer {index} keeps the experts {kept}; expected different numbers below {there}"
        )
    if len(kept) != layer.config.num_experts:
        raise ConfigError(
            f"layer {index} keeps {len(kept)} experts and says it has {layer.config.num_experts}"
        )
