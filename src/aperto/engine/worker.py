"""The engine's thread: read the inbox, schedule, compute, sample, commit."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

import numpy as np

from aperto.config import EngineConfig
from aperto.engine import hooks
from aperto.engine.core import CoreModel, Float32Array, Sampler, SampleResult
from aperto.engine.pages import Pages
from aperto.engine.prefix_disk import PrefixDisk
from aperto.engine.prefix_store import PageLayout, PrefixOwner, PrefixStore
from aperto.engine.sampling import SampleRow, SamplingParams
from aperto.engine.scheduler import Batch, Scheduler
from aperto.engine.sequence import Request, Sequence
from aperto.engine.stream import FinishReason, Token
from aperto.engine.variants import Changes, LoadedVariant, build
from aperto.errors import ApertoError, ConfigError, EngineClosedError, EngineError, QueueFullError

_log = logging.getLogger(__name__)

_GREEDY = SamplingParams(temperature=0.0)
_NO_TOKENS = np.empty(0, dtype=np.int32)


@dataclasses.dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine is doing, for metrics; a snapshot without locks."""

    num_running: int
    """Sequences being computed."""
    num_waiting: int
    """Requests not yet admitted, and sequences sent back for want of pages."""
    pages_total: tuple[int, ...]
    """Pages of each window group."""
    pages_held: tuple[int, ...]
    """Pages that running sequences hold, of each window group."""
    pages_cached: tuple[int, ...]
    """Unreferenced pages that keep prefixes, of each window group."""
    tokens_fetched: int = 0
    """Tokens whose keys and values came back from the disk."""
    tokens_saved: int = 0
    """Tokens of the prefixes that went there."""


