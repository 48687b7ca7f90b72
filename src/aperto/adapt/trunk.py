"""The residual stream before the layers that are trained, kept on disk: made once, read each step.

Where only the top layers are trained, what the layers below give for a row never changes. A file
in the run's folder holds it for every row: float32, or bfloat16 where the model computes in it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aperto.adapt.attention import widen
from aperto.adapt.batches import batch_of
from aperto.adapt.model import GptOss
from aperto.adapt.packing import Row
from aperto.errors import UsageError
from aperto.formats.disk import replace_file, require_free

VALUES = "trunk.bin"
PROGRESS = "trunk.json"
_SAVE_EVERY = 16
"""Rows between two notes of how far the file is."""


class Trunk:
    """The frozen layers' results for the rows of a run.

    Args:
        folder: of the run; the file is made there, or gone on with.
        model: the twin; its layers before `first_layer` are never trained.
        rows: what is learnt.
        first_layer: the first layer that is trained.
        dtype: of what is kept, float32 or bfloat16.
    """

    def __init__(
        self, folder: Path, model: GptOss, rows: Sequence[Row], first_layer: int, dtype: torch.dtype
    ) -> None:
        self._folder, self._model, self._rows = folder, model, rows
        self._first, self._dtype = first_layer, dtype
        self._shape = (len(rows), len(rows[0].token_ids), model.config.hidden_size)

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return math.prod(self._shape) * self._dtype.itemsize

    def fill(self, watch: Callable[[int, int], None] | None = None) -> None:
        """Compute the rows that are missing; interrupted, the next call goes on.

        Raises:
            DiskSpaceError: before anything is computed, where the file has no room.
            UsageError: the folder's file is of other rows.
        """
        done = self._done()
        if done == len(self._rows):
            return
        if not done:
            self._folder.mkdir(parents=True, exist_ok=True)
            require_free(self._folder, self.nbytes, "the frozen layers' results")
        was_training = self._model.training
        self._model.eval()
        with (self._folder / VALUES).open("r+b" if done else "wb") as file:
            file.seek(done * (self.nbytes // len(self._rows)))
            file.truncate()
            for index in range(done, len(self._rows)):
                file.write(_bytes_of(self._computed(index)))
                if (index + 1) % _SAVE_EVERY == 0 or index + 1 == len(self._rows):
                    file.flush()
                    os.fsync(file.fileno())
                    self._note(index + 1)
                if watch is not None:
                    watch(index + 1, len(self._rows))
        self._model.train(was_training)

    def of(self, indices: Sequence[int]) -> Tensor:
        """The residual stream [B, T, H] of some rows, float32."""
        kept = np.memmap(self._folder / VALUES, self._stored, "r", shape=self._shape)
        chosen = torch.from_numpy(np.stack([kept[i] for i in indices]))
        return chosen.view(self._dtype).float()

    @property
    def _stored(self) -> Any:
        return np.uint16 if self._dtype is torch.bfloat16 else np.float32

    def _computed(self, index: int) -> Tensor:
        batch = batch_of([self._rows[index]], self._model.embedding.weight.device)
        with torch.inference_mode():
            x = widen(self._model.embedding(batch.token_ids))
            return self._model.through(x, batch.segments, range(self._first)).to("cpu", self._dtype)

    def _identity(self) -> Mapping[str, Any]:
        return {"shape": list(self._shape), "dtype": str(self._dtype), "first_layer": self._first}

    def _note(self, done: int) -> None:
        text = json.dumps({"rows_done": done, **self._identity()}) + "\n"
        replace_file(self._folder / PROGRESS, text.encode())

    def _done(self) -> int:
        file = self._folder / PROGRESS
        if not file.exists():
            return 0
        found = json.loads(file.read_text(encoding="utf-8"))
        done = int(found.pop("rows_done"))
        if found != self._identity():
            raise UsageError(
                f"{file}: found {found}, expected {dict(self._identity())}; remove {VALUES} and "
                f"{PROGRESS} to compute them again"
            )
        return done


def _bytes_of(values: Tensor) -> bytes:
    """A tensor's memory, bfloat16 too."""
    plain = values.view(torch.uint16) if values.dtype is torch.bfloat16 else values
    array: NDArray[Any] = plain.numpy()
    return array.tobytes()
