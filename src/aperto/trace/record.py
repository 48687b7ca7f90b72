"""A text run through the model once, and what was read on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aperto.config import ModelConfig
from aperto.engine import Engine
from aperto.formats import Checkpoint
from aperto.tokenizer import Tokenizer
from aperto.trace.lens import Lens

_POINTS = ("moe.topk", "moe.weights", "attn.pattern", "resid_post")
_HEADER = "header"
_OPEN = "?"  # a channel whose name comes next


@dataclasses.dataclass(frozen=True, slots=True)
class Layer:
    """What one layer did. T tokens, k experts of a token, H heads."""

    chosen: NDArray[np.int32]  # [T, k], best first; -1 where fewer are taken
    shares: NDArray[np.float32]  # [T, k]
    attention: NDArray[np.float32]  # [T, T], mean over heads
    sinks: NDArray[np.float32]  # [T, H], what each head gives to its sink
    lens_ids: NDArray[np.int64]  # [T], the likeliest next token, were this the last layer
    lens_probs: NDArray[np.float32]  # [T], its probability


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """A text, token by token, and what every layer did."""

    config: ModelConfig
    ids: tuple[int, ...]
    texts: tuple[str, ...]
    """Each token as text."""
    classes: tuple[str, ...]
    """Of each token: "header", a role, or "assistant/CHANNEL"."""
    num_prompt: int
    """Tokens that were given; the others the model said."""
    entropies: NDArray[np.float32]  # [T], of the next token, in nats
    logprobs: NDArray[np.float32]  # [T], of each token after those before it; the first is NaN
    layers: tuple[Layer, ...]
    lens_texts: tuple[tuple[str, ...], ...]
    """[layers][T], the likeliest next tokens as text."""

    def routing(self, layer: int) -> dict[str, NDArray[np.float64]]:
        """Class -> share of its tokens' choices that each expert of a layer got, [experts]."""
        num_experts = self.config.layers[layer].num_experts
        chosen = self.layers[layer].chosen
        shares = {}
        for name in dict.fromkeys(self.classes):
            rows = chosen[[own == name for own in self.classes]]
            counts = np.bincount(rows[rows >= 0], minlength=num_experts)
            shares[name] = counts / max(1, counts.sum())
        return shares

    def together(self, layer: int) -> NDArray[np.int64]:
        """How often two experts of a layer were chosen for one token, [experts, experts]."""
        num_experts = self.config.layers[layer].num_experts
        used = np.zeros((len(self.ids), num_experts), np.int64)
        rows, slots = np.nonzero(self.layers[layer].chosen >= 0)
        used[rows, self.layers[layer].chosen[rows, slots]] = 1
        counts: NDArray[np.int64] = used.T @ used
        return counts


def record(
    engine: Engine,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    num_prompt: int,
) -> Trace:
    """Run harmony ids through the model and read its points.

    num_prompt: how many of them were given. The attention of a layer takes 4 * heads *
    T^2 bytes while it is read. Raises ConfigError for ids outside the vocabulary.
    """
    config = checkpoint.config
    lens = Lens(checkpoint)
    logits = engine.trace(ids, ["logits"])["logits"]
    entropies, logprobs = _uncertainty(logits, ids)
    del logits
    layers = []
    for index in range(len(config.layers)):
        names = [f"layers.{index}.{point}" for point in _POINTS]
        read = engine.trace(ids, names)
        chosen, shares, pattern, residual = (read[name] for name in names)
        likeliest, probs = lens.read(residual)
        mean = pattern[..., :-1].mean(axis=1)
        layers.append(Layer(chosen, shares, mean, pattern[..., -1], likeliest, probs))
    return Trace(
        config=config,
        ids=tuple(ids),
        texts=tuple(token_text(tokenizer, i) for i in ids),
        classes=classes_of(tokenizer, ids),
        num_prompt=num_prompt,
        entropies=entropies,
        logprobs=logprobs,
        layers=tuple(layers),
        lens_texts=tuple(
            tuple(token_text(tokenizer, int(i)) for i in layer.lens_ids) for layer in layers
        ),
    )


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as text; ids that the tokenizer does not know as "<id>"."""
    if tokenizer.is_special(token_id):
        return next(name for name, known in tokenizer.special.items() if known == token_id)
    piece = tokenizer.piece(token_id)
    return f"<{token_id}>" if piece is None else piece.decode("utf-8", errors="replace")


def classes_of(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, ...]:
    """The class of each token of harmony text: "header", a role, or "assistant/CHANNEL"."""
    start, message, channel = map(tokenizer.special_id, ("<|start|>", "<|message|>", "<|channel|>"))
    classes: list[str] = []
    header: list[int] = []
    in_header, role, where = True, "text", ""
    for token in ids:
        if token == start:
            in_header, header, where = True, [], ""
        if not in_header:
            classes.append(f"{role}/{where}" if where else role)
            continue
        classes.append(_HEADER)
        if token in (channel, message):
            words = tokenizer.decode(header).split()
            if words and where == _OPEN:
                where = words[0]
            elif words:
                role = words[0]
            where = _OPEN if token == channel else where
            in_header, header = token != message, []
        elif token != start:
            header.append(token)
    return tuple(classes)


def _uncertainty(
    logits: NDArray[np.float32], ids: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    entropies = np.empty(len(ids), np.float32)
    logprobs = np.full(len(ids), np.nan, np.float32)
    for row, values in enumerate(logits):
        wide = values.astype(np.float64)
        wide -= wide.max()
        wide -= np.log(np.exp(wide).sum())
        entropies[row] = -(np.exp(wide) * wide).sum()
        if row + 1 < len(ids):
            logprobs[row + 1] = wide[ids[row + 1]]
    return entropies, logprobs
