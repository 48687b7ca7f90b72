"""AdamW whose two moments take one byte a value each.

A moment is kept as an 8-bit float (e4m3) with one scale for each block of values, so that one large
value does not cost its far neighbours their precision. Second moments are kept as square roots,
which halves the range they need. Rounding is stochastic: a moving average whose step is smaller
than the spacing of an 8-bit float would otherwise never move (Loshchilov and Hutter 2019 for AdamW;
Dettmers et al. 2022 for blocks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

OptimiserName = Literal["adamw", "adamw8bit"]
BLOCK = 256
"""Values that share a scale."""
_LARGEST = 448.0  # of e4m3
_DROPPED_BITS = 20  # of a float32's 23 of fraction, e4m3 keeps 3


def make_optimiser(
    name: OptimiserName,
    parameters: Iterable[torch.nn.Parameter],
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> Optimizer:
    """AdamW over `parameters`, with moments of 4 bytes or of 1; the rate is set step by step."""
    options: dict[str, Any] = {"lr": 0.0, "betas": betas, "weight_decay": weight_decay}
    if name == "adamw":
        return torch.optim.AdamW(parameters, foreach=False, **options)
    return AdamW8bit(parameters, **options)


class AdamW8bit(Optimizer):
    """AdamW with moments in 8 bits; the same state and gradients give the same bits.

    Args:
        parameters: float32 tensors, or groups of them.
        lr: learning rate.
        betas: decays of the two moments.
        eps: added to the root of the second moment.
        weight_decay: share of each value taken off, times the rate.
    """

    def __init__(
        self,
        parameters: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    self._update(parameter, group, index)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimiser's, but the codes stay bytes, which torch would make floats of."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, saved in state_dict["state"].items():
            device = parameters[index].device
            self.state[parameters[index]] = {
                key: value.to(device, copy=True) if isinstance(value, Tensor) else value
                for key, value in saved.items()
            }

    def _update(self, parameter: Tensor, group: dict[str, Any], index: int) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["mean"], state["mean_scale"] = encode(torch.zeros_like(parameter), None)
            state["root"], state["root_scale"] = encode(torch.zeros_like(parameter), None)
        state["step"] += 1
        step, (decay_mean, decay_square) = state["step"], group["betas"]
        mean = decode(state["mean"], state["mean_scale"], parameter.shape)
        square = decode(state["root"], state["root_scale"], parameter.shape).square_()
        gradient = parameter.grad
        assert gradient is not None
        mean.lerp_(gradient, 1 - decay_mean)
        square.mul_(decay_square).addcmul_(gradient, gradient, value=1 - decay_square)
        root = square.sqrt_()
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        scale = group["lr"] / (1 - decay_mean**step)
        denominator = (root / (1 - decay_square**step) ** 0.5).add_(group["eps"])
        parameter.addcdiv_(mean, denominator, value=-scale)
        drawn = torch.Generator(device=parameter.device).manual_seed((step << 20) + index)
        state["mean"], state["mean_scale"] = encode(mean, drawn)
        codes, state["root_scale"] = encode(root, drawn)
        # None becomes nought, or a mean that is still there would be divided by it.
        state["root"] = codes.clamp_(min=1)


def encode(values: Tensor, drawn: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Codes, uint8 [n blocks, BLOCK], and scales, float32 [n blocks, 1], of `values` of any shape.

    `drawn` rounds up or down by chance, so that the mean of many roundings is the value; without
    it, to the nearest.
    """
    flat = values.flatten().float()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = padded.abs().amax(1, keepdim=True).clamp_(min=1e-38) / _LARGEST
    scaled = padded / scales
    if drawn is not None:
        noise = torch.randint(
            0, 1 << _DROPPED_BITS, scaled.shape, dtype=torch.int32, generator=drawn,
            device=scaled.device,
        )  # fmt: skip
        bits = (scaled.view(torch.int32) + noise) & ~((1 << _DROPPED_BITS) - 1)
        scaled = bits.view(torch.float32).clamp_(-_LARGEST, _LARGEST)
    return scaled.to(torch.float8_e4m3fn).view(torch.uint8), scales


def decode(codes: Tensor, scales: Tensor, shape: torch.Size) -> Tensor:
    """The float32 values of `encode`."""
    values = codes.view(torch.float8_e4m3fn).float() * scales
    return values.flatten()[: shape.numel()].view(shape)
