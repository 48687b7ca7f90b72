"""Drives the forward pass as an engine would: sequences, pages handed out out of order, windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from tests.tiny import write_tiny

from aperto.config import Precision
from aperto.engine.load import load_model
from aperto.formats import open_checkpoint
from aperto.native import PAGE_TOKENS, Model

Run = tuple[int, int]
"""(sequence, number of its next tokens)."""


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of write_tiny: architectures whose sizes meet every rounding inside the core."""
    kv_heads = draw(st.sampled_from([1, 2]))
    head_dim = draw(st.sampled_from([16, 32, 48, 64]))
    per_kv = draw(st.sampled_from([2, 4, 8] if head_dim % 32 and kv_heads == 1 else [1, 2, 4, 8]))
    windows = draw(st.lists(st.sampled_from([0, 1, 3, 32, 33, 50, 500]), min_size=1, max_size=3))
    experts = [draw(st.sampled_from([1, 2, 5, 17, 32])) for _ in windows]
    return {
        "seed": draw(st.integers(0, 2**32)),
        "hidden": draw(st.sampled_from([32, 64, 96])),
        "intermediate": draw(st.sampled_from([32, 64])),
        "windows": tuple(windows),
        "experts": tuple(experts),
        "top_k": tuple(draw(st.integers(1, min(4, count))) for count in experts),
        "kv_heads": kv_heads,
        "heads": kv_heads * per_kv,
        "head_dim": head_dim,
        "vocab": draw(st.sampled_from([32, 41, 80])),
    }


class Weights:
    """A tiny checkpoint on disk, loaded as often as wanted with other settings."""

    def __init__(self, shape: dict[str, Any], folder: Path) -> None:
        self.checkpoint = open_checkpoint(write_tiny(folder / "tiny", **shape))

    def model(self, precision: Precision = "q8", threads: int = 1, isa: str = "") -> Model:
        return load_model(self.checkpoint, precision=precision, num_threads=threads, isa=isa)


def random_ids(model: Model, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, count, dtype=np.int32)


def whole(model: Model, ids: np.ndarray, variant: Any = None) -> np.ndarray:
    """Logits [n, vocab] of a text fed at once, alone, its pages in order."""
    pages = -(-len(ids) // PAGE_TOKENS)
    groups = len(model.window_groups)
    count = np.arange(len(ids), dtype=np.int32)
    table = np.arange(pages, dtype=np.int32)[None]
    cache = model.new_cache([pages] * groups)
    rows = np.zeros_like(count)
    return model.forward(cache, ids, count, rows, [table] * groups, count, variants=[variant])


class Session:
    """Sequences that share one cache; page numbers come from a shuffled free list.

    A page whose last reader is gone, or that lies behind the window of all its readers, goes back
    to the free list at once and is the next one handed out, so strangers overwrite it.
    """

    def __init__(self, model: Model, texts: list[np.ndarray], pages: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.model, self.texts = model, texts
        self.cache = model.new_cache([pages] * len(model.window_groups))
        self.free = [list(rng.permutation(pages)) for _ in model.window_groups]
        self.readers = [np.zeros(pages, int) for _ in model.window_groups]
        width = max(-(-len(text) // PAGE_TOKENS) for text in texts)
        # Rows in another order than the sequences; unused entries are -1 and must not be read.
        self.row = rng.permutation(len(texts))
        self.tables = [np.full((len(texts), width), -1, np.int32) for _ in model.window_groups]
        self.done = [0] * len(texts)
        self.logits: list[list[np.ndarray]] = [[] for _ in texts]
        self.variants: list[Any] | None = None
        """A variant or None for each sequence."""

    def step(self, runs: list[Run]) -> None:
        """Feed the next tokens of some sequences in one batch and keep their logits."""
        ids, positions, rows = [], [], []
        for sequence, count in runs:
            begin = self.done[sequence]
            ids.append(self.texts[sequence][begin : begin + count])
            positions.append(np.arange(begin, begin + count, dtype=np.int32))
            rows.append(np.full(count, self.row[sequence], np.int32))
            self._allocate(sequence, begin, begin + count)
        total = sum(count for _, count in runs)
        out = self.model.forward(
            self.cache,
            np.concatenate(ids),
            np.concatenate(positions),
            np.concatenate(rows),
            self.tables,
            np.arange(total, dtype=np.int32),
            variants=self.variants and [self.variants[i] for i in np.argsort(self.row)],
        )
        for sequence, count in runs:
            self.logits[sequence].append(out[:count])
            out = out[count:]
            self.done[sequence] += count
            self._free_behind_windows(sequence)

    def result(self, sequence: int) -> np.ndarray:
        """All logits of a sequence so far, [done, vocab]."""
        return np.concatenate(self.logits[sequence])

    def fork(self, parent: int, child: int) -> None:
        """Let `child` go on where `parent` stands: full pages shared, a begun page copied."""
        begun = self.done[parent] % PAGE_TOKENS != 0
        for group, table in enumerate(self.tables):
            source = table[self.row[parent]]
            table[self.row[child]] = source
            last = self.done[parent] // PAGE_TOKENS
            for entry, page in enumerate(source[: last + begun]):
                if entry == last:
                    copy = self.free[group].pop()
                    self.cache.copy_page(group, int(page), int(copy))
                    table[self.row[child], entry] = page = copy
                if page >= 0:
                    self.readers[group][page] += 1
        self.done[child] = self.done[parent]

    def _allocate(self, sequence: int, begin: int, end: int) -> None:
        for group, table in enumerate(self.tables):
            for entry in range(-(-begin // PAGE_TOKENS), -(-end // PAGE_TOKENS)):
                page = self.free[group].pop()
                table[self.row[sequence], entry] = page
                self.readers[group][page] += 1

    def _free_behind_windows(self, sequence: int) -> None:
        for group, window in enumerate(self.model.window_groups):
            if window == 0:
                continue
            oldest = max(0, self.done[sequence] + 1 - window)
            entries = self.tables[group][self.row[sequence]]
            for entry in range(oldest // PAGE_TOKENS):
                page = entries[entry]
                if page < 0:
                    continue
                entries[entry] = -1
                self.readers[group][page] -= 1
                if self.readers[group][page] == 0:
                    self.free[group].append(page)
