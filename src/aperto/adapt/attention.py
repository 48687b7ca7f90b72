"""Attention with sinks and windows: in plain words, and blocked for training on a CPU.

Letters in shapes: B rows of a batch, T tokens of a row, Q query heads, K key/value heads, D head
width. Who sees whom is one number a token: the first token that it sees, itself being the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

_HIDDEN = -1e30  # added to scores that are not seen; finite, or a block without any gives NaN


def widen(x: Tensor) -> Tensor:
    """At least float32; float64 stays, so that gradients can be checked by finite differences."""
    return x if x.dtype is torch.float64 else x.float()


def positions_within(segments: Tensor) -> Tensor:
    """Distance of each token from the first of its run in `segments` [B, T]."""
    steps = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts = torch.zeros_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return steps - torch.where(starts, steps, 0).cummax(dim=1).values


def first_seen(window: int, segments: Tensor) -> Tensor:
    """The first token that each of `segments` [B, T] sees, int64 [B, T].

    A token sees itself and earlier tokens of its own segment, the last `window` of them
    (itself included) where `window` is not 0.
    """
    steps = torch.arange(segments.shape[1], device=segments.device)
    start = steps - positions_within(segments)
    return torch.maximum(start, steps - window + 1) if window else start


def softmax_with_sinks(scores: Tensor, sinks: Tensor, mask: Tensor) -> Tensor:
    """Softmax of `scores` [B, Q, T, S] where `mask` [B, 1, T, S] holds, and of one sink a head.

    The sinks' own shares are dropped, so a row sums to less than 1. Computed in float32.
    """
    full = widen(scores).masked_fill(~mask, _HIDDEN)
    sink = widen(sinks)[None, :, None, None]
    top = torch.maximum(full.amax(-1, keepdim=True), sink)
    shares = torch.exp(full - top)
    return (shares / (shares.sum(-1, keepdim=True) + torch.exp(sink - top))).to(scores.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, first: Tensor) -> Tensor:
    """Attention with sinks: q [B, Q, T, D], k and v [B, K, T, D], sinks [Q], first [B, T].

    The Q / K heads that share a key are stacked, so that keys and values are never repeated.
    """
    batch, heads, steps, width = q.shape
    stacked = q.reshape(batch, k.shape[1], -1, width) / math.sqrt(width)
    scores = (stacked @ k.transpose(-1, -2)).view(batch, heads, steps, -1)
    index = torch.arange(steps, device=q.device)
    mask = (index <= index[:, None]) & (index >= first[..., None])
    shares = softmax_with_sinks(scores, sinks, mask[:, None])
    return (shares.view(batch, k.shape[1], -1, steps) @ v).view(q.shape)


class _SinkAttention(torch.autograd.Function):
    """torch's blocked CPU attention, which never holds all scores; sinks are added outside.

    With o and l the kernel's output and log-sum-exp, w = sigmoid(l - sink) is the share that the
    sink leaves, and w o the result. Its gradient g reaches the scores s of shares p as
    p (w g.v - w g.o + w (1 - w) g.o) = p ((w g).v - (w g).(w o)):
    what the kernel's own backward pass gives for the gradient w g and the output w o.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, mask: Tensor | None
    ) -> Tensor:
        """q, k and v [B, Q, T, D], sinks [Q]; mask is added to scores, None where it is causal."""
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, mask is None, attn_mask=mask
        )
        share = torch.sigmoid(total - widen(sinks)[:, None])[..., None]
        result = (widen(out) * share).to(q.dtype)
        ctx.save_for_backward(q, k, v, result, total, share, mask)
        ctx.sinks_dtype = sinks.dtype
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v and sinks."""
        q, k, v, result, total, share, mask = ctx.saved_tensors
        wide = widen(grad)
        left = (wide * widen(result)).sum(-1, keepdim=True) * (share - 1)
        sinks = left.sum((0, 2, 3)).to(ctx.sinks_dtype)
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            (wide * share).to(q.dtype), q, k, v, result, total, 0.0, mask is None, attn_mask=mask
        )
        return *grads, sinks, None


def blocked_attend(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, first: Tensor) -> Tensor:
    """`attend` on a CPU without ever holding all scores; shapes as there.

    Where no token sees further back than a block of tokens, as in layers with a window, each block
    is multiplied with itself and the block before it alone.
    """
    steps, groups = q.shape[2], q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    index = torch.arange(steps, device=q.device)
    reach = int((index - first).amax()) if steps else 0
    block = max(32, 1 << reach.bit_length())  # a power of two: few shapes
    if 2 * block < steps:
        return _banded(q, k, v, sinks, first, block)
    mask = None
    if int(first.amax()) > 0:
        seen = (index <= index[:, None]) & (index >= first[..., None])
        mask = torch.where(seen, 0.0, _HIDDEN).to(q.dtype)[:, None]
    return _SinkAttention.apply(q.contiguous(), k, v, sinks, mask)


def _banded(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, first: Tensor, block: int) -> Tensor:
    """Blocks of queries [B * blocks, Q, block, D], each against its own keys and those before."""
    batch, heads, steps, width = q.shape
    after = -steps % block
    blocks = (steps + after) // block
    pad = torch.nn.functional.pad
    queries = pad(q, (0, 0, 0, after)).unflatten(2, (blocks, block)).transpose(1, 2).flatten(0, 1)

    def bands(x: Tensor) -> Tensor:
        parts = pad(x, (0, 0, block, after)).unflatten(2, (blocks + 1, block)).transpose(1, 2)
        return torch.cat((parts[:, :-1], parts[:, 1:]), dim=3).flatten(0, 1)

    index = torch.arange(blocks * block, device=q.device).view(blocks, block)
    keys = torch.arange(2 * block, device=q.device) + (index[:, :1] - block)  # [blocks, 2 block]
    begin = torch.cat((first, first.new_full((batch, after), steps)), dim=1)
    begin = torch.minimum(begin.view(batch, blocks, block), index)  # padding sees itself
    seen = (keys[:, None] <= index[..., None]) & (keys[:, None] >= begin[..., None])
    mask = torch.where(seen, 0.0, _HIDDEN).to(q.dtype).flatten(0, 1)[:, None]
    out = _SinkAttention.apply(queries.contiguous(), bands(k), bands(v), sinks, mask)
    out = out.unflatten(0, (batch, blocks)).transpose(1, 2).reshape(batch, heads, -1, width)
    return out[:, :, :steps]
