"""Named points inside the forward pass, read as arrays while a text goes through it.

Reading copies what passes; it changes no bit of the answer, and costs nothing when it is off.

    layers.N.resid_pre | resid_mid | resid_post   [tokens, hidden]  before, between and after
    layers.N.attn.q | attn.k | attn.v             [tokens, heads * head_dim]  before rotation
    layers.N.attn.pattern                         [tokens, heads, tokens + 1]  the sink comes last
    layers.N.attn.z                               [tokens, heads * head_dim]  weighted values
    layers.N.moe.router_logits                    [tokens, experts]
    layers.N.moe.topk | moe.weights               [tokens, chosen]  experts, best first, and shares;
                                                  -1 and 0 where a variant takes fewer
    layers.N.moe.expert_out                       [tokens, chosen, hidden]  before the shares
    final_norm [tokens, hidden], logits [tokens, vocab]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aperto.config import ModelConfig
from aperto.errors import ConfigError

LAYER_POINTS = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.pattern",
    "attn.z",
    "moe.router_logits",
    "moe.topk",
    "moe.weights",
    "moe.expert_out",
)
"""Points of a layer, after "layers.N."; a star for N means every layer."""
LAST_POINTS = ("final_norm", "logits")
"""Points after the last layer."""

_LAYER = re.compile(r"layers\.(\*|\d+)\.(.+)")
_CHUNK_TOKENS = 128

Arrays = dict[str, NDArray[Any]]


def expand(points: Iterable[str], config: ModelConfig) -> tuple[str, ...]:
    """The points that names with stars mean, each once. Raises ConfigError for unknown ones."""
    num_layers = len(config.layers)
    found: dict[str, None] = {}
    for point in points:
        match = _LAYER.fullmatch(point)
        if match is None or match[2] not in LAYER_POINTS:
            if point not in LAST_POINTS:
                known = ", ".join((*(f"layers.N.{name}" for name in LAYER_POINTS), *LAST_POINTS))
                raise ConfigError(f"there is no point {point!r}; there are: {known}")
            found[point] = None
        elif match[1] == "*":
            found |= dict.fromkeys(f"layers.{layer}.{match[2]}" for layer in range(num_layers))
        elif int(match[1]) < num_layers:
            found[point] = None
        else:
            raise ConfigError(f"{point}: the model has the layers 0..{num_layers - 1}")
    return tuple(found)


def trace(model: Any, ids: Sequence[int], points: Iterable[str], variant: Any = None) -> Arrays:
    """What passes the points while `ids` go through a `native.Model`, alone, with its own cache.

    variant: a variant of the core, None for the base. Raises ConfigError for unknown points, no
    ids, or ids outside the vocabulary.
    """
    wanted = expand(points, model.config)
    tokens = np.asarray(ids, dtype=np.int32)
    if not tokens.size or tokens.min() < 0 or tokens.max() >= model.config.vocab_size:
        raise ConfigError(
            f"the text has {tokens.size} ids; expected at least one, within "
            f"0..{model.config.vocab_size - 1}"
        )
    num_pages = -(-len(tokens) // model.page_tokens)
    groups = len(model.window_groups)
    cache = model.new_cache([num_pages] * groups)
    tables = [np.arange(num_pages, dtype=np.int32)[None]] * groups
    taps = model.new_taps(wanted)
    pieces: dict[str, list[NDArray[np.float32]]] = {name: [] for name in wanted}
    step = min(_CHUNK_TOKENS, model.max_batch_tokens)
    for start in range(0, len(tokens), step):
        chunk = tokens[start : start + step]
        rows = np.arange(len(chunk), dtype=np.int32)
        model.forward(
            cache,
            chunk,
            rows + np.int32(start),
            np.zeros_like(rows),
            tables,
            rows,
            variants=None if variant is None else [variant],
            taps=taps,
        )
        for name, array in taps.take().items():
            pieces[name].append(array)
    return {name: _joined(name, arrays, len(tokens)) for name, arrays in pieces.items()}


def _joined(name: str, arrays: list[NDArray[np.float32]], num_tokens: int) -> NDArray[Any]:
    if name.endswith("attn.pattern"):
        # A chunk knows positions up to its own end only; its last column is the sink.
        arrays = [_widened(array, num_tokens + 1) for array in arrays]
    joined = np.concatenate(arrays)
    return joined.astype(np.int32) if name.endswith("moe.topk") else joined


def _widened(pattern: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    wide = np.zeros((*pattern.shape[:2], width), np.float32)
    wide[..., : pattern.shape[2] - 1] = pattern[..., :-1]
    wide[..., -1] = pattern[..., -1]
    return wide
