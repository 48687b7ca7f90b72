"""Nano's weights in training: how they begin, and what each step rounds them to."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from aperto.config import ModelConfig


def initial_weights(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fan-in scaled normal weights; what writes into the residual stream is smaller by depth."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "sinks")):
            parameter.data.zero_()
        elif "norm" in name:
            parameter.data.fill_(1.0)
        else:
            std = 1 / math.sqrt(parameter.shape[-1])
            if name.endswith(("out.weight", "down.weight")):
                std /= math.sqrt(2 * config.num_layers)
            std = {"embedding.weight": 0.5, "head.weight": 0.3 * std}.get(name, std)
            parameter.data.normal_(0, std, generator=generator)


def is_expert(name: str) -> bool:
    return name.endswith(("gate_up.weight", "down.weight"))


def is_matrix(name: str) -> bool:
    """Whether Muon trains it: attention and expert matrices."""
    return is_expert(name) or (
        ".attn." in name
        and name.split(".")[-2] in ("q", "k", "v", "out")
        and name.endswith("weight")
    )


def fake_quantise(weight: Tensor) -> Tensor:
    """The nearest values that MXFP4 can hold, as `aperto.formats.mxfp4.encode` rounds."""
    blocks = weight.reshape(-1, 32)
    top = blocks.abs().amax(-1, keepdim=True)
    exponent = torch.where(top > 0, torch.frexp(top).exponent - 3, -127).clamp(min=-127)
    unit = torch.ldexp(torch.ones_like(top), exponent)
    scaled = blocks / unit
    size = scaled.abs()
    grid = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return ((scaled / grid).round() * grid).clamp(-6, 6).mul(unit).view(weight.shape)


def views(flat: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """A vector cut into one view a parameter of `model`, in its order."""
    parts = flat.split([p.numel() for p in model.parameters()])
    named = model.named_parameters()
    return {name: part.view(p.shape) for (name, p), part in zip(named, parts, strict=True)}
