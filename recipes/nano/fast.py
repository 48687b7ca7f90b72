"""The twin's slow parts again, for training on a CPU in bfloat16; `use` puts them in place."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aperto.adapt import model as twin

ROWS = 64
"""Experts get rows in multiples of this: oneDNN compiles a kernel for each new shape it meets."""


class GroupedLinear(torch.autograd.Function):
    """`ExpertLinear` on rows sorted by expert, written into one output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, counts: list[int]) -> Tensor:
        """x [M, in], `counts` rows an expert -> [M, out]."""
        out = x.new_empty(x.shape[0], weight.shape[1])
        at = 0
        for expert, count in enumerate(counts):
            rows = slice(at, at + count)
            torch.addmm(bias[expert], x[rows], weight[expert].t(), out=out[rows])
            at += count
        ctx.save_for_backward(x, weight)
        ctx.counts = counts
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x, grad_w = torch.empty_like(x), torch.empty_like(weight)
        grad_b = grad.new_empty(weight.shape[:2])
        at = 0
        for expert, count in enumerate(ctx.counts):
            rows = slice(at, at + count)
            torch.mm(grad[rows], weight[expert], out=grad_x[rows])
            torch.mm(grad[rows].t(), x[rows], out=grad_w[expert])
            grad_b[expert] = grad[rows].float().sum(0)
            at += count
        return grad_x, grad_w, grad_b, None


@functools.cache
def kernels() -> Any:
    """kernels.cpp, compiled for this machine."""
    from torch.utils.cpp_extension import load

    source = str(Path(__file__).with_name("kernels.cpp"))
    flags = ["-O3", "-std=c++20", "-march=native", "-mprefer-vector-width=512", "-ffast-math"]
    return load("nano_kernels", [source], extra_cflags=flags)


class SwiGLU(torch.autograd.Function):
    """`aperto.adapt.model.swiglu` in bfloat16 on the CPU."""

    @staticmethod
    def forward(ctx: Any, pairs: Tensor, limit: float) -> Tensor:
        """pairs [M, 2I] -> [M, I]."""
        ctx.save_for_backward(pairs)
        ctx.limit = limit
        return kernels().swiglu(pairs, limit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Gradient of the pairs."""
        (pairs,) = ctx.saved_tensors
        return kernels().swiglu_backward(grad.contiguous(), pairs, ctx.limit), None


class SinkAttention(torch.autograd.Function):
    """`aperto.adapt.model.attend` in bfloat16 on the CPU."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, first: Tensor) -> Tensor:
        """q [B, Q, T, D], k and v [B, K, T, D], sinks [Q] -> [B, Q, T, D]."""
        batch, heads, steps, width = q.shape
        groups, scale = k.shape[1], 1 / math.sqrt(width)
        stacked = q.reshape(batch, groups, -1, width)
        shares = stacked @ k.transpose(-1, -2)  # scores until the next line
        sink_shares = kernels().softmax(
            shares.view(batch, heads, steps, steps), sinks, first, scale
        )
        ctx.save_for_backward(stacked, k, v, shares, sink_shares, first)
        ctx.scale = scale
        return (shares @ v).view(q.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v and sinks."""
        stacked, k, v, shares, sink_shares, first = ctx.saved_tensors
        heads, steps, shape = sink_shares.shape[1], sink_shares.shape[2], grad.shape
        grad = grad.reshape(stacked.shape)
        grad_v = shares.transpose(-1, -2) @ grad
        scores = grad @ v.transpose(-1, -2)  # the shares' gradient until the next line
        full = (len(grad), heads, steps, steps)
        sinks = kernels().softmax_backward(
            scores.view(full), shares.view(full), sink_shares, first, ctx.scale
        )
        grad_q, grad_k = scores @ k, scores.transpose(-1, -2) @ stacked
        return grad_q.view(shape), grad_k, grad_v, sinks.to(k.dtype), None


def moe_forward(self: twin.Moe, x: Tensor) -> Tensor:
    """`Moe.forward` with the rows of each expert padded by zeros, as ROWS says."""
    t = self.norm(x).flatten(0, 1)
    logits, chosen = self.router(t).float().topk(self.top_k, dim=-1)
    experts = chosen.flatten()
    order = experts.argsort(stable=True)
    counts = experts.bincount(minlength=self.router.out_features)
    padded = (counts + ROWS - 1) // ROWS * ROWS
    shift = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)
    places = torch.arange(len(order)) + shift[experts[order]]  # of the sorted pairs
    place = torch.empty_like(order).scatter_(0, order, places)  # of the pairs in order of token
    sizes = padded.tolist()
    blank = t.new_zeros(sum(sizes), t.shape[1])
    rows = blank.index_copy(0, place, t.repeat_interleave(self.top_k, 0))
    gate_up, down = self.gate_up, self.down
    inner = twin.swiglu(GroupedLinear.apply(rows, gate_up.weight, gate_up.bias, sizes), self.limit)
    out = GroupedLinear.apply(inner, down.weight, down.bias, sizes)
    return twin.combine(out.index_select(0, place), logits).view(x.shape)


@torch.compiler.disable
def attend(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, first: Tensor) -> Tensor:
    return SinkAttention.apply(q.contiguous(), k.contiguous(), v.contiguous(), sinks, first)


def use() -> None:
    """Put these in the twin's place, for this process."""
    twin.Moe.forward = moe_forward
    twin.swiglu = SwiGLU.apply
