"""Configuration: the model's architecture, the engine's settings, the user's config file.

The only module that reads environment variables.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from aperto.errors import ConfigError

Precision = Literal["q8", "exact"]
PRECISIONS: tuple[Precision, ...] = ("q8", "exact")


@dataclasses.dataclass(frozen=True, slots=True)
class LayerConfig:
    """What may differ from one transformer layer to the next."""

    window: int
    """Attention window in tokens, the token itself included; 0 means the whole context."""
    num_experts: int
    """Number of experts of the layer."""
    experts_per_token: int
    """How many experts each token is routed to."""


@dataclasses.dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding with YaRN scaling by parts (arXiv 2309.00071, section 3.2)."""

    theta: float = 150000.0
    """Base of the geometric frequency series."""
    factor: float = 32.0
    """Context extension factor; 1.0 turns YaRN off."""
    beta_fast: float = 32.0
    """Rotations over the original context above which a frequency is left alone (ntk_beta)."""
    beta_slow: float = 1.0
    """Rotations over the original context below which it is fully interpolated (ntk_alpha)."""
    original_context: int = 4096
    """Context length in tokens the model was first trained on."""
    truncate: bool = False
    """Whether the ramp's ends are rounded to whole dimensions (gpt-oss: no)."""

    @property
    def concentration(self) -> float:
        """Factor of cosines and sines, which sharpens attention over the extended context."""
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1.0 else 1.0

    def frequencies(self, head_dim: int) -> list[float]:
        """Radians a position turns each of the head_dim / 2 pairs, in double precision."""
        half = head_dim // 2
        plain = [self.theta ** (-2.0 * i / head_dim) for i in range(half)]
        if self.factor <= 1.0:
            return plain
        low, high = self._ramp_end(half, self.beta_fast), self._ramp_end(half, self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0.0), min(high, head_dim - 1.0)
        width = max(high - low, 1e-3)
        result = []
        for i, frequency in enumerate(plain):
            interpolated = min(max((i - low) / width, 0.0), 1.0)
            result.append(frequency * (1.0 - interpolated + interpolated / self.factor))
        return result

    def _ramp_end(self, half: int, rotations: float) -> float:
        """Index of the pair that turns this often over the original context."""
        return (
            half
            * math.log(self.original_context / (rotations * 2 * math.pi))
            / math.log(self.theta)
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ModelConfig:
    """Architecture of a gpt-oss checkpoint."""

    vocab_size: int
    """Rows of the embedding and of the head."""
    hidden_size: int
    """Width of the residual stream."""
    intermediate_size: int
    """Width inside one expert."""
    head_dim: int
    """Width of one attention head."""
    num_attention_heads: int
    """Query heads."""
    num_key_value_heads: int
    """Key and value heads; divides num_attention_heads."""
    layers: tuple[LayerConfig, ...]
    """One entry a transformer layer, in order."""
    rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    """Rotary embedding settings."""
    max_context: int = 131072
    """Longest supported sequence in tokens (max_position_embeddings)."""
    swiglu_limit: float = 7.0
    """Clamp of the expert activation's inputs."""
    rms_norm_eps: float = 1e-5
    """Epsilon of every RMSNorm."""
    eos_token_ids: tuple[int, ...] = ()
    """Token ids that the checkpoint declares as ends of generation."""
    pad_token_id: int | None = None
    """Padding token id, where the checkpoint names one."""

    @property
    def num_layers(self) -> int:
        """Number of transformer layers."""
        return len(self.layers)

    @property
    def window_groups(self) -> tuple[int, ...]:
        """Distinct attention windows, in order of first use; layers of one share KV pages."""
        return tuple(dict.fromkeys(layer.window for layer in self.layers))

    @property
    def q_size(self) -> int:
        """Rows of the query projection."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of the key (and of the value) projection."""
        return self.num_key_value_heads * self.head_dim

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "head_dim",
            "num_attention_heads",
            "num_key_value_heads",
            "max_context",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
                raise ConfigError(f"{name} is {value!r}; expected a positive integer")
        if not self.layers:
            raise ConfigError("the model has no layers; expected at least one")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        for name in ("hidden_size", "intermediate_size"):
            if getattr(self, name) % 32:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; expected a multiple of 32, "
                    "the MXFP4 block length"
                )
        if self.head_dim % 16:
            raise ConfigError(f"head_dim is {self.head_dim}; expected a multiple of 16")
        if self.q_size % 32:
            raise ConfigError(
                f"num_attention_heads x head_dim is {self.num_attention_heads} x {self.head_dim}; "
                "expected a product that is a multiple of 32, the block length of activations"
            )
        for index, layer in enumerate(self.layers):
            if layer.window < 0:
                raise ConfigError(f"layer {index}: window is {layer.window}; expected >= 0")
            if not 1 <= layer.experts_per_token <= layer.num_experts:
                raise ConfigError(
                    f"layer {index}: experts_per_token is {layer.experts_per_token}; "
                    f"expected 1..{layer.num_experts}"
                )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How the engine batches requests and how much memory it keeps for their context."""

    context_tokens: int | None = None
    """Longest prompt and answer together in tokens; None takes as much of the model's context
    as 256 MiB of keys and values hold, but at least 8192 (or all the model has)."""
    cache_tokens: int | None = None
    """Tokens of all sequences that the key-value cache holds at once; None means one sequence of
    context_tokens."""
    max_sequences: int = 16
    """Sequences that are computed at once; others wait."""
    max_waiting: int = 256
    """Requests that may wait; more are refused with QueueFullError."""
    max_batch_tokens: int = 512
    """Most tokens of one forward pass, prompts and answers together; at least max_sequences."""
    mixed_prefill_tokens: int = 128
    """Most prompt tokens of a forward pass that also continues answers, so that a long prompt
    does not hold them up."""
    share_prefixes: bool = True
    """Whether keys and values of equal prefixes are kept and shared between requests."""
    prefix_dir: Path | None = None
    """Folder where keys and values up to cut points outlive the process; None writes none. They
    tell what was said: the files are readable by their owner alone."""
    prefix_least_tokens: int = 512
    """Shortest prefix that is saved there; shorter ones are as quickly computed again."""
    prefix_disk_bytes: int = 4 << 30
    """Most bytes of that folder; what was not used for longest goes first."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type not in ("int", "int | None") or (value is None and field.type != "int"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
                raise ConfigError(f"{field.name} is {value!r}; expected a positive integer")
        if self.max_batch_tokens < self.max_sequences:
            raise ConfigError(
                f"max_batch_tokens is {self.max_batch_tokens}; expected at least max_sequences, "
                f"{self.max_sequences}, so that every answer can go on at each step"
            )


