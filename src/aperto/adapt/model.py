"""The torch twin: gpt-oss in reading order, for training and for checking the native core.

Parameter names are the canonical names of `aperto.formats`, so a state dict and a checkpoint
hold the same keys. Expert weights are dense [expert, row, column] tensors whose values MXFP4
may or may not hold, and whoever trains decides when to round them; or they stay packed and frozen
(`from_checkpoint(..., packed=True)`), as they lie in the checkpoint.

The residual stream is float32; everything else has the dtype of the parameters.

Letters in shapes: B rows of a batch, T tokens of a row, N = B * T, H hidden, V vocabulary,
Q query heads, K key/value heads, D head width, E experts, I width inside an expert.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aperto.adapt.attention import Attend, attend, first_seen, positions_within, widen
from aperto.adapt.experts import PackedExperts
from aperto.config import LayerConfig, ModelConfig, RopeConfig
from aperto.formats.checkpoint import TensorSource
from aperto.formats.names import is_expert_weight
from aperto.formats.tensor import DType
from aperto.formats.tensor import Tensor as StoredTensor


class RMSNorm(nn.Module):
    """Scale each vector to unit root mean square, in float32, then by a learned weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps
        self.dtype: torch.dtype | None = None
        """Of the result, where the weight is trained in a wider one than the rest."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of `x` [..., H]; the result has the dtype of the weight."""
        full = widen(x)
        scale = torch.rsqrt(full.square().mean(-1, keepdim=True) + self.eps)
        return (full * scale * widen(self.weight)).to(self.dtype or self.weight.dtype)


