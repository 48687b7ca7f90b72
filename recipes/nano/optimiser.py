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


class Optimiser:
    """Muon for the matrices inside the layers, AdamW for the rest."""

    def __init__(self, weights: dict[str, Tensor], schedule: Schedule) -> None:
        self.schedule = schedule
        self.matrices = {n: w for n, w in weights.items() if is_matrix(n)}
        self.momentum = {n: torch.zeros_like(w) for n, w in self.matrices.items()}
        self.rest = {n: w for n, w in weights.items() if not is_matrix(n)}
        for weight in self.rest.values():
            weight.grad = torch.zeros_like(weight)
        decayed = [w for n, w in self.rest.items() if w.dim() > 1]
        plain = [w for n, w in self.rest.items() if w.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(groups, schedule.adam_lr, betas=(0.9, 0.95), fused=True)

    def step(self, gradients: dict[str, Tensor], rate: float) -> None:
        """One step down `gradients`, with both learning rates times `rate`."""
        for name, weight in self.rest.items():
            weight.grad.copy_(gradients[name])
        nn.utils.clip_grad_norm_(self.rest.values(), 1.0)
        for group in self.adam.param_groups:
            group["lr"] = self.schedule.adam_lr * rate
        self.adam.step()
        lr = self.schedule.muon_lr * rate
        for name, weight in self.matrices.items():
            momentum = self.momentum[name].lerp_(gradients[name], 0.05)
            ahead = gradients[name].lerp(momentum, 0.95)
            update = orthogonalise(ahead.view(-1, *weight.shape[-2:])).view(weight.shape)
            scale = max(1.0, weight.shape[-2] / weight.shape[-1]) ** 0.5
            weight.mul_(1 - 0.1 * lr).sub_(update, alpha=lr * scale)

    def state(self) -> dict[str, Any]:
        """What `load` needs."""
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        for name, value in state["momentum"].items():
            self.momentum[name].copy_(value)
        self.adam.load_state_dict(state["adam"])
