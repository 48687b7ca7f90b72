"""Checkpoints on disk: three layouts in, one `Checkpoint` out, and back."""

from aperto.formats.checkpoint import Checkpoint, Layout, TensorSource, TokenizerSource
from aperto.formats.open import open_checkpoint
from aperto.formats.tensor import DType, Tensor, TensorInfo

__all__ = [
    "Checkpoint",
    "DType",
    "Layout",
    "Tensor",
    "TensorInfo",
    "TensorSource",
    "TokenizerSource",
    "open_checkpoint",
]
