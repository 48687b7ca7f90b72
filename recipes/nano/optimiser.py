"""Muon for the matrices inside the layers, AdamW for the rest."""

from __future__ import annotations

from typing import Any

import torch
from schedule import Schedule
from torch import Tensor, nn
from weights import is_matrix


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrices to [n, rows, columns], by Newton-Schulz."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).bfloat16()
    for _ in range(5):
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return (x.mT if tall else x).float()


class Optimiser(torch.optim.Optimizer):
    """Muon for the matrices inside the layers, AdamW for the rest; the schedule sets the rates."""

    def __init__(self, weights: dict[str, nn.Parameter], schedule: Schedule) -> None:
        matrices = [w for n, w in weights.items() if is_matrix(n)]
        self.rest = [w for n, w in weights.items() if not is_matrix(n)]
        super().__init__(matrices, {"lr": 0.0})
        groups = [
            {"params": [w for w in self.rest if w.dim() > 1], "weight_decay": 0.02},
            {"params": [w for w in self.rest if w.dim() <= 1], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, 0.0, betas=(0.9, 0.95), fused=True)
        self.schedule = schedule

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step down the gradients."""
        nn.utils.clip_grad_norm_(self.rest, 1.0)
        rate = self.param_groups[0]["lr"]
        for group in self.adam.param_groups:
            group["lr"] = self.schedule.adam_lr * rate
        self.adam.step()
        lr = self.schedule.muon_lr * rate
        for weight in self.param_groups[0]["params"]:
            momentum = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
            momentum.lerp_(weight.grad, 0.05)
            ahead = weight.grad.lerp(momentum, 0.95)
            update = orthogonalise(ahead.view(-1, *weight.shape[-2:])).view(weight.shape)
            scale = max(1.0, weight.shape[-2] / weight.shape[-1]) ** 0.5
            weight.mul_(1 - 0.1 * lr).sub_(update, alpha=lr * scale)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of both parts."""
        super().zero_grad(set_to_none)
        self.adam.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Of both parts."""
        return {"muon": super().state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict(state_dict["muon"])
        self.adam.load_state_dict(state_dict["adam"])
