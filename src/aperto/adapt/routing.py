"""Which experts a text uses most: the ones worth adapting."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from aperto.adapt.batches import Batch
from aperto.adapt.model import GptOss
from aperto.adapt.packing import PADDING
from aperto.errors import ConfigError


def hottest_experts(
    model: GptOss, batches: Iterable[Batch], count: int
) -> dict[int, tuple[int, ...]]:
    """The `count` experts of each layer that the tokens of `batches` choose most often, ascending.

    Padding does not count; of experts chosen equally often the lower number wins.

    Raises:
        ConfigError: a layer has fewer experts.
    """
    fewest = min(layer.num_experts for layer in model.config.layers)
    if not 1 <= count <= fewest:
        raise ConfigError(f"{count} experts of each layer; expected 1 to {fewest}")
    uses = [torch.zeros(layer.num_experts, dtype=torch.int64) for layer in model.config.layers]
    shown: list[Tensor] = []  # of the batch at work: which tokens count

    def counting(index: int) -> Any:
        def count_uses(module: nn.Module, inputs: Any, logits: Tensor) -> None:
            chosen = logits[shown[-1]].topk(layers[index].moe.top_k).indices
            uses[index] += chosen.flatten().bincount(minlength=logits.shape[-1]).cpu()

        return count_uses

    layers: list[Any] = list(model.layers)
    hooks = [
        layer.moe.router.register_forward_hook(counting(index))
        for index, layer in enumerate(layers)
    ]
    try:
        with torch.inference_mode():
            for batch in batches:
                shown.append((batch.segments != PADDING).flatten())
                model.hidden(batch.token_ids, batch.segments)
    finally:
        for hook in hooks:
            hook.remove()
    orders = (found.argsort(descending=True, stable=True)[:count] for found in uses)
    return {index: tuple(sorted(order.tolist())) for index, order in enumerate(orders)}