class Linear(nn.Linear):
    """A product and a bias; the bias may be trained in a wider dtype than the weight has."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        return nn.functional.linear(x, self.weight, self.bias.to(self.weight.dtype))


def rope_frequencies(rope: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """Angle per position of each of the D/2 pairs (float64), and the YaRN concentration."""
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies = rope.theta**-pairs
    if rope.factor <= 1.0:
        return frequencies, 1.0

    def pair_with(rotations: float) -> float:
        """Index of the pair that turns `rotations` times over the original context."""
        period = rope.original_context / (rotations * 2 * math.pi)
        return head_dim / 2 * math.log(period) / math.log(rope.theta)

    low, high = pair_with(rope.beta_fast), pair_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    index = torch.arange(head_dim // 2, dtype=torch.float64)
    stretched = ((index - low) / max(high - low, 1e-3)).clamp(0, 1)
    frequencies = frequencies / rope.factor * stretched + frequencies * (1 - stretched)
    return frequencies, 0.1 * math.log(rope.factor) + 1.0


def rope_tables(config: ModelConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., D/2] in float32 for integer `positions` [...]."""
    frequencies, concentration = rope_frequencies(config.rope, config.head_dim)
    angles = positions.cpu().double()[..., None] * frequencies  # not every device has float64
    cos, sin = ((t * concentration).float() for t in (angles.cos(), angles.sin()))
    return cos.to(positions.device), sin.to(positions.device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head of `x` [B, heads, T, D] by cos, sin [B, 1, T, D/2]."""
    first, second = widen(x).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with biases, sinks and, where the layer has one, a window."""

    def __init__(self, config: ModelConfig, layer: LayerConfig) -> None:
        super().__init__()
        hidden, self.head_dim, self.window = config.hidden_size, config.head_dim, layer.window
        self.norm = RMSNorm(hidden, config.rms_norm_eps)
        self.q = Linear(hidden, config.q_size)
        self.k = Linear(hidden, config.kv_size)
        self.v = Linear(hidden, config.kv_size)
        self.out = Linear(config.q_size, hidden)
        self.sinks = nn.Parameter(torch.zeros(config.num_attention_heads))

    def heads(self, x: Tensor) -> Tensor:
        """[B, T, heads * D] -> [B, heads, T, D]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, first: Tensor, attend: Attend) -> Tensor:
        """x [B, T, H] -> what attention adds to it."""
        t = self.norm(x)
        q = rotate(self.heads(self.q(t)), cos, sin)
        k = rotate(self.heads(self.k(t)), cos, sin)
        mixed = attend(q, k, self.heads(self.v(t)), self.sinks, first)
        return self.out(mixed.transpose(1, 2).flatten(2))


class _SwiGLU(torch.autograd.Function):
    """A few rows at a time, so that what lies between stays in the processor's caches."""

    ROWS = 64

    @staticmethod
    def forward(ctx: Any, pairs: Tensor, limit: float) -> Tensor:
        """[M, 2I] -> [M, I]."""
        ctx.save_for_backward(pairs)
        ctx.limit = limit
        out = pairs.new_empty(len(pairs), pairs.shape[1] // 2)
        for rows, target in zip(pairs.split(_SwiGLU.ROWS), out.split(_SwiGLU.ROWS), strict=True):
            gate, up = widen(rows[:, 0::2]).clamp(max=limit), widen(rows[:, 1::2])
            target.copy_(gate * torch.sigmoid(1.702 * gate) * (up.clamp(-limit, limit) + 1))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Gradient of the pairs; none passes where they were clamped."""
        (pairs,) = ctx.saved_tensors
        out = torch.empty_like(pairs)
        parts = (x.split(_SwiGLU.ROWS) for x in (pairs, grad, out))
        for rows, part, target in zip(*parts, strict=True):
            gate, up, wide = widen(rows[:, 0::2]), widen(rows[:, 1::2]), widen(part)
            free_gate, free_up = gate <= ctx.limit, up.abs() <= ctx.limit
            gate, up = gate.clamp(max=ctx.limit), up.clamp(-ctx.limit, ctx.limit)
            share = torch.sigmoid(1.702 * gate)
            slope = share * (1 + 1.702 * gate * (1 - share))
            target[:, 0::2] = wide * (up + 1) * slope * free_gate
            target[:, 1::2] = wide * gate * share * free_up
        return out, None


def swiglu(pairs: Tensor, limit: float) -> Tensor:
    """gpt-oss's clamped SwiGLU, in float32 inside; [M, 2I] (even gate, odd up) -> [M, I].

    gate * sigmoid(1.702 gate) * (up + 1), gate at most `limit`, up within it on both sides.
    """
    return _SwiGLU.apply(pairs, limit)


def combine(rows: Tensor, logits: Tensor) -> Tensor:
    """Sum of the k expert outputs of each token, `rows` [N * k, H] -> [N, H] in float32.

    Weighted by the softmax of its k router `logits` [N, k].
    """
    shares = logits.softmax(-1)[..., None]
    return (widen(rows.view(*logits.shape, -1)) * shares).sum(1)


class ExpertLinear(nn.Module):
    """One weight [E, out, in] and bias [E, out] an expert."""

    def __init__(self, num_experts: int, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_experts, rows, columns))
        self.bias = nn.Parameter(torch.zeros(num_experts, rows))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Experts, outputs, inputs."""
        num_experts, rows, columns = self.weight.shape
        return num_experts, rows, columns

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        """x [M, in], sorted by expert, `counts` rows each -> [M, out]."""
        parts = zip(x.split(counts), self.weight, self.bias.to(self.weight.dtype), strict=True)
        return torch.cat([nn.functional.linear(rows, w, b) for rows, w, b in parts])


class Moe(nn.Module):
    """Mixture of experts: the k best by router logit, weighted by a softmax over those k."""

    def __init__(self, config: ModelConfig, layer: LayerConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.limit, self.top_k = config.swiglu_limit, layer.experts_per_token
        self.norm = RMSNorm(hidden, config.rms_norm_eps)
        self.router = Linear(hidden, layer.num_experts)
        self.gate_up = ExpertLinear(layer.num_experts, 2 * inner, hidden)
        self.down = ExpertLinear(layer.num_experts, hidden, inner)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, H] -> what the experts add to it."""
        t = self.norm(x).flatten(0, 1)
        logits, chosen = widen(self.router(t)).topk(self.top_k, dim=-1)  # [N, k]
        order = chosen.flatten().argsort(stable=True)  # the N * k pairs, by expert
        counts = chosen.flatten().bincount(minlength=self.router.out_features).tolist()
        pairs = self.gate_up(t.index_select(0, order // self.top_k), counts)
        rows = self.down(swiglu(pairs, self.limit), counts)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=t.device))
        return combine(rows.index_select(0, back), logits).view(x.shape)


class Layer(nn.Module):
    """Attention, then experts; each adds to the residual stream."""

    def __init__(self, config: ModelConfig, layer: LayerConfig) -> None:
        super().__init__()
        self.attn = Attention(config, layer)
        self.moe = Moe(config, layer)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, first: Tensor, attend: Attend) -> Tensor:
        """One layer of the residual stream x [B, T, H]."""
        x = x + self.attn(x, cos, sin, first, attend)
        return x + self.moe(x)


class GptOss(nn.Module):
    """A whole gpt-oss model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        """Whether the backward pass computes each layer again instead of keeping what it needs."""
        self.attend: Attend = attend
        """How queries meet keys: `attend`, or `blocked_attend` to train on a CPU."""
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in config.layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @classmethod
    def from_checkpoint(
        cls,
        source: TensorSource,
        *,
        dtype: torch.dtype = torch.float32,
        packed: bool = False,
    ) -> GptOss:
        """The model of a checkpoint, its parameters in `dtype`.

        `packed` keeps the experts in MXFP4, frozen, and all that is stored in `dtype` where it lies
        in the mapped file; else experts are dequantised. Packed, experts must be MXFP4 (see
        `formats.quantize_experts`).
        """
        with torch.device("meta"):
            model = cls(source.config)
        state = {
            name: _parameter(source.tensor(name), dtype)
            for name in source.names()
            if not (packed and is_expert_weight(name))
        }
        model.load_state_dict(state, strict=not packed, assign=True)
        if packed:
            for index, layer in enumerate(model.layers):
                for part in ("gate_up", "down"):
                    tensor = source.tensor(f"layers.{index}.moe.{part}.weight")
                    assert tensor.scales is not None, "experts are MXFP4"
                    bias = getattr(layer.moe, part).bias.detach()
                    packed_part = PackedExperts(tensor.data, tensor.scales, bias, dtype)
                    setattr(layer.moe, part, packed_part)
        return model

    def forward(self, token_ids: Tensor, segments: Tensor | None = None) -> Tensor:
        """Logits [B, T, V] of `token_ids` [B, T]; `segments` as in `hidden`."""
        logits: Tensor = self.head(self.norm(self.hidden(token_ids, segments)))
        return logits

    def hidden(self, token_ids: Tensor, segments: Tensor | None = None) -> Tensor:
        """The residual stream [B, T, H] after the last layer, for `token_ids` [B, T].

        `segments` [B, T] numbers the texts packed into a row, each a run of equal numbers:
        none sees another, and positions start at 0 in each. Left out, a row is one text.
        """
        if segments is None:
            segments = torch.zeros_like(token_ids)
        return self.through(widen(self.embedding(token_ids)), segments, range(len(self.layers)))

    def through(self, x: Tensor, segments: Tensor, layers: range) -> Tensor:
        """The residual stream x [B, T, H] after some layers, one after the other."""
        cos, sin = rope_tables(self.config, positions_within(segments))
        first = {w: first_seen(w, segments) for w in {c.window for c in self.config.layers}}
        for index in layers:
            layer, settings = self.layers[index], self.config.layers[index]
            inputs = (x, cos[:, None], sin[:, None], first[settings.window], self.attend)
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                x = layer(*inputs)
        return x

    def loss(
        self, token_ids: Tensor, weights: Tensor, segments: Tensor | None = None, chunk: int = 64
    ) -> Tensor:
        """Sum of -weight * log probability of the tokens [B, T] but the first of each row.

        `weights` [B, T] is each token's own, 0 where it is not learnt. Logits are made for `chunk`
        tokens at a time, and made again for their gradient, so that never all of them exist.
        """
        return self.loss_at(self.hidden(token_ids, segments), token_ids, weights, chunk)

    def loss_at(self, x: Tensor, token_ids: Tensor, weights: Tensor, chunk: int = 64) -> Tensor:
        """`loss`, given the residual stream x [B, T, H] after the last layer."""
        weight = weights[:, 1:].flatten().float()
        total = widen(x.new_zeros(()))
        for part, losses in self._cross_entropies(x, token_ids, weight, chunk):
            total = total + (losses * weight[part]).sum()
        return total

    def log_probabilities(
        self, token_ids: Tensor, learnt: Tensor, segments: Tensor | None = None, chunk: int = 64
    ) -> Tensor:
        """Log probability of each token [B, T - 1] but the first of a row; 0 where `learnt` is 0.

        Token by token as `loss` makes them, never all logits at a time.
        """
        x = self.hidden(token_ids, segments)
        found = widen(x.new_zeros(learnt[:, 1:].numel()))
        for part, losses in self._cross_entropies(x, token_ids, learnt[:, 1:].flatten(), chunk):
            found = found.index_put((part,), -losses)
        return found.view(learnt[:, 1:].shape)

    def _cross_entropies(
        self, x: Tensor, token_ids: Tensor, weight: Tensor, chunk: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(indices of tokens, their losses), where the weight is not 0, some at a time."""
        rows = self.norm(x)[:, :-1].flatten(0, 1)
        targets = token_ids[:, 1:].flatten()
        for part in weight.nonzero().squeeze(-1).split(chunk):
            losses: Tensor = checkpoint(
                self._cross_entropy, rows[part], targets[part], use_reentrant=False
            )
            yield part, losses

    def _cross_entropy(self, rows: Tensor, targets: Tensor) -> Tensor:
        logits = widen(self.head(rows))
        return nn.functional.cross_entropy(logits, targets, reduction="none")


def _parameter(tensor: StoredTensor, dtype: torch.dtype) -> Tensor:
    """A stored tensor's values; a view of its memory where that holds them as they are."""
    if dtype is torch.bfloat16 and tensor.dtype is DType.BF16:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the map is read-only, as it should be
            return torch.from_numpy(tensor.data).view(torch.bfloat16)
    return torch.from_numpy(tensor.to_float32().copy()).to(dtype)
