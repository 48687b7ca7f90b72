"""Experts kept in MXFP4 while the rest of the model is trained: straight from the mapped file.

Each expert's matrix is decoded when its rows are multiplied, in the forward pass, in its
recomputation, and for the gradient of the input. It is frozen, so it needs none of its own.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aperto import native

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def decode_plain(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Values [out, in] of blocks [out, in/32, 16] and scales [out, in/32], on any device.

    The reference of the native decoder, and what other devices use.
    """
    table = torch.tensor(VALUES, dtype=torch.float32, device=blocks.device)
    pairs = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2)  # [out, in/32, 32]
    powers = torch.exp2(scales.float() - 127)[..., None]
    return (table[pairs.long()] * powers).flatten(-2).to(dtype)


class PackedExperts(nn.Module):
    """Like `model.ExpertLinear`, with the weight in MXFP4 and frozen; the bias may be trained.

    Args:
        blocks: [E, out, in/32, 16], bytes of two codes; may be a view of a mapped file.
        scales: [E, out, in/32], exponents.
        bias: [E, out].
        dtype: of activations and of decoded weights, bfloat16 or float32.
    """

    blocks: Tensor
    scales: Tensor

    def __init__(
        self,
        blocks: NDArray[np.uint8],
        scales: NDArray[np.uint8],
        bias: Tensor,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.register_buffer("blocks", _view(blocks), persistent=False)
        self.register_buffer("scales", _view(scales), persistent=False)
        self.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
        self.dtype = dtype

    @property
    def shape(self) -> tuple[int, int, int]:
        """Experts, outputs, inputs."""
        num_experts, rows, num_blocks = self.scales.shape
        return num_experts, rows, num_blocks * 32

    def matrix(self, expert: int) -> Tensor:
        """The weight [out, in] of one expert; on a CPU valid until this thread's next call."""
        blocks, scales = self.blocks[expert], self.scales[expert]
        if blocks.device.type != "cpu":
            return decode_plain(blocks, scales, self.dtype)
        return _decode_on_cpu(blocks, scales, self.dtype)

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        """x [M, in], sorted by expert, `counts` rows each -> [M, out]."""
        product: Tensor = _Frozen.apply(x, self.bias, self, counts)
        return product


class _Frozen(torch.autograd.Function):
    """Products with frozen weights, which are decoded again for the gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor, experts: PackedExperts, counts: list[int]
    ) -> Tensor:
        """x [M, in], bias [E, out] -> [M, out], written into one output."""
        ctx.experts, ctx.counts = experts, counts
        ctx.bias_dtype = bias.dtype
        added = bias.to(x.dtype)
        out = x.new_empty(len(x), experts.shape[1])
        for expert, rows in _rows_of(counts):
            weight = experts.matrix(expert)
            torch.addmm(added[expert], x[rows], weight.T, out=out[rows])
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """gradient [M, out] -> [M, in], and [E, out] of the bias where it is trained."""
        num_experts, outputs, inputs = ctx.experts.shape
        out = gradient.new_empty(len(gradient), inputs)
        bias = None
        if ctx.needs_input_grad[1]:
            bias = gradient.new_zeros(num_experts, outputs, dtype=ctx.bias_dtype)
        for expert, rows in _rows_of(ctx.counts):
            torch.mm(gradient[rows], ctx.experts.matrix(expert), out=out[rows])
            if bias is not None:
                bias[expert] = gradient[rows].sum(0, dtype=ctx.bias_dtype)
        return out, bias, None, None


def _rows_of(counts: list[int]) -> Iterator[tuple[int, slice]]:
    """Experts that have rows, and which."""
    begin = 0
    for expert, count in enumerate(counts):
        if count:
            yield expert, slice(begin, begin + count)
        begin += count


def _view(array: NDArray[np.uint8]) -> Tensor:
    """A tensor over the same memory, which nobody writes to; mapped files are read-only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="aperto-decode")


_local = threading.local()


def _scratch(size: int, dtype: torch.dtype) -> Tensor:
    """Memory of this thread that is used again: fresh pages cost more than decoding into them."""
    kept: Tensor | None = getattr(_local, str(dtype), None)
    if kept is None or len(kept) < size:
        kept = torch.empty(size, dtype=dtype)
        setattr(_local, str(dtype), kept)
    return kept[:size]


def _decode_on_cpu(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The native decoder on as many threads as torch uses."""
    rows, num_blocks = scales.shape
    out = _scratch(rows * num_blocks * 32, dtype).view(rows, num_blocks * 32)
    target = out.view(torch.uint16).numpy() if dtype is torch.bfloat16 else out.numpy()
    source, exponents = blocks.numpy(), scales.numpy()
    step = -(-rows // torch.get_num_threads())

    def decode(begin: int) -> None:
        part = slice(begin, begin + step)
        if dtype is torch.bfloat16:
            native.decode_mxfp4_bf16(source[part], exponents[part], target[part])
        else:
            native.decode_mxfp4(source[part], exponents[part], target[part])

    if step == rows:
        decode(0)
    else:
        list(_pool().map(decode, range(0, rows, step)))
    return out
