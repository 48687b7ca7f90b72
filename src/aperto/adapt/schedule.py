"""The learning rate of each step: a rise, then a cosine, a line or a constant."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from aperto.errors import ConfigError

Shape = Literal["cosine", "linear", "constant"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Learning rates of a run of `steps` steps. Raises ConfigError on values out of range."""

    steps: int
    """Optimiser steps."""
    peak: float = 2e-4
    """Highest rate, reached after the rise."""
    shape: Shape = "cosine"
    """How it falls from there on."""
    warmup: int = 0
    """Steps of the rise, a line from nought."""
    floor: float = 0.0
    """Share of the peak that the fall ends at."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"steps is {self.steps}; expected 1 or more")
        if not (math.isfinite(self.peak) and self.peak > 0):
            raise ConfigError(f"learning rate is {self.peak}; expected a number above 0")
        if not 0 <= self.warmup < self.steps:
            raise ConfigError(
                f"warm-up is {self.warmup} steps; expected 0 or more and fewer than the "
                f"{self.steps} of the run"
            )
        if not 0 <= self.floor <= 1:
            raise ConfigError(f"floor is {self.floor}; expected a share from 0 to 1")

    def rate(self, step: int) -> float:
        """Rate of step `step`, counted from 0; the last step of a fall is one above the floor."""
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        progress = (step - self.warmup) / (self.steps - self.warmup)
        falls = {
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
            "linear": 1 - progress,
            "constant": 1.0,
        }
        return self.peak * (self.floor + (1 - self.floor) * falls[self.shape])
