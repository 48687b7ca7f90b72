"""What a run will take, told before it begins: memory counted, time measured on one layer."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aperto.adapt.attention import first_seen, positions_within
from aperto.adapt.batches import Batch
from aperto.adapt.device import wait_for
from aperto.adapt.model import GptOss, rope_tables
from aperto.adapt.optimiser import OptimiserName
from aperto.config import ModelConfig
from aperto.errors import MemoryLimitError

# Resident beside all that is counted: interpreter and torch 0.45 GiB, the threads' arenas of
# oneDNN 0.1 GiB (20b shape, two threads), rounded up.
PROGRAM_BYTES = 640 << 20
LOGIT_ROWS = 64
"""Rows of logits that exist at a time, as in `GptOss.loss`."""
_SCORE_BYTES = 30
"""Of a score of plain attention, forward and backward; measured, 29 in either type."""


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryItem:
    """One use of memory."""

    name: str
    """What it holds."""
    num_bytes: int
    """Its size."""


@dataclasses.dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Every use of memory of a training run at its highest."""

    items: tuple[MemoryItem, ...]
    """Uses, in the order they are shown in."""

    @property
    def total_bytes(self) -> int:
        """Sum over all uses."""
        return sum(item.num_bytes for item in self.items)

    def require(self, available_bytes: int) -> None:
        """Raise MemoryLimitError where the sum is more than is available."""
        if self.total_bytes > available_bytes:
            largest = max(self.items[1:], key=lambda item: item.num_bytes)
            raise MemoryLimitError(
                f"training takes {self.total_bytes / 2**30:.1f} GiB "
                f"({', '.join(f'{i.name} {i.num_bytes / 2**30:.2f}' for i in self.items)}) and "
                f"{available_bytes / 2**30:.1f} GiB are available; beside the weights most goes "
                f"to {largest.name}: take shorter rows, fewer rows a batch, a lower rank, fewer "
                "targets or --optimiser adamw8bit"
            )


def estimate_memory(
    config: ModelConfig,
    *,
    weights: int,
    trained: int,
    batch_tokens: int,
    value_bytes: int,
    optimiser: OptimiserName,
    num_layers: int | None = None,
    scores: int = 0,
) -> MemoryEstimate:
    """Count the memory of fine-tuning.

    Args:
        config: the model's.
        weights: bytes of the frozen weights, mapped or copied.
        trained: values that are trained, in float32.
        batch_tokens: tokens that go through the model at once.
        value_bytes: of an activation, 2 or 4.
        optimiser: whose moments take 8 bytes a value, or 2.
        num_layers: layers that a step computes; None: all.
        scores: of one layer's attention, where they exist all at once (not on a CPU).
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    top_k = max(layer.experts_per_token for layer in config.layers)
    attention = 3 * config.q_size + 2 * config.kv_size
    # Of the layer that is computed again: inputs, pairs, products and outputs of its experts, and
    # as much for their gradients; the residual stream and its sums are float32.
    expert_rows = top_k * (2 * hidden + 3 * inner)
    layer = batch_tokens * (2 * value_bytes * (attention + expert_rows) + 6 * 4 * hidden)
    layers = config.num_layers if num_layers is None else num_layers
    moments = 8 if optimiser == "adamw" else 2
    return MemoryEstimate(
        (
            MemoryItem("weights", weights),
            MemoryItem("trained values, gradients and moments", trained * (8 + moments)),
            MemoryItem("inputs of the layers", layers * batch_tokens * hidden * 4),
            MemoryItem("one layer's activations", layer + scores * _SCORE_BYTES),
            MemoryItem("one decoded expert", value_bytes * hidden * 2 * inner),
            MemoryItem("logits", 3 * LOGIT_ROWS * config.vocab_size * 4),
            MemoryItem("program", PROGRAM_BYTES),
        )
    )


def step_seconds(model: GptOss, batches: Iterable[Batch], first_layer: int = 0) -> float:
    """Seconds that one optimiser step over `batches` will take, from one layer and the head.

    The faster of two passes through the warm layer counts; gradients it leaves are removed. Layers
    before `first_layer` are not computed in a step.
    """
    batches = list(batches)
    layer_s = layer_seconds(model, batches[0], first_layer)
    learnt = sum(int(batch.weights[:, 1:].count_nonzero()) for batch in batches)
    head_s = _head_seconds(model) * learnt / LOGIT_ROWS
    model.zero_grad(set_to_none=True)
    return layer_s * (len(model.layers) - first_layer) * len(batches) + head_s


def layer_seconds(model: GptOss, batch: Batch, index: int) -> float:
    """Seconds that one layer takes for one batch: forward, again, and backward."""
    cos, sin = rope_tables(model.config, positions_within(batch.segments))
    first = first_seen(model.config.layers[index].window, batch.segments)
    x = model.embedding(batch.token_ids).float().detach().requires_grad_()

    def run() -> None:
        inputs = (x, cos[:, None], sin[:, None], first, model.attend)
        y: Tensor = checkpoint(model.layers[index], *inputs, use_reentrant=False)
        y.square().mean().backward()

    return _warm_seconds(run, x.device)


def _head_seconds(model: GptOss) -> float:
    """Of one chunk of logits, made twice and differentiated."""
    head: nn.Linear = model.head
    rows = head.weight.new_zeros(LOGIT_ROWS, head.in_features, requires_grad=True)

    def loss(x: Tensor) -> Tensor:
        return head(x).float().logsumexp(-1).sum()

    return _warm_seconds(
        lambda: checkpoint(loss, rows, use_reentrant=False).backward(), rows.device
    )


def _warm_seconds(run: Callable[[], None], device: torch.device) -> float:
    """The faster of two runs after a first one: other programs may hold one up."""
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        run()
        wait_for(device)
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])
