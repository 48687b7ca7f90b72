"""How much memory a model takes on this machine, counted before anything is loaded."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

from aperto.config import EngineConfig, LayerConfig, ModelConfig, Precision
from aperto.engine import default_context_tokens, plan_pages
from aperto.engine.memory import CacheShape

BLOCK = 32  # values that share a scale, in MXFP4 and in Q8_0
MXFP4_BLOCK_BYTES = 17  # 16 bytes of nibbles and one E8M0 scale
Q8_BLOCK_BYTES = 34  # 32 int8 and one f16 scale
PAGE_TOKENS = CacheShape.page_tokens
# Resident beside weights, pages and activations: 170 MiB measured in a chat with the full
# vocabulary (Python 3.11), rounded up.
PROGRAM_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True, slots=True)
class PlanItem:
    """One use of memory."""

    name: str
    """What the memory holds."""
    num_bytes: int
    """Its size in bytes."""
    detail: str
    """How the size comes about, for the reader."""


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Every use of memory for one context length, against what the machine has available."""

    precision: Precision
    """Precision of the weights and the KV pages."""
    context: int
    """Context length in tokens that the plan is for."""
    items: tuple[PlanItem, ...]
    """Uses of memory, largest part of the program first."""
    available_bytes: int
    """Memory the process may still take, in bytes."""
    longest_context: int
    """Longest context in tokens that fits; 0 where none does."""
    advice: tuple[str, ...]
    """What to change where it does not fit; empty where it does."""

    @property
    def total_bytes(self) -> int:
        """Sum over all uses."""
        return sum(item.num_bytes for item in self.items)

    @property
    def fits(self) -> bool:
        """Whether the sum is within the available memory."""
        return self.total_bytes <= self.available_bytes


def tensor_kind(name: str) -> str:
    """The kind of a canonical tensor name: embedding, head, attention, router, experts or norms."""
    if name.startswith(("embedding.", "head.")):
        return name.split(".")[0]
    if "norm" in name:
        return "norms"
    if ".moe.router." in name:
        return "router"
    return "experts" if ".moe." in name else "attention"


