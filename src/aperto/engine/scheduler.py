"""Which tokens the next forward pass computes: admission, chunks, and who yields when pages end.

Earlier sequences have priority for pages, decoding ones for the token budget. A sequence is
admitted when its known text fits beside the others; what it draws later takes pages as it grows.
Where none are left, the youngest sequence gives all of its back and is computed again when there
is room (mostly from the prefix cache). So nothing is set aside for answers that stay short, and
the oldest sequence can always go on: no deadlock, no starvation.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

import numpy as np

from aperto.config import EngineConfig
from aperto.engine.core import Int32Array
from aperto.engine.pages import Pages
from aperto.engine.sequence import Sequence

# Logits of a whole vocabulary are large: this many prompt positions a step keep them near 50 MB.
_ECHO_ROWS_PER_STEP = 64


class Batch:
    """One forward pass; the arrays are views that stay valid until the next `schedule`."""

    __slots__ = ("entries", "output_rows", "outputs", "positions", "seq_idx", "token_ids")

    token_ids: Int32Array  # [n]
    positions: Int32Array  # [n]
    seq_idx: Int32Array  # [n], rows of the page tables
    output_rows: Int32Array  # [m], indices into the n tokens

    def __init__(self) -> None:
        self.entries: list[tuple[Sequence, int]] = []
        """Sequences in the batch, with how many of their tokens it computes."""
        self.outputs: list[tuple[Sequence, int]] = []
        """For each output row its sequence and the position whose logits they are."""


class Scheduler:
    """The waiting queue, the running sequences and their pages."""

    def __init__(self, pages: Pages, config: EngineConfig) -> None:
        self.pages = pages
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of arrival
        self._max_batch_tokens = config.max_batch_tokens
        self._mixed_prefill_tokens = config.mixed_prefill_tokens
        self._free_rows = list(range(config.max_sequences - 1, -1, -1))
        self._is_stalled = False
        self._num_added = 0
        self._plan: dict[Sequence, int] = {}
        self._batch = Batch()
        self._token_ids = np.empty(config.max_batch_tokens, dtype=np.int32)
        self._positions = np.empty(config.max_batch_tokens, dtype=np.int32)
        self._seq_idx = np.empty(config.max_batch_tokens, dtype=np.int32)
        self._output_rows = np.empty(config.max_batch_tokens, dtype=np.int32)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        sequence.arrival = self._num_added
        self._num_added += 1
        self.waiting.append(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence, waiting or running, and take its pages back; others: no effect."""
        if sequence.row >= 0:
            self.running.remove(sequence)
            self._release(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def schedule(self) -> Batch | None:
        """The next forward pass, its pages taken; None where there is nothing to do."""
        self._admit()
        if not self.running:
            return None
        plan = self._plan
        plan.clear()
        self._is_stalled = False
        prefilling: list[Sequence] = []
        for sequence in tuple(self.running):
            if not sequence.is_decoding:
                prefilling.append(sequence)
            elif sequence.row >= 0:
                self._schedule(sequence, 1)
        if prefilling:
            self._share_out(prefilling)
        return self._build()

    def commit(self, batch: Batch) -> None:
        """Note that a batch is computed; its full pages can be shared from now on."""
        for sequence, num_tokens in batch.entries:
            self.pages.advance(sequence, num_tokens)
            sequence.note_progress()

    def _admit(self) -> None:
        # While a running sequence lacks pages, a new one would only be sent back.
        if self._is_stalled and self.running:
            return
        while self.waiting and self._free_rows:
            sequence = self.waiting[0]
            # One spare page for each running sequence: they grow, too.
            if not self.pages.admit(sequence, self._free_rows[-1], spare=len(self.running)):
                return
            self._free_rows.pop()
            self.running.append(self.waiting.popleft())
            sequence.note_progress()
            channel = sequence.channel
            if channel.admitted_at is None:
                channel.admitted_at = time.monotonic()
                channel.cached_tokens = sequence.num_computed

    def _share_out(self, prefilling: list[Sequence]) -> None:
        """Split the token budget evenly, what short prompts leave going to the longer ones."""
        budget = self._max_batch_tokens - len(self._plan)
        if self._plan:
            budget = min(budget, self._mixed_prefill_tokens)
        echo_rows = _ECHO_ROWS_PER_STEP
        prefilling.sort(key=_num_left)
        for num_done, sequence in enumerate(prefilling):
            if sequence.row < 0:
                continue
            share = -(-budget // (len(prefilling) - num_done))
            num_tokens = min(_num_left(sequence), share)
            if sequence.echo_logprobs:
                num_tokens = min(num_tokens, echo_rows)
            if num_tokens > 0:
                num_tokens = self._schedule(sequence, num_tokens)
                budget -= num_tokens
                echo_rows -= num_tokens if sequence.echo_logprobs else 0

    def _schedule(self, sequence: Sequence, num_tokens: int) -> int:
        """Plan up to num_tokens of a sequence, as many as get pages; returns how many."""
        room = self.pages.room(sequence, num_tokens)
        while room <= 0:
            youngest = self.running[-1]
            if youngest is sequence:
                self._is_stalled = True
                return 0
            self._preempt(youngest)
            room = self.pages.room(sequence, num_tokens)
        self.pages.take(sequence, sequence.num_computed + room)
        self._plan[sequence] = room
        return room

    def _preempt(self, sequence: Sequence) -> None:
        self.running.pop()
        self._plan.pop(sequence, None)
        self._release(sequence)
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._free_rows.append(sequence.row)
        self.pages.release(sequence)

    def _build(self) -> Batch:
        batch = self._batch
        batch.entries.clear()
        batch.outputs.clear()
        start = 0
        for sequence, num_tokens in self._plan.items():
            first, end = sequence.num_computed, sequence.num_computed + num_tokens
            if num_tokens == 1:
                self._token_ids[start] = sequence.tokens[first]
                self._positions[start] = first
                self._seq_idx[start] = sequence.row
            else:
                rows = slice(start, start + num_tokens)
                self._token_ids[rows] = sequence.tokens[first:end]
                self._positions[rows] = np.arange(first, end)
                self._seq_idx[rows] = sequence.row
            batch.entries.append((sequence, num_tokens))
            for position in _output_positions(sequence, first, end):
                self._output_rows[len(batch.outputs)] = start + position - first
                batch.outputs.append((sequence, position))
            start += num_tokens
        batch.token_ids = self._token_ids[:start]
        batch.positions = self._positions[:start]
        batch.seq_idx = self._seq_idx[:start]
        batch.output_rows = self._output_rows[: len(batch.outputs)]
        return batch


def _num_left(sequence: Sequence) -> int:
    return sequence.num_tokens - sequence.num_computed


def _output_positions(sequence: Sequence, first: int, end: int) -> Iterable[int]:
    """Positions in [first, end) whose logits are asked for."""
    draws = range(end - 1, end) if end == sequence.num_tokens < sequence.max_tokens else ()
    if not sequence.echo_logprobs or first >= sequence.num_prompt:
        return draws
    # Position p gives the logprob of token p + 1; a preempted prompt knows some already.
    known = max(first, len(sequence.channel.prompt_logprobs) - 1)
    return (*range(known, min(end, sequence.num_prompt - 1)), *draws)
