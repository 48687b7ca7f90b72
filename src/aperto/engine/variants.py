"""Variants of a model that are served beside it: adapters, and interventions read from a file.

An intervention file is JSON, with its vectors in an .npz file of the same name beside it:

    {"format": "aperto-variant", "version": 1, "description": "more of expert 3",
     "changes": [
       {"point": "layers.2.resid_post", "scale": 0.9, "add": "tone", "strength": 4.0},
       {"point": "layers.*.moe.router_logits", "bias": {"3": 1.5}, "mask": [0, 7]},
       {"point": "layers.1.moe.topk", "count": 2}]}

"add" names a vector of the .npz file. Points: the residual stream of a layer (resid_pre,
resid_mid, resid_post), its router (values are added to logits, masked experts are never chosen),
and the number of experts of a token. A star means every layer; of two changes of one thing the
later counts.
"""

from __future__ import annotations

import dataclasses
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aperto.config import ModelConfig
from aperto.engine.pages import PrefixNode
from aperto.errors import AdapterError
from aperto.formats import jsonfile
from aperto.formats.adapter import Adapter, check_adapter, is_adapter, matrix_of, read_adapter

Float32 = NDArray[np.float32]

_POINT = re.compile(
    r"layers\.(\*|\d+)\.(resid_pre|resid_mid|resid_post|moe\.router_logits|moe\.topk)"
)
_KEYS = {
    "moe.router_logits": {"point", "bias", "mask"},
    "moe.topk": {"point", "count"},
}
_RESIDUAL_KEYS = {"point", "add", "strength", "scale"}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_VECTORS = {
    "attn.norm.weight": "attn.norm",
    "moe.norm.weight": "moe.norm",
    "attn.sinks": "attn.sinks",
}
_NO_VALUES = np.empty(0, np.float32)


@dataclasses.dataclass(frozen=True, slots=True)
class Residual:
    """x = scale * x + add at a point of the residual stream."""

    layer: int
    point: str
    scale: float
    add: Float32 | None


@dataclasses.dataclass(frozen=True, slots=True)
class RouterBias:
    """Values added to the router's logits; minus infinity masks an expert."""

    layer: int
    values: Float32


@dataclasses.dataclass(frozen=True, slots=True)
class TopK:
    """How many experts a token gets."""

    layer: int
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Interventions:
    """What an intervention file asks for."""

    changes: tuple[Residual | RouterBias | TopK, ...]
    description: str = ""


Changes: TypeAlias = Adapter | Interventions


class LoadedVariant:
    """A variant that an engine serves."""

    def __init__(self, name: str, core: Any, num_groups: int) -> None:
        self.name = name
        self.core = core
        """What the forward pass takes: see `native.Model.new_variant`."""
        self.root = PrefixNode(None, b"", num_groups)
        """Keys and values depend on the variant, so its prefixes are found from here alone."""


def read_changes(path: str | Path, config: ModelConfig) -> Changes:
    """Read an adapter's folder or an intervention file for a model with this configuration.

    Raises AdapterError for what is neither or does not fit the model, FormatError for damage.
    """
    path = Path(path)
    if is_adapter(path):
        return read_adapter(path, config)
    if path.suffix == ".json" and path.is_file():
        return _read_interventions(path, config)
    raise AdapterError(
        f"{path} is no variant; expected an adapter's folder with adapter_config.json, or an "
        "intervention file NAME.json"
    )


def build(model: Any, changes: Changes) -> Any:
    """The core's form of a variant of `model` (a `native.Model`).

    Raises AdapterError where it does not fit the model.
    """
    core = model.new_variant()
    try:
        if isinstance(changes, Adapter):
            check_adapter(changes, model.config)
            _apply_adapter(core, changes)
        else:
            _apply_interventions(core, changes)
    except ValueError as error:
        raise AdapterError(f"the variant does not fit the model: {error}") from error
    return core


def _apply_adapter(core: Any, adapter: Adapter) -> None:
    scaling = np.float32(adapter.scaling)
    for key, delta in adapter.deltas.items():
        tensor, expert = matrix_of(key)
        layer, rest = _split(tensor)
        part = rest.removesuffix(".weight")
        a = np.ascontiguousarray(delta.a, np.float32)
        b = np.ascontiguousarray(delta.b * scaling, np.float32)
        core.set_low_rank(layer, part, expert or 0, a, b)
    for name, array in adapter.replaced.items():
        values = np.ascontiguousarray(array, np.float32)
        if name == "norm.weight":
            core.replace_vector(0, "norm", values)
            continue
        layer, rest = _split(name)
        if rest in _VECTORS:
            core.replace_vector(layer, _VECTORS[rest], values)
        elif rest.endswith(".bias"):
            rows = values if values.ndim == 2 else values[None]
            for expert, row in enumerate(rows):
                core.set_bias(layer, rest.removesuffix(".bias"), expert, row, True)
        else:
            raise AdapterError(f"{name} cannot be replaced beside a running model; merge it first")


def _split(name: str) -> tuple[int, str]:
    found = _LAYER.fullmatch(name)
    if found is None:
        raise AdapterError(f"{name} cannot be changed beside a running model; merge it first")
    return int(found[1]), found[2]


