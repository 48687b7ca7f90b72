"""Adapters on disk: low-rank changes of a model's matrices, in the folder layout of PEFT.

A folder holds adapter_config.json and adapter_model.safetensors. Every stored key must become a
change of a tensor that the base model has; anything else is an error, never skipped.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aperto.config import ModelConfig
from aperto.errors import AdapterError, UsageError
from aperto.formats import jsonfile, safetensors
from aperto.formats.names import all_names, is_expert_weight, is_gate_up, tensor_shapes
from aperto.formats.tensor import bf16_to_float32

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ROOT = re.compile(r"base_model\.model\.(?P<name>.+?)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
_EXPERTS = ".mlp.experts"
_INNER = ".base_layer"
_FULL = ("norm.weight", "attn.sinks", ".bias")

Float32 = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class LowRank:
    """A change of one matrix: scaling * b @ a."""

    a: Float32
    """[rank, inputs]"""
    b: Float32
    """[outputs, rank]"""

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of the matrix."""
        return self.b.shape[0], self.a.shape[1]


@dataclasses.dataclass(frozen=True, slots=True)
class Adapter:
    """What was trained, by canonical names."""

    rank: int
    """Inner width of the changes."""
    alpha: float
    """The numerator of the scaling."""
    rslora: bool
    """Whether the scaling is alpha / sqrt(rank) and not alpha / rank."""
    deltas: Mapping[str, LowRank]
    """Changes by tensor; of one expert as "layers.3.moe.down.weight:17"."""
    replaced: Mapping[str, Float32] = dataclasses.field(default_factory=dict)
    """Small tensors trained in full: norms, biases, sinks."""
    base: str = ""
    """The base model's name or path, as the adapter was trained on it."""

    @property
    def scaling(self) -> float:
        """The factor of every change."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        low_rank = sum(delta.a.size + delta.b.size for delta in self.deltas.values())
        return low_rank + sum(array.size for array in self.replaced.values())


def expert_key(tensor: str, expert_idx: int) -> str:
    """The name of one expert's matrix, e.g. "layers.3.moe.down.weight:17"."""
    return f"{tensor}:{expert_idx}"


def matrix_of(key: str) -> tuple[str, int | None]:
    """Split a delta's key into the tensor and, for experts, the expert."""
    tensor, colon, expert = key.partition(":")
    return tensor, int(expert) if colon else None


def check_adapter(adapter: Adapter, config: ModelConfig) -> None:
    """Raise AdapterError, with a list, unless every key matches a tensor of the model."""
    shapes = tensor_shapes(config)
    wrong = [
        *(_delta_fault(key, delta, adapter.rank, shapes) for key, delta in adapter.deltas.items()),
        *(_full_fault(name, array, shapes) for name, array in adapter.replaced.items()),
    ]
    faults = [fault for fault in wrong if fault]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise AdapterError(
            f"the adapter does not fit the model: {'; '.join(faults[:5])}{more}; it was trained on "
            f"{adapter.base or 'another model'}"
        )


def _delta_fault(
    key: str, delta: LowRank, rank: int, shapes: Mapping[str, tuple[int, ...]]
) -> str | None:
    tensor, expert = matrix_of(key)
    shape = shapes.get(tensor)
    if shape is None:
        return f"{key}: the model has no such tensor"
    if len(shape) - 2 != (expert is not None) or (expert is not None and expert >= shape[0]):
        return f"{key}: the model's tensor has the shape {shape}"
    if delta.shape != shape[-2:]:
        return f"{key}: the change has the shape {delta.shape}, the matrix {shape[-2:]}"
    if not delta.a.shape[0] == delta.b.shape[1] == rank:
        return f"{key}: A has rank {delta.a.shape[0]}, B {delta.b.shape[1]}, the adapter {rank}"
    if not (np.isfinite(delta.a).all() and np.isfinite(delta.b).all()):
        return f"{key}: it holds NaN or infinity"
    return None


