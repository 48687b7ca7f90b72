"""Where the twin computes: a CPU, or a GPU that torch knows.

On a CPU experts are decoded by the native core and attention is blocked; elsewhere both are plain
torch. The plain path is tested on a CPU against the other one; no GPU has run it yet.
"""

from __future__ import annotations

import torch

from aperto.adapt.attention import Attend, attend, blocked_attend
from aperto.errors import ConfigError
from aperto.machine import available_bytes

DEVICES = ("cpu", "cuda", "mps")


def check_device(name: str) -> None:
    """Raise ConfigError where torch cannot compute on a device here."""
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.mps.is_available()}
    if name not in found:
        raise ConfigError(f"device is {name!r}; expected one of {', '.join(DEVICES)}")
    if not found[name]:
        raise ConfigError(
            f"device is {name!r}, which torch {torch.__version__} does not find here; expected "
            f"one of {', '.join(d for d, there in found.items() if there)}; for CUDA install "
            "torch's build for it"
        )


def check_optimiser(device: str, optimiser: str) -> None:
    """Raise ConfigError where a device has no such optimiser."""
    if device == "mps" and optimiser == "adamw8bit":
        raise ConfigError("adamw8bit on mps, which has no 8-bit floats; expected adamw there")


def wait_for(device: torch.device) -> None:
    """Return when a device has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def free_memory(name: str) -> int:
    """Bytes that a run on a device may take."""
    return torch.cuda.mem_get_info()[0] if name == "cuda" else available_bytes()


def attention_on(name: str) -> Attend:
    """How queries meet keys there."""
    return blocked_attend if name == "cpu" else attend
