"""Experts seen through MXFP4 while they are trained, as a checkpoint will store them.

The forward pass multiplies with round(W + scaling * B A), or with round(W) where W itself is
trained, rounded by the encoder that writes files; the gradient takes the rounding for nothing
(straight through). So what is trained is what is stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aperto import native
from aperto.adapt.experts import PackedExperts
from aperto.adapt.lora import Change, LoraExperts
from aperto.adapt.model import ExpertLinear, GptOss
from aperto.errors import ConfigError, TrainingError
from aperto.formats import mxfp4
from aperto.formats.mxfp4 import BLOCK, BLOCK_BYTES

Packed = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Blocks and scales of one matrix."""


class RoundedExperts(LoraExperts):
    """`LoraExperts` whose changed matrices are rounded to MXFP4; one exists at a time.

    They are kept packed until their change changes: a step multiplies with each several times.
    """

    def __init__(self, adapted: LoraExperts) -> None:
        nn.Module.__init__(self)
        self.base, self.changes = adapted.base, adapted.changes
        self._kept: dict[int, tuple[tuple[int, int], Packed]] = {}

    def rounded(self, expert: int) -> Tensor:
        """The matrix [out, in] of an adapted expert as merging stores it, float32.

        Raises TrainingError where it is not finite.
        """
        change = self.changes[str(expert)]
        assert isinstance(change, Change)
        versions = change.a._version, change.b._version
        found, packed = self._kept.get(expert, (None, None))
        if packed is None or found != versions:
            packed = self._packed(expert, change)
            self._kept[expert] = versions, packed
        exact = np.empty((packed[1].shape[0], packed[1].shape[1] * BLOCK), np.float32)
        native.decode_mxfp4(*packed, exact)
        return torch.from_numpy(exact).to(change.a.device)

    def _packed(self, expert: int, change: Change) -> Packed:
        a, b = (p.detach().float().cpu().numpy() for p in (change.a, change.b))
        # The sum is made in NumPy, as `formats.merged` does: another order has other last bits.
        exact = _matrix(self.base, expert) + np.float32(change.scaling) * (b @ a)
        rows, width = exact.shape
        blocks = np.empty((rows, width // BLOCK, BLOCK_BYTES), np.uint8)
        scales = np.empty((rows, width // BLOCK), np.uint8)
        try:
            native.encode_mxfp4(exact, blocks, scales)
        except ValueError as problem:
            raise TrainingError(
                f"expert {expert}: {problem}; expected finite weights; what was saved before is "
                "kept; begin again with a lower learning rate"
            ) from problem
        return blocks, scales

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        """x [M, in], sorted by expert, `counts` rows each -> [M, out]."""
        parts = []
        for expert, rows in enumerate(x.split(counts)):
            if str(expert) in self.changes and len(rows):
                change = self.changes[str(expert)]
                product = _Rounded.apply(rows, change.a, change.b, self, expert)
                parts.append(product + self.base.bias[expert].to(product.dtype))
            elif len(rows):
                alone = [len(rows) if e == expert else 0 for e in range(len(counts))]
                parts.append(self.base(rows, alone))
        return torch.cat(parts) if parts else x.new_zeros(0, self.base.shape[1])


class _Rounded(torch.autograd.Function):
    """A product with a rounded matrix, which is made again for the gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, experts: RoundedExperts, expert: int
    ) -> Tensor:
        """x [M, in] -> [M, out]."""
        ctx.save_for_backward(x, a, b)
        ctx.experts, ctx.expert = experts, expert
        return x @ experts.rounded(expert).to(x.dtype).T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Of x [M, in], A and B: those of W + scaling * B A, without its dense gradient."""
        x, a, b = ctx.saved_tensors
        scaling = ctx.experts.changes[str(ctx.expert)].scaling
        to_x = gradient @ ctx.experts.rounded(ctx.expert).to(gradient.dtype)
        wide, inputs = gradient.to(a.dtype) * scaling, x.to(a.dtype)
        return to_x, (wide @ b).T @ inputs, wide.T @ (inputs @ a.T), None, None


class RoundedWhole(nn.Module):
    """`ExpertLinear` whose trained weight is rounded to MXFP4 where it is multiplied."""

    def __init__(self, base: ExpertLinear) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        """x [M, in], sorted by expert, `counts` rows each -> [M, out]."""
        weight = _StraightThrough.apply(self.weight)
        parts = zip(x.split(counts), weight, self.bias, strict=True)
        return torch.cat([nn.functional.linear(rows, w, b) for rows, w, b in parts])


class _StraightThrough(torch.autograd.Function):
    """MXFP4's nearest values; their gradient is that of what was rounded."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        """[..., K] -> [..., K]. Raises TensorError for what is not finite."""
        exact = weight.detach().float().cpu().numpy()
        return torch.from_numpy(mxfp4.decode(*mxfp4.encode(exact))).to(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """As it comes."""
        return gradient


def attach_whole(model: GptOss) -> None:
    """Round every expert of a model whose weights are all trained, in place."""
    for layer in model.layers:
        for name in ("gate_up", "down"):
            setattr(layer.moe, name, RoundedWhole(getattr(layer.moe, name)))


def attach(model: GptOss) -> None:
    """Round the adapted experts of a model from now on, in place.

    Raises ConfigError where none is adapted, or where inputs of their changes are dropped.
    """
    found = 0
    for layer in model.layers:
        for name in ("gate_up", "down"):
            adapted = getattr(layer.moe, name)
            if not isinstance(adapted, LoraExperts):
                continue
            dropped = [c.dropout for c in adapted.changes.values() if isinstance(c, Change)]
            if any(dropped):
                raise ConfigError(
                    f"dropout is {dropped[0]}; expected 0 with rounding to MXFP4: there is one "
                    "rounded matrix, not one for each input"
                )
            setattr(layer.moe, name, RoundedExperts(adapted))
            found += 1
    if not found:
        raise ConfigError(
            "no expert is adapted, and nothing else is rounded to MXFP4; adapt experts too, as "
            "--targets attention,experts:4, or leave rounding out"
        )


def _matrix(base: ExpertLinear | PackedExperts, expert: int) -> NDArray[np.float32]:
    """One expert's weight in float32, a copy."""
    if isinstance(base, PackedExperts):
        blocks, scales = (t[expert].cpu().numpy() for t in (base.blocks, base.scales))
        return mxfp4.decode(blocks, scales)
    return base.weight[expert].detach().float().cpu().numpy().copy()
