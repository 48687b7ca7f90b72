"""The logit lens: what the model would say, were a layer its last one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from aperto.formats import Checkpoint

_CHUNK_ROWS = 16384


class Lens:
    """The last norm and the head, applied to the residual stream of any layer."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._norm = checkpoint.tensor("norm.weight").to_float32()
        self._head = checkpoint.tensor("head.weight")
        self._eps = checkpoint.config.rms_norm_eps

    def read(self, residual: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The likeliest token and its probability for each row of [T, hidden]."""
        mean = np.square(residual).mean(axis=1, keepdims=True)
        normed = residual / np.sqrt(mean + self._eps) * self._norm
        rows = np.arange(len(residual))
        best = np.full(len(residual), -np.inf)
        total = np.zeros(len(residual))
        token = np.zeros(len(residual), np.int64)
        # In pieces of the vocabulary: the head as float32 is larger than all the rest.
        for start in range(0, self._head.shape[0], _CHUNK_ROWS):
            logits = normed @ self._rows(start).T
            top = logits.argmax(axis=1)
            found = logits[rows, top].astype(np.float64)
            higher = np.maximum(best, found)
            total = total * np.exp(best - higher) + np.exp(logits - higher[:, None]).sum(axis=1)
            token = np.where(found > best, top + start, token)
            best = higher
        return token, (1.0 / total).astype(np.float32)

    def _rows(self, start: int) -> NDArray[np.float32]:
        head = self._head
        end = min(start + _CHUNK_ROWS, head.shape[0])
        part = type(head)(
            head.name, head.dtype, (end - start, *head.shape[1:]), head.data[start:end], None
        )
        return part.to_float32()