Effort = Literal["low", "medium", "high"]
EFFORTS: tuple[Effort, ...] = ("low", "medium", "high")
LOG_LEVELS = ("debug", "info", "warning", "error")


def _xdg_dir(variable: str, fallback: str) -> Path:
    """Aperto's folder under an XDG base directory; relative values are ignored, as XDG says."""
    base = os.environ.get(variable, "")
    return (Path(base) if base.startswith("/") else Path.home() / fallback) / "aperto"


def default_cache_dir() -> Path:
    """Where packed models lie unless a setting says otherwise."""
    return _xdg_dir("XDG_CACHE_HOME", ".cache")


def prompt_cache_dir(cache_dir: Path) -> Path:
    """Where saved prompts lie, in the folder of packed models, unless a setting says otherwise."""
    return cache_dir / "prompts"


def state_dir() -> Path:
    """Where the terminal keeps its input history and saved conversations."""
    return _xdg_dir("XDG_STATE_HOME", ".local/state")


def service_key(variable: str) -> str | None:
    """The key of a search service from the environment, such as EXA_API_KEY; None without one."""
    return os.environ.get(variable) or None


def config_path() -> Path:
    """The user's config file: APERTO_CONFIG, or config.toml in the user's config folder."""
    forced = os.environ.get("APERTO_CONFIG")
    return Path(forced) if forced else _xdg_dir("XDG_CONFIG_HOME", ".config") / "config.toml"


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What the user's config file and the environment may set; options of a command win over both.

    Environment: APERTO_CACHE (cache_dir), APERTO_ISA (isa), APERTO_LOG (log_level) and
    APERTO_WEIGHTS (weights) win over the file.
    """

    default_model: str = "nano"
    """Model of a command that is given none: nano, a pulled org/name, or a path."""
    precision: Precision = "q8"
    """q8 (int8 activations, Q8_0 attention and head) or exact (bf16 as stored, float32)."""
    threads: int = 0
    """Threads of the forward pass; 0 means one for each available core."""
    context: int = 0
    """Context length in tokens that memory is kept for; 0 means the engine's default."""
    effort: Effort = "medium"
    """Reasoning effort: low, medium or high."""
    reasoning: Literal["show", "hide"] = "show"
    """Whether the terminal shows the reasoning before the answer."""
    system: str = ""
    """Instructions put before every conversation (the developer message)."""
    temperature: float = 1.0
    """Sampling temperature; 0 always takes the likeliest token."""
    top_p: float = 1.0
    """Nucleus sampling: the share of probability that is kept, above 0 and at most 1."""
    max_tokens: int = 0
    """Most tokens of one answer, reasoning included; 0 means up to the end of the context."""
    log_level: Literal["debug", "info", "warning", "error"] = "warning"
    """How much is logged to standard error."""
    cache_dir: Path = dataclasses.field(default_factory=default_cache_dir)
    """Folder of packed models, a second copy of each large one (the hub keeps pulled ones)."""
    isa: str = ""
    """Instruction set of the kernels by name (reference, avx2, avx512); empty takes the best."""
    weights: Path | None = None
    """Folder of real gpt-oss weights, for the tests that need them."""


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _folder(value: Any) -> Path | None:
    return Path(value).expanduser() if isinstance(value, str) and value else None


