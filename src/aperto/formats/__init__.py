"""Checkpoints on disk: three layouts in, one `Checkpoint` out, and back."""

from aperto.formats.checkpoint import Checkpoint, Layout, TensorSource, TokenizerSource
from aperto.formats.open import open_checkpoint
from aperto.formats.requantize import QuantizedExperts, quantize_experts
from aperto.formats.tensor import DType, Tensor, TensorInfo
from aperto.formats.write import write_checkpoint

__all__ = [
    "Checkpoint",
    "DType",
    "Layout",
    "QuantizedExperts",
    "Tensor",
    "TensorInfo",
    "TensorSource",
    "TokenizerSource",
    "open_checkpoint",
    "quantize_experts",
    "write_checkpoint",
]