def bytes_by_kind(tensors: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Bytes of (canonical name, bytes) pairs summed by kind, largest kind first."""
    totals: Counter[str] = Counter()
    for name, num_bytes in tensors:
        totals[tensor_kind(name)] += num_bytes
    return dict(totals.most_common())


def _dense_bytes(values: int, precision: Precision) -> int:
    return values * Q8_BLOCK_BYTES // BLOCK if precision == "q8" else values * 2


def _expert_values(config: ModelConfig, layer: LayerConfig) -> int:
    return layer.num_experts * 3 * config.hidden_size * config.intermediate_size


def _small_values(config: ModelConfig, layer: LayerConfig) -> int:
    """Values of a layer kept in float32: norms, biases and sinks."""
    hidden = config.hidden_size
    attention = 2 * hidden + config.q_size + 2 * config.kv_size + config.num_attention_heads
    router = layer.num_experts
    return attention + hidden + router + layer.num_experts * (2 * config.intermediate_size + hidden)


def _weight_items(config: ModelConfig, precision: Precision) -> list[PlanItem]:
    experts = sum(_expert_values(config, layer) for layer in config.layers)
    attention = config.num_layers * config.hidden_size * 2 * (config.q_size + config.kv_size)
    vocab = 2 * config.vocab_size * config.hidden_size
    routers = sum(layer.num_experts for layer in config.layers) * config.hidden_size
    small = config.hidden_size + sum(_small_values(config, layer) for layer in config.layers)
    stored = "Q8_0" if precision == "q8" else "bf16"
    return [
        PlanItem("experts", experts * MXFP4_BLOCK_BYTES // BLOCK, "MXFP4, as stored"),
        PlanItem("embedding and head", _dense_bytes(vocab, precision), stored),
        PlanItem("attention", _dense_bytes(attention, precision), stored),
        PlanItem("routers", 2 * routers, "bf16"),
        PlanItem("norms, biases", small * 4, "float32"),
    ]


def default_context(config: ModelConfig, precision: Precision) -> int:
    """Context in tokens that the engine keeps memory for where none is asked for."""
    return default_context_tokens(CacheShape(config, precision))


def _kv_items(config: ModelConfig, precision: Precision, context: int) -> list[PlanItem]:
    shape = CacheShape(config, precision)
    pages = plan_pages(shape, EngineConfig(context_tokens=context))
    stored = "f16" if precision == "q8" else "f32"
    items = []
    for group, window in enumerate(shape.window_groups):
        name = f"KV pages, window {window}" if window else "KV pages, whole context"
        num_layers = sum(layer.window == window for layer in config.layers)
        layers = "1 layer" if num_layers == 1 else f"{num_layers} layers"
        detail = f"{layers} x {pages[group]} pages of {shape.page_tokens} tokens"
        num_bytes = pages[group] * shape.page_bytes(group)
        items.append(PlanItem(name, num_bytes, f"{detail}, {stored}"))
    return items


def _scratch_item(config: ModelConfig) -> PlanItem:
    """Activations of one batch in float32, each buffer of the forward pass counted once."""
    engine = EngineConfig()
    batch_tokens = engine.max_batch_tokens
    top_k = max(layer.experts_per_token for layer in config.layers)
    attention = 2 * config.q_size + 2 * config.kv_size
    experts = top_k * (3 * config.intermediate_size + config.hidden_size)
    per_token = 3 * config.hidden_size + attention + experts
    logits = engine.max_sequences * config.vocab_size
    detail = f"a batch of {batch_tokens} tokens, float32"
    return PlanItem("activations", 4 * (batch_tokens * per_token + logits), detail)


def _items(config: ModelConfig, precision: Precision, context: int) -> tuple[PlanItem, ...]:
    return (
        *_weight_items(config, precision),
        *_kv_items(config, precision, context),
        _scratch_item(config),
        PlanItem("program", PROGRAM_BYTES, "interpreter, libraries, tokenizer"),
    )


def required_bytes(config: ModelConfig, *, precision: Precision, context: int) -> int:
    """Memory in bytes that the model takes with a context of `context` tokens."""
    items = _items(config, precision, context)
    return sum(item.num_bytes for item in items)


def _longest_context(config: ModelConfig, precision: Precision, available_bytes: int) -> int:
    """Most whole pages that fit, by bisection: memory grows with the context."""
    low, high = 0, config.max_context // PAGE_TOKENS
    while low < high:
        middle = (low + high + 1) // 2
        context = middle * PAGE_TOKENS
        needed = required_bytes(config, precision=precision, context=context)
        low, high = (middle, high) if needed <= available_bytes else (low, middle - 1)
    return low * PAGE_TOKENS


def readable_bytes(num_bytes: int) -> str:
    """A byte count for reading, in the unit of 1024 steps that suits it."""
    for limit, unit, digits in ((2**30, "GiB", 2), (2**20, "MiB", 1)):
        if num_bytes >= limit:
            return f"{num_bytes / limit:.{digits}f} {unit}"
    return f"{num_bytes / 2**10:.1f} KiB"


def _advice(
    config: ModelConfig,
    precision: Precision,
    context: int,
    available_bytes: int,
    longest: int,
) -> tuple[str, ...]:
    needed = required_bytes(config, precision=precision, context=context)
    if needed <= available_bytes:
        return ()
    advice = []
    if longest:
        advice.append(f"--context {longest} is the longest that fits")
    if precision == "exact":
        q8 = required_bytes(config, precision="q8", context=context)
        verdict = "fits" if q8 <= available_bytes else "does not fit either"
        advice.append(f"--precision q8 needs {readable_bytes(q8)} and {verdict}")
    missing = needed - available_bytes
    advice.append(
        f"free {readable_bytes(missing)} of memory, or take a machine with that much more"
    )
    return tuple(advice)


def plan_memory(
    config: ModelConfig,
    *,
    precision: Precision,
    context: int,
    available_bytes: int,
) -> MemoryPlan:
    """Count every use of memory of an engine with a context of `context` tokens.

    Nothing is loaded.
    """
    longest = _longest_context(config, precision, available_bytes)
    return MemoryPlan(
        precision=precision,
        context=context,
        items=_items(config, precision, context),
        available_bytes=available_bytes,
        longest_context=longest,
        advice=_advice(config, precision, context, available_bytes, longest),
    )
