"""Between the pages in memory and the prefixes on disk: what is saved when, and brought back.

The engine's thread copies pages, a little at each step; a thread of its own reads and writes files.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np

from aperto.engine.pages import Pages, PrefixNode
from aperto.engine.prefix_store import Piece, PrefixStore
from aperto.engine.sequence import Sequence

_log = logging.getLogger(__name__)

_BUSY_BYTES = 8 << 20  # a millisecond or two of a step that others wait for
_IDLE_BYTES = 64 << 20
_MOST_JOBS = 8
_MOST_WRITES = 2  # pieces in memory on their way to the disk
_LEAST_GAIN_PAGES = 4
_CLOSING_S = 2.0


class _Save:
    """A prefix on its way to the disk."""

    def __init__(self, pieces: list[Piece], missing: list[Piece], nodes: list[PrefixNode]) -> None:
        self.pieces = pieces
        self.nodes = nodes
        # The end is copied first, as its windows are the first to be evicted, and written last.
        self.to_copy = deque([missing[-1], *missing[:-1]])
        self.buffer = bytearray()
        self.num_slots = 0
        self.end_pages: bytearray | None = None


class _Fetch:
    """A prefix on its way back, and the sequences that wait for it."""

    def __init__(self, keys: list[bytes], pieces: list[Piece], sequence: Sequence) -> None:
        self.keys = keys
        """Bytes of the tokens of each page."""
        self.pieces = pieces
        self.num_read = 0
        self.sequences = [sequence]


class PrefixDisk:
    """Saves prefixes up to cut points, and fetches them for sequences that begin with them.

    All methods belong to the engine's thread.

    Args:
        store: the files.
        pages: the pages in memory.
        cache: whose `page(group, number)` gives the bytes of a page in place.
        least_tokens: shorter prefixes are computed again.
        post: brings a callable to the engine's thread.
        resume: goes on with a sequence whose prefix was fetched.
    """

    def __init__(
        self,
        store: PrefixStore,
        pages: Pages,
        cache: Any,
        least_tokens: int,
        post: Callable[[Callable[[], None]], None],
        resume: Callable[[Sequence], None],
    ) -> None:
        self.store = store
        self.tokens_fetched = 0
        """Tokens brought back so far."""
        self.tokens_saved = 0
        """Tokens of the prefixes saved so far."""
        self._pages = pages
        self._cache = cache
        self._least_pages = -(-least_tokens // pages.page_tokens)
        self._post = post
        self._resume = resume
        self._fetches: dict[bytes, _Fetch] = {}
        self._num_waiting = 0
        self._saves: deque[_Save] = deque()
        self._num_writes = 0
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="aperto-prefixes", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> list[Sequence]:
        """Sequences whose prefix is being fetched."""
        return [sequence for fetch in self._fetches.values() for sequence in fetch.sequences]

    @property
    def num_waiting(self) -> int:
        """How many they are; may be asked from any thread."""
        return self._num_waiting

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being fetched or saved."""
        return not (self._fetches or self._saves or self._num_writes)

    # --- back from the disk --------------------------------------------------------------------

    def fetch(self, sequence: Sequence) -> bool:
        """Begin to bring back a sequence's prefix; False where that gains nothing."""
        full_pages = (sequence.num_tokens - 1) // self._pages.page_tokens
        if full_pages < self._least_pages or not sequence.may_reuse_prefix:
            return False
        page_keys = self._pages.page_keys(sequence, full_pages)
        sequence.prefix_keys = self.store.keys(page_keys)
        # A prompt's end moves on with each tool round; what is likely to come back lies before it.
        cuts = [cut for cut in sequence.cut_points if cut < sequence.num_prompt]
        ends = {cut // self._pages.page_tokens for cut in cuts}
        sequence.save_ends = sorted(e for e in ends if self._least_pages <= e <= full_pages)
        return self._begin_fetch(sequence, page_keys)

    def _begin_fetch(self, sequence: Sequence, page_keys: list[bytes]) -> bool:
        known = self._pages.match(sequence)[0]
        least = max(known + _LEAST_GAIN_PAGES, self._least_pages)
        end = self.store.longest(sequence.prefix_keys, least)
        if end == 0:
            return False
        key = sequence.prefix_keys[end - 1]
        if key in self._fetches:
            self._fetches[key].sequences.append(sequence)
        else:
            pieces = self.store.pieces(sequence.prefix_keys, end)
            fetch = self._fetches[key] = _Fetch(page_keys[:end], pieces, sequence)
            self._read_next(fetch)
        self._num_waiting += 1
        return True

    def _read_next(self, fetch: _Fetch) -> None:
        piece = fetch.pieces[fetch.num_read]
        self._submit(
            functools.partial(self.store.read, piece), functools.partial(self._planted, fetch)
        )

    def _planted(self, fetch: _Fetch, data: memoryview | None) -> None:
        """Copy a piece that was read into pages, and go on with the next."""
        if all(sequence.is_cancelled for sequence in fetch.sequences):
            self._end_fetch(fetch)
        elif data is None:
            self.store.remove(fetch.pieces[-1])  # not to be found again without its piece
            self._end_fetch(fetch, try_shorter=True)
        elif not self._plant(fetch, fetch.pieces[fetch.num_read], data):
            self._end_fetch(fetch)
        else:
            fetch.num_read += 1
            if fetch.num_read < len(fetch.pieces):
                self._read_next(fetch)
                return
            self.tokens_fetched += len(fetch.keys) * self._pages.page_tokens
            self._submit(functools.partial(self.store.touch, fetch.pieces), None)
            self._end_fetch(fetch)

    def _plant(self, fetch: _Fetch, piece: Piece, data: memoryview) -> bool:
        page_bytes = self.store.layout.page_bytes
        starts, start = {}, 0
        for slot in piece.slots:
            starts[slot] = start
            start += page_bytes[slot[0]]

        def fill(group: int, idx: int, page: int) -> None:
            first = starts[group, idx]
            source = np.frombuffer(data[first : first + page_bytes[group]], np.uint8)
            self._cache.page(group, page)[:] = source

        return self._pages.plant(fetch.keys, piece.slots, fill)

    def _end_fetch(self, fetch: _Fetch, try_shorter: bool = False) -> None:
        del self._fetches[fetch.pieces[-1].key]
        self._num_waiting -= len(fetch.sequences)
        for sequence in fetch.sequences:
            if sequence.is_cancelled:
                continue
            if try_shorter:
                keys = self._pages.page_keys(sequence, len(sequence.prefix_keys))
                if self._begin_fetch(sequence, keys):
                    continue
            self._resume(sequence)

    # --- to the disk ---------------------------------------------------------------------------

    def note(self, sequence: Sequence) -> None:
        """Plan what to save of a running sequence that was computed further."""
        while sequence.save_ends and sequence.num_indexed >= sequence.save_ends[0]:
            self._plan(sequence, sequence.save_ends.pop(0))

    def _plan(self, sequence: Sequence, end: int) -> None:
        pieces = self.store.pieces(sequence.prefix_keys, end)
        missing = [piece for piece in pieces if not self.store.has(piece)]
        if not missing:
            self._submit(functools.partial(self.store.touch, pieces), None)
            return
        if any(save.pieces[-1].key == pieces[-1].key for save in self._saves):
            return
        if len(self._saves) >= _MOST_JOBS:
            return
        if sum(piece.nbytes for piece in pieces) > self.store.limit_bytes:
            _log.info("a prefix of %d pages exceeds the limit of saved prompts", end)
            return
        if missing[-1] is not pieces[-1]:
            missing.append(pieces[-1])  # written anew: it counts only with all its blocks
        self._saves.append(_Save(pieces, missing, self._pages.path(sequence, end)))

    def step(self, is_busy: bool) -> bool:
        """Copy some pages for the disk; True where there is more to copy at once."""
        budget = _BUSY_BYTES if is_busy else _IDLE_BYTES
        while self._saves and budget > 0 and self._num_writes < _MOST_WRITES:
            budget -= self._copy(self._saves[0], budget)
        return bool(self._saves) and self._num_writes < _MOST_WRITES

    def _copy(self, save: _Save, budget: int) -> int:
        """Copy pages of a prefix up to about `budget` bytes; returns how many."""
        piece, copied = save.to_copy[0], 0
        while save.num_slots < len(piece.slots) and copied < budget:
            group, idx = piece.slots[save.num_slots]
            page = save.nodes[idx].pages[group]
            if page < 0:  # evicted: saved the next time
                self._saves.popleft()
                return copied
            save.buffer += self._cache.page(group, page).data
            save.num_slots += 1
            copied += self.store.layout.page_bytes[group]
        if save.num_slots == len(piece.slots):
            self._finish_piece(save, piece)
        return copied

    def _finish_piece(self, save: _Save, piece: Piece) -> None:
        save.to_copy.popleft()
        if save.end_pages is None:
            save.end_pages = save.buffer
        else:
            self._write(piece, save.buffer)
        save.buffer, save.num_slots = bytearray(), 0
        if not save.to_copy:
            self._saves.popleft()
            self._write(save.pieces[-1], save.end_pages)
            self._submit(functools.partial(self.store.touch, save.pieces), None)
            self.tokens_saved += len(save.nodes) * self._pages.page_tokens

    def _write(self, piece: Piece, data: bytearray) -> None:
        self._num_writes += 1
        self._submit(functools.partial(self.store.write, piece, memoryview(data)), self._written)

    def _written(self, is_written: bool | None) -> None:
        self._num_writes -= 1
        if not is_written:
            self._saves.clear()  # the disk refuses: nothing more is copied in vain

    # --- the disk's thread ---------------------------------------------------------------------

    def close(self) -> None:
        """Save what is quickly saved, and end the thread."""
        deadline = time.monotonic() + _CLOSING_S
        while self._saves and time.monotonic() < deadline:
            self._copy(self._saves[0], _IDLE_BYTES)
        self._work.put(None)
        self._thread.join()

    def _submit(self, work: Callable[[], Any], then: Callable[[Any], None] | None) -> None:
        self._work.put(functools.partial(self._do, work, then))

    def _do(self, work: Callable[[], Any], then: Callable[[Any], None] | None) -> None:
        result = None
        try:
            result = work()
        except Exception:
            _log.exception("saved prompts failed on an internal error; the text is computed")
        if then is not None:
            self._post(functools.partial(then, result))

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
