"""What is trained and for how long: nano's shape and the whole recipe in numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from aperto.config import LayerConfig, ModelConfig

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "src" / "aperto" / "nano" / "tokenizer.json"
CONFIG = ModelConfig(
    vocab_size=2048,
    hidden_size=256,
    intermediate_size=256,
    head_dim=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    layers=tuple(LayerConfig(window, 8, 2) for window in (128, 0) * 3),
)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The whole recipe in numbers."""

    steps: int = 6000
    """Optimiser steps."""
    micro_batches: int = 4
    """Micro-batches of a step."""
    rows: int = 4
    """Packed rows of a micro-batch."""
    length: int = 480
    """Tokens of a row."""
    warmup: int = 50
    """Steps over which the learning rates rise."""
    drill: float = 0.05
    """Share of the steps that use the drill mix."""
    flat: float = 0.5
    """Share of the steps after which the learning rates fall, linearly to 1 %."""
    quantised: float = 0.7
    """Share of the steps after which experts are rounded to MXFP4."""
    muon_lr: float = 0.015
    """Learning rate of the matrices inside the layers (orthogonalised momentum)."""
    adam_lr: float = 3e-3
    """Learning rate of everything else."""
    balance: float = 0.005
    """Weight of the loss that spreads tokens over experts."""
    seed: int = 1
    """Seed of weights and data."""

    def rate(self, step: int) -> float:
        """Factor of both learning rates at a step."""
        fall = max(min(1.0, (1 - self.progress(step)) / (1 - self.flat)), 0.01)
        return fall * min((step + 1) / self.warmup, 1.0)

    def progress(self, step: int) -> float:
        """The share of the run that is done before a step."""
        return step / self.steps

    def mix(self, step: int) -> str:
        """Name of the data mix of a step."""
        return "drill" if self.progress(step) < self.drill else "full"

    def rounds(self, step: int) -> bool:
        """Whether a step computes with experts as MXFP4 holds them."""
        return self.progress(step) >= self.quantised