def _apply_interventions(core: Any, interventions: Interventions) -> None:
    for change in interventions.changes:
        match change:
            case Residual(layer, point, scale, add):
                core.set_residual(layer, point, scale, _NO_VALUES if add is None else add)
            case RouterBias(layer, values):
                core.set_bias(layer, "moe.router", 0, values, False)
            case TopK(layer, count):
                core.set_experts_per_token(layer, count)


# --- the file ------------------------------------------------------------------------------------


def _read_interventions(path: Path, config: ModelConfig) -> Interventions:
    document = jsonfile.read_object(path)
    if document.get("format") != "aperto-variant" or document.get("version") != 1:
        raise AdapterError(
            f'{path}: expected "format": "aperto-variant" and "version": 1; found '
            f"{document.get('format')!r} and {document.get('version')!r}"
        )
    listed = document.get("changes")
    if not isinstance(listed, list) or not listed:
        raise AdapterError(f"{path}: changes is {listed!r:.60}; expected a list of changes")
    vectors = _read_vectors(path.with_suffix(".npz"))
    changes = [
        change
        for number, item in enumerate(listed, 1)
        for change in _read_change(item, f"{path}: change {number}", vectors, config)
    ]
    return Interventions(tuple(changes), str(document.get("description", "")))


def _read_vectors(path: Path) -> Mapping[str, Float32]:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: np.ascontiguousarray(arrays[name], np.float32) for name in arrays}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise AdapterError(f"{path} cannot be read as an .npz file of vectors: {error}") from error


def _read_change(
    item: object, where: str, vectors: Mapping[str, Float32], config: ModelConfig
) -> Iterator[Residual | RouterBias | TopK]:
    if not isinstance(item, dict):
        raise AdapterError(f"{where} is {item!r:.60}; expected an object")
    found = _POINT.fullmatch(str(item.get("point")))
    if found is None:
        raise AdapterError(
            f"{where}: point is {item.get('point')!r}; expected layers.N.resid_pre, resid_mid, "
            "resid_post, moe.router_logits or moe.topk, N a layer or *"
        )
    point = found[2]
    unknown = sorted(item.keys() - _KEYS.get(point, _RESIDUAL_KEYS))
    if unknown:
        raise AdapterError(f"{where}: {point} has no {', '.join(unknown)}")
    for layer in _layers(found[1], where, config):
        if point == "moe.topk":
            yield TopK(layer, _count(item, where, config.layers[layer].num_experts))
        elif point == "moe.router_logits":
            yield RouterBias(layer, _router_bias(item, where, config.layers[layer].num_experts))
        else:
            yield _residual(item, where, layer, point, vectors, config.hidden_size)


def _layers(text: str, where: str, config: ModelConfig) -> range:
    num = len(config.layers)
    if text == "*":
        return range(num)
    if int(text) >= num:
        raise AdapterError(f"{where}: there is no layer {text}; the model has 0..{num - 1}")
    return range(int(text), int(text) + 1)


def _number(value: object, where: str, name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise AdapterError(f"{where}: {name} is {value!r}; expected a finite number")
    return float(value)


def _count(item: Mapping[str, Any], where: str, num_experts: int) -> int:
    count = item.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= num_experts:
        raise AdapterError(f"{where}: count is {count!r}; expected 1..{num_experts}")
    return count


def _expert(value: object, where: str, num_experts: int) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit()) or int(text) >= num_experts:
        raise AdapterError(f"{where}: expert {value!r}; expected 0..{num_experts - 1}")
    return int(text)


def _router_bias(item: Mapping[str, Any], where: str, num_experts: int) -> Float32:
    bias, mask = item.get("bias", {}), item.get("mask", [])
    if not isinstance(bias, dict) or not isinstance(mask, list):
        raise AdapterError(f"{where}: expected bias as {{expert: value}} and mask as [expert]")
    values = np.zeros(num_experts, np.float32)
    for expert, value in bias.items():
        values[_expert(expert, where, num_experts)] = _number(value, where, "bias")
    for expert in mask:
        values[_expert(expert, where, num_experts)] = -np.inf
    if np.isneginf(values).all():
        raise AdapterError(f"{where}: all {num_experts} experts are masked; expected one left")
    return values


def _residual(
    item: Mapping[str, Any],
    where: str,
    layer: int,
    point: str,
    vectors: Mapping[str, Float32],
    hidden: int,
) -> Residual:
    scale = _number(item.get("scale", 1.0), where, "scale")
    strength = _number(item.get("strength", 1.0), where, "strength")
    name = item.get("add")
    if name is None:
        return Residual(layer, point, scale, None)
    vector = vectors.get(str(name))
    if vector is None:
        known = ", ".join(vectors) or "none"
        raise AdapterError(f"{where}: the .npz file has no vector {name!r}; it has: {known}")
    if vector.shape != (hidden,) or not np.isfinite(vector).all():
        raise AdapterError(
            f"{where}: {name!r} has the shape {vector.shape}; expected {hidden} finite numbers"
        )
    return Residual(layer, point, scale, vector * np.float32(strength))
