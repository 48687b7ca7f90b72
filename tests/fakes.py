"""Stand-ins for the native core: a model whose answers betray any mistake in the page tables."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence

import numpy as np

from aperto.config import LayerConfig, ModelConfig
from aperto.engine.core import SampleResult
from aperto.engine.sampling import SampleRow
from aperto.tokenizer import Tokenizer

U64 = np.uint64


def mix(x: np.ndarray | int) -> np.ndarray:
    """SplitMix64's finisher: spreads every input bit over the output."""
    with np.errstate(over="ignore"):
        z = np.asarray(x, dtype=U64) + U64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> U64(27))) * U64(0x94D049BB133111EB)
        return z ^ (z >> U64(31))


def tiny_config(windows: Sequence[int], vocab_size: int, max_context: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=32,
        head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        layers=tuple(LayerConfig(w, 4, 2) for w in windows),
        max_context=max_context,
    )


class FakeCache:
    """What each slot of each page holds; 0 where nothing was ever written."""

    def __init__(self, num_pages: Sequence[int], page_tokens: int) -> None:
        self.slots = [np.zeros((n, page_tokens), dtype=U64) for n in num_pages]
        self.nbytes = sum(s.nbytes for s in self.slots)

    def page(self, group: int, page: int) -> np.ndarray:
        return self.slots[group][page].view(np.uint8)


class FakeModel:
    """The "keys and values" of a position are a hash of all tokens up to it.

    Logits are a hash of what is read back through the page tables over each group's window, so a
    wrong, freed or stale page, or a page of another prefix, shows up as other tokens; a missing
    one raises.
    """

    def __init__(
        self,
        windows: Sequence[int] = (8, 0),
        page_tokens: int = 4,
        vocab_size: int = 64,
        max_context: int = 256,
    ) -> None:
        self.config = tiny_config(windows, vocab_size, max_context)
        self.window_groups = tuple(windows)
        self.page_tokens = page_tokens
        self.num_computed = 0
        self.batch_sizes: list[int] = []
        self.fail_on: int | None = None
        """A token id that makes the forward pass fail."""
        self.gate: threading.Semaphore | None = None
        """Each forward pass takes one permit, where a test wants to hold the engine."""

    def page_bytes(self, group: int) -> int:
        return self.page_tokens * 8

    def new_cache(self, num_pages: Sequence[int]) -> FakeCache:
        return FakeCache(num_pages, self.page_tokens)

    def forward(self, cache, token_ids, positions, seq_idx, page_tables, output_rows):
        if self.gate is not None:
            self.gate.acquire()
        if self.fail_on is not None and self.fail_on in token_ids:
            raise RuntimeError(f"token {self.fail_on} cannot be computed")
        assert len(token_ids) == len(positions) == len(seq_idx) > 0
        self.batch_sizes.append(len(token_ids))
        self.num_computed += len(token_ids)
        wanted = dict.fromkeys(output_rows.tolist())
        rows = {}
        for idx, (token, position, row) in enumerate(
            zip(token_ids.tolist(), positions.tolist(), seq_idx.tolist(), strict=True)
        ):
            for group, window in enumerate(self.window_groups):
                slots, table = cache.slots[group], page_tables[group][row]
                value = mix(token * 1000003 + position)
                if position > 0 and window != 1:
                    value = mix(value ^ self._read(slots, table, position - 1, position)[0])
                page = table[position // self.page_tokens]
                assert page >= 0, f"position {position} has no page in group {group}"
                slots[page, position % self.page_tokens] = value
            if idx in wanted:
                rows[idx] = self._logits(cache, page_tables, row, position)
        if not rows:
            return np.empty((0, self.config.vocab_size), dtype=np.float32)
        return np.stack([rows[idx] for idx in output_rows.tolist()])

    def _read(self, slots, table, first, end):
        position = np.arange(first, end)
        pages = table[position // self.page_tokens]
        assert (pages >= 0).all(), f"positions {position[pages < 0]} have no page"
        return slots[pages, position % self.page_tokens]

    def _logits(self, cache, page_tables, row, position):
        state = U64(0)
        for group, window in enumerate(self.window_groups):
            first = max(0, position - window + 1) if window else 0
            read = self._read(cache.slots[group], page_tables[group][row], first, position + 1)
            weights = mix(np.arange(first, position + 1))
            with np.errstate(over="ignore"):
                state = mix(state ^ (read * weights).sum(dtype=U64))
        bits = mix(mix(np.arange(self.config.vocab_size)) ^ state)
        return (bits >> U64(40)).astype(np.float32) / np.float32(2**22) - np.float32(2.0)


def sample(logits: np.ndarray, rows: Sequence[SampleRow]) -> list[SampleResult]:
    """The sampler in plain NumPy, one row after the other."""
    assert logits.shape[0] == len(rows)
    return [_sample_row(logits[i].astype(np.float64), row) for i, row in enumerate(rows)]


def _sample_row(logits: np.ndarray, row: SampleRow) -> SampleResult:
    logprobs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    best = np.argsort(-logprobs, kind="stable")[: row.num_top_logprobs]
    scores = logits.copy()
    seen = scores[row.count_ids]
    penalty = row.repetition_penalty
    seen = np.where(seen > 0, seen / penalty, seen * penalty)
    seen -= row.frequency_penalty * row.counts + row.presence_penalty * (row.counts > 0)
    scores[row.count_ids] = seen
    np.add.at(scores, row.bias_ids, row.bias_values)
    if row.mask is not None:
        bits = np.unpackbits(row.mask.view(np.uint8), bitorder="little")[: len(scores)]
        if not bits.any():
            raise ValueError("the mask allows no token")
        scores[bits == 0] = -np.inf
    token = int(scores.argmax()) if row.temperature == 0.0 else _draw(scores, row)
    top = [(int(i), float(logprobs[i])) for i in best]
    return token, float(logprobs[token]), top


def _draw(scores: np.ndarray, row: SampleRow) -> int:
    with np.errstate(over="ignore"):  # a tiny temperature leaves the best alone
        weights = np.exp((scores - scores.max()) / row.temperature)
    order = np.argsort(-weights, kind="stable")
    if row.top_k:
        order = order[: row.top_k]
    order = order[weights[order] >= row.min_p * weights[order[0]]]
    total = np.cumsum(weights[order])
    order = order[: int(np.searchsorted(total, row.top_p * total[-1])) + 1]
    total = np.cumsum(weights[order])
    share = int(mix(int(mix(row.seed % 2**64)) ^ row.position)) / 2**64
    return int(
        order[min(int(np.searchsorted(total, share * total[-1], side="right")), len(order) - 1)]
    )


class Script:
    """A sampler that says a text, special tokens included, whatever the logits."""

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        self._ids = self.ids(tokenizer, text)
        self._starts: dict[SampleRow, int] = {}

    @staticmethod
    def ids(tokenizer: Tokenizer, text: str) -> list[int]:
        ids: list[int] = []
        for part in re.split(r"(<\|\w+\|>)", text):
            is_special = part in tokenizer.special
            ids += [tokenizer.special[part]] if is_special else tokenizer.encode(part)
        return ids

    def __call__(self, logits: np.ndarray, rows: Sequence[SampleRow]) -> list[SampleResult]:
        results = sample(logits, rows)
        for i, row in enumerate(rows):
            start = self._starts.setdefault(row, row.position)
            token = self._ids[(row.position - start) % len(self._ids)]
            results[i] = (token, *results[i][1:])
        return results