def _whole(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _number_within(low: float, high: float, *, open_low: bool = False) -> Callable[[Any], Any]:
    def check(value: Any) -> float | None:
        if type(value) not in (int, float) or not low <= value <= high:
            return None
        return None if open_low and value == low else float(value)

    return check


def _one_of(*choices: str) -> Callable[[Any], Any]:
    return lambda value: value if value in choices else None


_CHECKS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "default_model": (_text, "a string"),
    "precision": (_one_of(*PRECISIONS), "one of " + ", ".join(PRECISIONS)),
    "threads": (_whole, "a whole number, 0 or more"),
    "context": (_whole, "a whole number of tokens, 0 or more"),
    "effort": (_one_of(*EFFORTS), "one of " + ", ".join(EFFORTS)),
    "reasoning": (_one_of("show", "hide"), "one of show, hide"),
    "system": (_text, "a string"),
    "temperature": (_number_within(0.0, 100.0), "a number from 0 to 100"),
    "top_p": (_number_within(0.0, 1.0, open_low=True), "a number above 0 and at most 1"),
    "max_tokens": (_whole, "a whole number of tokens, 0 or more"),
    "log_level": (_one_of(*LOG_LEVELS), "one of " + ", ".join(LOG_LEVELS)),
    "cache_dir": (_folder, "a path as a string"),
    "isa": (_text, "a string"),
    "weights": (_folder, "a path as a string"),
}

_ENVIRONMENT = {
    "APERTO_CACHE": "cache_dir",
    "APERTO_ISA": "isa",
    "APERTO_LOG": "log_level",
    "APERTO_WEIGHTS": "weights",
}


def _checked(key: str, value: Any, source: str) -> Any:
    check, expected = _CHECKS[key]
    accepted = check(value)
    if accepted is None:
        raise ConfigError(f"{source}: {key} is {value!r}; expected {expected}")
    return accepted


def _unknown_key(path: Path, key: str) -> ConfigError:
    near = difflib.get_close_matches(key, _CHECKS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return ConfigError(f"{path}: unknown key {key!r}{hint}; known keys: {', '.join(_CHECKS)}")


def _read_config_file(path: Path) -> Mapping[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}; correct or remove it") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    return table


def load_settings() -> Settings:
    """Defaults, overlaid by the user's config file, overlaid by the environment.

    A missing file means defaults, unless APERTO_CONFIG names it. Raises ConfigError for an
    unknown key or a value out of range.
    """
    path = config_path()
    values: dict[str, Any] = {}
    if os.environ.get("APERTO_CONFIG") or path.exists():
        for key, value in _read_config_file(path).items():
            if key not in _CHECKS:
                raise _unknown_key(path, key)
            values[key] = _checked(key, value, str(path))
    for variable, key in _ENVIRONMENT.items():
        if os.environ.get(variable):
            values[key] = _checked(key, os.environ[variable], variable)
    return Settings(**values)