class Worker:
    """What runs on the engine's thread, and the inbox through which others reach it."""

    def __init__(
        self,
        model: CoreModel,
        num_pages: tuple[int, ...],
        config: EngineConfig,
        context_tokens: int,
        sampler: Sampler,
        owner: PrefixOwner | None = None,
    ) -> None:
        self._model = model
        self._cache = model.new_cache(num_pages)
        self.pages = Pages(
            model.window_groups,
            num_pages,
            model.page_tokens,
            num_rows=config.max_sequences,
            max_tokens=context_tokens,
            share_prefixes=config.share_prefixes,
        )
        self.scheduler = Scheduler(self.pages, config)
        self.sampler = sampler
        self._max_waiting = config.max_waiting
        self._num_words = -(-model.config.vocab_size // 32)
        self.capacity_tokens = self.pages.capacity_tokens
        """Longest sequence that fits when it is alone."""
        # put() is safe from destructors, which a lock and a condition would not be.
        self._inbox: SimpleQueue[Sequence | Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()  # guards submission against closing
        self._is_closed = False
        self._variants: dict[str, LoadedVariant] = {}
        self._traces: set[Future[hooks.Arrays]] = set()
        self.disk = self._open_disk(config, owner)
        """Prefixes that outlive the process; None without a folder for them."""

    def _open_disk(self, config: EngineConfig, owner: PrefixOwner | None) -> PrefixDisk | None:
        folder = config.prefix_dir
        if folder is None or owner is None or not config.share_prefixes:
            return None
        model = self._model
        groups = range(len(model.window_groups))
        layout = PageLayout(
            tuple(model.window_groups), model.page_tokens, tuple(map(model.page_bytes, groups))
        )
        try:
            store = PrefixStore(folder, config.prefix_disk_bytes, owner, layout)
        except OSError as error:
            raise ConfigError(
                f"prefix_dir {folder} cannot be used: {error.strerror}; name a folder that can be "
                "written"
            ) from error
        return PrefixDisk(
            store,
            self.pages,
            self._cache,
            config.prefix_least_tokens,
            post=self._inbox.put,
            resume=self.scheduler.add,
        )

    # --- called from any thread ----------------------------------------------------------------

    def submit(self, request: Request) -> Sequence:
        """Queue a request; see Engine.submit for what it raises."""
        with self._lock:
            if self._is_closed:
                raise EngineClosedError("the engine is closed; open a new one")
            waiting = self._num_waiting
            if waiting >= self._max_waiting:
                raise QueueFullError(
                    f"{waiting} requests wait already, the most that this engine lets wait "
                    "(max_waiting); try again later"
                )
            variant = self._variant(request.variant) if request.variant else None
            sequence = Sequence(request, len(self.pages.windows), variant)
            self._inbox.put(sequence)
        return sequence

    def add_variant(self, name: str, changes: Changes) -> None:
        """Serve a variant under a name from now on; see Engine.add_variant."""
        core = build(self._model, changes)
        with self._lock:
            self._variants[name] = LoadedVariant(name, core, len(self.pages.windows))

    def remove_variant(self, name: str) -> None:
        """Refuse new requests for a variant; those under way keep it until they end."""
        with self._lock:
            self._variant(name)
            del self._variants[name]

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the variants that are served."""
        return tuple(self._variants)

    def _variant(self, name: str) -> LoadedVariant:
        found = self._variants.get(name)
        if found is None:
            known = ", ".join(self._variants) or "none"
            raise ConfigError(f"no variant {name!r} is loaded; there are: {known}")
        return found

    def trace(self, ids: Seq[int], points: Iterable[str], variant: str) -> hooks.Arrays:
        """Run a text by itself between two steps; see Engine.trace."""
        core = self._variant(variant).core if variant else None
        done: Future[hooks.Arrays] = Future()

        def job() -> None:
            try:
                done.set_result(hooks.trace(self._model, ids, points, core))
            except Exception as error:
                done.set_exception(error)

        with self._lock:
            if self._is_closed:
                raise EngineClosedError("the engine is closed; open a new one")
            self._traces.add(done)
            self._inbox.put(job)
        try:
            return done.result()
        finally:
            self._traces.discard(done)

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence before the next step; nothing happens where it has ended."""
        sequence.is_cancelled = True
        self._inbox.put(sequence)

    def stop(self) -> None:
        """Refuse new requests and end the thread after the current step."""
        with self._lock:
            self._is_closed = True
        self._inbox.put(None)

    @property
    def _num_waiting(self) -> int:
        fetching = 0 if self.disk is None else self.disk.num_waiting
        return self._inbox.qsize() + len(self.scheduler.waiting) + fetching

    def stats(self) -> EngineStats:
        """What is running, waiting and held right now."""
        pools = self.pages.pools
        return EngineStats(
            num_running=len(self.scheduler.running),
            num_waiting=self._num_waiting,
            pages_total=tuple(pool.num_pages for pool in pools),
            pages_held=tuple(pool.num_pages - pool.num_available for pool in pools),
            pages_cached=tuple(pool.num_cached for pool in pools),
            tokens_fetched=0 if self.disk is None else self.disk.tokens_fetched,
            tokens_saved=0 if self.disk is None else self.disk.tokens_saved,
        )

    # --- the engine's thread -------------------------------------------------------------------

    def run(self) -> None:
        """Serve until told to stop; whatever is still open then ends with a typed error."""
        error: ApertoError = EngineClosedError("the engine was closed before the answer was ready")
        try:
            is_busy = False
            while self.read_inbox(wait=not is_busy):
                is_busy = self.step()
        except BaseException as cause:
            _log.exception("the engine stopped on an internal error")
            error = EngineError(f"the engine stopped on an internal error: {cause!r}")
            error.__cause__ = cause
        finally:
            self._end_all(error)
            if self.disk is not None:
                self.disk.close()

    def read_inbox(self, wait: bool) -> bool:
        """Take in new and cancelled requests; False once the engine is to stop."""
        inbox = self._inbox
        while wait or not inbox.empty():
            item = inbox.get()
            if item is None:
                return False
            wait = False
            if not isinstance(item, Sequence):
                item()
            elif item.is_cancelled:
                self._finish(item, "cancelled")
            elif self.disk is None or item.variant is not None or not self.disk.fetch(item):
                self.scheduler.add(item)
        return True

    def step(self) -> bool:
        """Compute a batch, and copy for the disk; False where there was nothing to do."""
        is_busy = self._compute()
        return (self.disk is not None and self.disk.step(is_busy)) or is_busy

    def _compute(self) -> bool:
        """Schedule, compute, sample, commit; False where there was nothing to do."""
        batch = self.scheduler.schedule()
        if batch is None:
            return False
        try:
            logits = self._forward(batch)
        except Exception as cause:
            for sequence, _ in batch.entries:
                self._fail(sequence, "the forward pass failed", cause)
            return True
        self.scheduler.commit(batch)
        if self.disk is not None:
            for sequence, _ in batch.entries:
                self.disk.note(sequence)
        if batch.outputs:
            self._sample(batch, logits)
        for sequence, _ in batch.entries:
            if sequence.num_computed == sequence.max_tokens:  # max_tokens 0: nothing to draw
                self._finish(sequence, "length")
        return True

    def _forward(self, batch: Batch) -> Float32Array:
        extra: dict[str, Any] = {}
        if any(sequence.variant is not None for sequence, _ in batch.entries):
            cores: list[Any] = [None] * len(self.pages.tables[0])
            for sequence, _ in batch.entries:
                cores[sequence.row] = sequence.variant and sequence.variant.core
            extra["variants"] = cores
        return self._model.forward(
            self._cache,
            batch.token_ids,
            batch.positions,
            batch.seq_idx,
            self.pages.tables,
            batch.output_rows,
            **extra,
        )

    def _sample(self, batch: Batch, logits: Float32Array) -> None:
        """Draw, or for echoed prompts look up, one token for each output row."""
        kept: list[int] = []
        rows: list[SampleRow] = []
        for idx, (sequence, position) in enumerate(batch.outputs):
            try:
                rows.append(self._sample_row(sequence, position))
                kept.append(idx)
            except Exception as cause:
                self._fail(sequence, "the constraint failed to make a mask", cause)
        if len(kept) < len(batch.outputs):
            logits = logits[kept]
        results = self._draw(logits, rows)
        for idx, result in zip(kept, results, strict=True):
            sequence, position = batch.outputs[idx]
            if sequence.row < 0:
                continue  # failed at an earlier row of this batch
            if isinstance(result, Exception):
                self._fail(sequence, "sampling failed", result)
            else:
                self._deliver(sequence, position, result)

    def _sample_row(self, sequence: Sequence, position: int) -> SampleRow:
        row = sequence.sample_row
        if position + 1 < sequence.num_tokens:
            return self._echo_row(sequence, int(sequence.tokens[position + 1]))
        row.position = position + 1
        if sequence.constraint is not None:
            row.mask = sequence.constraint.mask()
        return row

    def _echo_row(self, sequence: Sequence, token_id: int) -> SampleRow:
        """A row that can only draw a known token, and so reports its logprob."""
        row = SampleRow(_GREEDY, _NO_TOKENS, sequence.sample_row.num_top_logprobs)
        row.mask = np.zeros(self._num_words, dtype=np.uint32)
        row.mask[token_id // 32] = np.uint32(1) << np.uint32(token_id % 32)
        return row

    def _draw(self, logits: Float32Array, rows: list[SampleRow]) -> list[SampleResult | Exception]:
        """One result a row; a row that cannot be sampled does not spoil the others."""
        try:
            return list(self.sampler(logits, rows)) if rows else []
        except Exception as cause:
            if len(rows) == 1:
                return [cause]
        return [self._draw(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]

    def _deliver(self, sequence: Sequence, position: int, result: SampleResult) -> None:
        token = Token(result[0], result[1], tuple(result[2]))
        if position + 1 < sequence.num_tokens:
            sequence.channel.prompt_logprobs.append(token)
            return
        try:
            reason = sequence.append(token)
        except Exception as cause:
            self._fail(sequence, f"the constraint refused token {token.id}", cause)
            return
        if reason is not None:
            self._finish(sequence, reason)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self.scheduler.drop(sequence)
        sequence.channel.end(reason)

    def _fail(self, sequence: Sequence, what: str, cause: Exception) -> None:
        error = EngineError(f"{what}: {cause}")
        error.__cause__ = cause
        self.scheduler.drop(sequence)
        sequence.channel.end("error", error)

    def _end_all(self, error: ApertoError) -> None:
        with self._lock:
            self._is_closed = True
        fetching = [] if self.disk is None else self.disk.waiting
        for sequence in (*self.scheduler.running, *self.scheduler.waiting, *fetching):
            sequence.channel.end("error", error)
        while not self._inbox.empty():
            left = self._inbox.get()
            if isinstance(left, Sequence):
                left.channel.end("error", error)
        for trace in tuple(self._traces):
            if not trace.done():
                trace.set_exception(error)