def _full_fault(name: str, array: Float32, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    if shapes.get(name) is None:
        return f"{name}: the model has no such tensor"
    if array.shape != shapes[name]:
        return f"{name}: found the shape {array.shape}, expected {shapes[name]}"
    return None if np.isfinite(array).all() else f"{name}: it holds NaN or infinity"


@dataclasses.dataclass(frozen=True, slots=True)
class Summary:
    """What an adapter's files say without its base model."""

    base: str
    """The model it was trained on, as it was named then."""
    rank: int
    """Inner width of the changes."""
    scaling: float
    """The factor of every change."""
    modules: Mapping[str, int]
    """Kind of module or parameter -> how many of them are changed."""
    num_parameters: int
    """Stored numbers."""
    nbytes: int
    """Size of the weights file."""


# --- reading -------------------------------------------------------------------------------------


def is_adapter(path: Path) -> bool:
    """Whether a folder is an adapter's."""
    return (path / CONFIG).is_file()


def summarize(path: Path) -> Summary:
    """Describe an adapter's folder. Raises as `read_adapter`, but for what only the base tells."""
    settings = jsonfile.read_object(path / CONFIG)
    rank, alpha = _checked_settings(settings, path)
    file = safetensors.SafetensorsFile(path / WEIGHTS)
    pairs = [match for match in map(_ROOT.fullmatch, file.entries) if match]
    modules = {match["name"] for match in pairs}
    parameters = settings.get("target_parameters")
    changed = [_parameter_of(module, modules, parameters) for module in modules]
    in_full = file.entries.keys() - {match[0] for match in pairs}
    changed += [key.removeprefix(_PREFIX).replace(_INNER, "") for key in in_full]
    kinds = Counter(re.sub(r"\d+", "*", name.removesuffix(".weight")) for name in changed)
    divisor = math.sqrt(rank) if settings.get("use_rslora") is True else rank
    return Summary(
        str(settings.get("base_model_name_or_path") or "not said"),
        rank,
        alpha / divisor,
        dict(sorted(kinds.items())),
        sum(math.prod(entry.shape) for entry in file.entries.values()),
        file.path.stat().st_size,
    )


def read_adapter(path: str | Path, config: ModelConfig) -> Adapter:
    """Read an adapter of a model with this configuration.

    Raises AdapterError for a folder that is none, for what is not supported (DoRA, ranks that
    differ, embeddings), and for any key or shape that matches nothing; FormatError for damage.
    """
    path = Path(path)
    if not is_adapter(path):
        raise AdapterError(f"{path}: found no {CONFIG}; expected the folder of a PEFT adapter")
    settings = jsonfile.read_object(path / CONFIG)
    rank, alpha = _checked_settings(settings, path)
    file = safetensors.SafetensorsFile(path / WEIGHTS)
    pairs: dict[str, dict[str, Float32]] = {}
    replaced: dict[str, Float32] = {}
    canonical = {row.hf: row.canonical for row in all_names(config)}
    for key in file.entries:
        array = _float32(file, key)
        found = _ROOT.fullmatch(key)
        if found:
            pairs.setdefault(found["name"], {})[found["side"]] = array
            continue
        plain = key.removeprefix(_PREFIX).replace(".modules_to_save", "").replace(_INNER, "")
        name = canonical.get(plain)
        if name is None or not name.endswith(_FULL):
            raise AdapterError(
                f"{path}: the key {key!r} is no change that can be applied; expected low-rank "
                "pairs of attention, router and experts, and whole norms, biases and sinks"
            )
        replaced[name] = array
    deltas: dict[str, LowRank] = {}
    for module, sides in pairs.items():
        if sides.keys() != {"A", "B"}:
            raise AdapterError(f"{path}: {module} has only lora_{next(iter(sides))} of its pair")
        name = canonical.get(_parameter_of(module, pairs.keys(), settings.get("target_parameters")))
        if name is None:
            raise AdapterError(f"{path}: the model has no module {module!r}; it was not applied")
        deltas |= _deltas_of(name, sides["A"], sides["B"], rank, config, path)
    base = str(settings.get("base_model_name_or_path") or "")
    adapter = Adapter(rank, alpha, settings.get("use_rslora") is True, deltas, replaced, base)
    check_adapter(adapter, config)
    return adapter


def _checked_settings(settings: Mapping[str, Any], path: Path) -> tuple[int, float]:
    if settings.get("peft_type") != "LORA":
        raise AdapterError(f"{path}: peft_type is {settings.get('peft_type')!r}; expected 'LORA'")
    for name in ("use_dora", "alora_invocation_tokens", "fan_in_fan_out", "megatron_config"):
        if settings.get(name):
            raise AdapterError(f"{path}: {name} is set, which is not supported")
    for name in ("rank_pattern", "alpha_pattern"):
        if settings.get(name):
            raise AdapterError(f"{path}: {name} is {settings[name]!r:.80}; expected one for all")
    if settings.get("lora_bias") or settings.get("bias") not in (None, "none"):
        raise AdapterError(f"{path}: biases of the low-rank pairs are not supported")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise AdapterError(f"{path}: r is {rank!r}; expected a whole number above 0")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise AdapterError(f"{path}: lora_alpha is {alpha!r}; expected a number")
    return rank, float(alpha)


def _float32(file: safetensors.SafetensorsFile, key: str) -> Float32:
    array = file.array(key)
    return bf16_to_float32(array) if file.entries[key].dtype == "BF16" else array.astype(np.float32)


def _parameter_of(module: str, modules: Collection[str], parameters: object) -> str:
    """The tensor that a wrapper of PEFT's changes.

    The experts' two matrices belong to one module. Where both are changed, the wrapper of gate_up
    stands inside that of down; where one is, the settings tell which.
    """
    if module.endswith(_INNER):
        return f"{module.removesuffix(_INNER)}.gate_up_proj"
    if not module.endswith(_EXPERTS):
        return f"{module}.weight"
    is_outer = f"{module}{_INNER}" in modules
    names = parameters if isinstance(parameters, list) else []
    mine = [str(name) for name in names if f"{module}.".endswith(f"{_stem(str(name))}.")]
    is_gate_up = not is_outer and not any(name.endswith("down_proj") for name in mine)
    return f"{module}.{'gate_up_proj' if is_gate_up else 'down_proj'}"


def _stem(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _deltas_of(
    name: str, a: Float32, b: Float32, rank: int, config: ModelConfig, path: Path
) -> dict[str, LowRank]:
    """The change of a matrix, or of each expert that has any.

    For experts A is [experts * rank, in], expert by expert, and B [out, rank * experts], rank by
    rank.
    """
    if a.ndim != 2 or b.ndim != 2:
        raise AdapterError(f"{path}: {name} has A {a.shape} and B {b.shape}; expected matrices")
    if not is_expert_weight(name):
        return {name: LowRank(a, b)}
    num = tensor_shapes(config)[name][0]
    if a.shape[0] != rank * num or b.shape[1] != rank * num:
        raise AdapterError(
            f"{path}: {name} has A {a.shape} and B {b.shape}; expected {rank * num} rows and "
            f"columns for {num} experts of rank {rank}"
        )
    of_a = a.reshape(num, rank, a.shape[1])
    of_b = b.reshape(b.shape[0], rank, num)
    return {
        expert_key(name, idx): LowRank(of_a[idx], np.ascontiguousarray(of_b[:, :, idx]))
        for idx in range(num)
        if of_b[:, :, idx].any()  # an untouched expert has B = 0
    }


# --- writing -------------------------------------------------------------------------------------


def write_adapter(path: str | Path, adapter: Adapter, config: ModelConfig) -> None:
    """Write an adapter as a new folder that PEFT loads on transformers' GptOssForCausalLM.

    Norms, biases and sinks trained in full stand beside the pairs under the names they have in
    PEFT's model, and are put in place of the base's when it loads them. Raises UsageError if `path`
    exists, AdapterError if it does not fit `config`.
    """
    path = Path(path)
    if path.exists():
        raise UsageError(f"{path} exists already; expected a new name; delete it or choose another")
    check_adapter(adapter, config)
    arrays = _peft_arrays(adapter, config)
    entries = {name: ("F32", array.shape) for name, array in arrays.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as made:
        partial = Path(made) / path.name
        partial.mkdir()
        with (partial / WEIGHTS).open("wb") as file:
            file.write(safetensors.header_bytes(entries, {"format": "pt"}))
            for array in arrays.values():
                file.write(np.ascontiguousarray(array, dtype="<f4").tobytes())
        text = json.dumps(_peft_settings(adapter, config), indent=2) + "\n"
        (partial / CONFIG).write_text(text, encoding="utf-8")
        partial.rename(path)


def _peft_arrays(adapter: Adapter, config: ModelConfig) -> dict[str, Float32]:
    hf = {row.canonical: row.hf for row in all_names(config)}
    shapes = tensor_shapes(config)
    arrays: dict[str, Float32] = {}
    experts: dict[str, dict[int, LowRank]] = {}
    for key, delta in adapter.deltas.items():
        tensor, expert = matrix_of(key)
        if expert is not None:
            experts.setdefault(tensor, {})[expert] = delta
            continue
        module = _PREFIX + hf[tensor].removesuffix(".weight")
        arrays[f"{module}.lora_A.weight"] = delta.a
        arrays[f"{module}.lora_B.weight"] = delta.b
    for tensor, changes in experts.items():
        num, out, inputs = shapes[tensor]
        a = np.zeros((num, adapter.rank, inputs), np.float32)
        b = np.zeros((out, adapter.rank, num), np.float32)
        for idx, delta in changes.items():
            a[idx], b[:, :, idx] = delta.a, delta.b
        module = _PREFIX + _stem(hf[tensor])
        if is_gate_up(tensor) and tensor.replace("gate_up", "down") in experts:
            module += _INNER
        arrays[f"{module}.lora_A.weight"] = a.reshape(-1, inputs)
        arrays[f"{module}.lora_B.weight"] = b.reshape(out, -1)
    pairs = tuple(arrays)
    return arrays | {
        _wrapped(_PREFIX + hf[name], pairs): array for name, array in adapter.replaced.items()
    }


def _wrapped(key: str, pairs: Collection[str]) -> str:
    """The key of a whole tensor: the module it belongs to lies inside each of its wrappers."""
    module, _, own = key.rpartition(".")
    depth = sum(pair.endswith(".lora_A.weight") and _root(pair) == module for pair in pairs)
    return f"{module}{_INNER * depth}.{own}"


def _root(pair: str) -> str:
    """The base's module that a pair changes."""
    return pair.removesuffix(".lora_A.weight").removesuffix(_INNER)


def _peft_settings(adapter: Adapter, config: ModelConfig) -> dict[str, Any]:
    """PEFT's settings, each target by its full name: not all layers need have one."""
    hf = {row.canonical: row.hf for row in all_names(config)}
    tensors = dict.fromkeys(matrix_of(key)[0] for key in adapter.deltas)
    parameters = [name for name in tensors if ".moe." in name]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base or None,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "use_rslora": adapter.rslora,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [hf[n].removesuffix(".weight") for n in tensors if n not in parameters],
        "target_parameters": [hf[name] for name in parameters] or None,
    }
