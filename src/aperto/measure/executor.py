"""Executor for aperto: a model in a process of its own, driven by `aperto.measure.bench`.

Reads one JSON command a line from standard input and answers each with one JSON line, as
`peer_llama.py` does for llama.cpp. Prompts and single tokens go straight to the forward pass;
`generate` goes through the engine.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aperto.config import EngineConfig, Precision
from aperto.engine import Engine, Request, SamplingParams
from aperto.engine.core import CoreModel
from aperto.engine.load import load_model
from aperto.formats import Checkpoint, open_checkpoint
from aperto.formats.packed import open_packed

_READ_BYTES = 16 << 20


class Sequence:
    """One sequence in a cache of its own; windowed groups reuse the pages behind the window."""

    def __init__(self, model: CoreModel, context: int, batch_tokens: int) -> None:
        self._model = model
        self._batch_tokens = batch_tokens
        self._num_pages = -(-context // model.page_tokens)
        self._held = tuple(
            min(self._num_pages, (window + batch_tokens) // model.page_tokens + 2)
            if window
            else self._num_pages
            for window in model.window_groups
        )
        self._cache = model.new_cache(self._held)
        self.depth = 0

    def append(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """Run the forward pass over ids [n], n > 0, a batch at a time; logits are made for the
        last of each batch, and returned, [1, vocab], for the last of all.
        """
        for first in range(0, len(ids), self._batch_tokens):
            logits = self._step(ids[first : first + self._batch_tokens])
        return logits

    def _step(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        positions = np.arange(self.depth, self.depth + len(ids), dtype=np.int32)
        logits = self._model.forward(
            self._cache,
            ids,
            positions,
            np.zeros(len(ids), dtype=np.int32),
            [self._table(group, len(ids)) for group in range(len(self._held))],
            np.array([len(ids) - 1], dtype=np.int32),
        )
        self.depth += len(ids)
        return logits

    def _table(self, group: int, num_tokens: int) -> NDArray[np.int32]:
        """Page table [1, pages]: what the next num_tokens write and see, round a ring of pages."""
        window, page = self._model.window_groups[group], self._model.page_tokens
        oldest = max(0, self.depth - window + 1) if window else 0
        logical = np.arange(self._num_pages, dtype=np.int32)
        used = (logical >= oldest // page) & (logical <= (self.depth + num_tokens - 1) // page)
        return np.where(used, logical % self._held[group], -1).astype(np.int32)[None]


class Executor:
    """One model and one sequence; commands are its methods."""

    def load(
        self,
        path: str,
        threads: int,
        context: int,
        precision: Precision,
        cache_dir: str,
        isa: str,
    ) -> dict[str, Any]:
        """Load a model whose files are resident and make room for `context` tokens."""
        cache = Path(cache_dir)
        _make_resident(open_checkpoint(path), precision, cache)
        start = time.perf_counter()
        checkpoint = open_checkpoint(path)
        self.model = load_model(
            checkpoint, precision=precision, num_threads=threads, isa=isa, cache_dir=cache
        )
        self._context = context
        self.clear()
        return {"seconds": time.perf_counter() - start, "engine": f"aperto, {self.model.isa}"}

    def clear(self) -> dict[str, Any]:
        """Forget every token."""
        self.sequence = Sequence(self.model, self._context, self.model.max_batch_tokens)
        return {}

    def feed(self, ids: list[int]) -> dict[str, Any]:
        """Append tokens as a prompt; logits are made for the last one of a batch."""
        tokens = np.array(ids, dtype=np.int32)
        start = time.perf_counter()
        self.sequence.append(tokens)
        return {"seconds": time.perf_counter() - start}

    def decode(self, ids: list[int]) -> dict[str, Any]:
        """Append tokens one at a time, with logits for each, as generation does."""
        tokens = np.array(ids, dtype=np.int32)
        start = time.perf_counter()
        for index in range(len(tokens)):
            self.sequence.append(tokens[index : index + 1])
        return {"seconds": time.perf_counter() - start}

    def generate(self, ids: list[int], tokens: int) -> dict[str, Any]:
        """Let the engine draw `tokens` tokens after a prompt, sampling and scheduling included."""
        config = EngineConfig(context_tokens=self._context)
        request = Request(prompt=ids, max_tokens=tokens, sampling=SamplingParams(seed=0))
        with Engine(self.model, config) as engine:
            stream = engine.submit(request)
            for _ in stream:
                pass
            timings = stream.timings
        return {"seconds": timings.decode_s, "tokens": timings.decode_tokens}


def _make_resident(checkpoint: Checkpoint, precision: Precision, cache_dir: Path) -> None:
    """Pack the weights where that was not done yet, and read the packed file through once."""
    path = open_packed(checkpoint, precision, cache_dir).path
    if path is not None:
        read_through(path)


def read_through(path: Path) -> None:
    """Read a file to its end, so that the system holds its pages."""
    buffer = bytearray(_READ_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def main() -> None:
    """Answer commands until the input ends."""
    executor = Executor()
    for line in sys.stdin:
        command = json.loads(line)
        answer = getattr(executor, command.pop("do"))(**command)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
