"""Requests in, streams of tokens out: one thread that schedules, computes, samples and commits.

The engine has token ids and masks and knows nothing of text. What a request gets depends on the
model, its prompt, its settings and its seed alone, never on what else is in the batch, on how its
prompt was cut into chunks, or on what was cached.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import weakref
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from aperto.config import EngineConfig
from aperto.engine.core import CacheModel, CoreModel, Sampler
from aperto.engine.hooks import Arrays
from aperto.engine.prefix_store import PrefixOwner
from aperto.engine.sequence import Request, Sequence
from aperto.engine.stream import TokenStream
from aperto.engine.variants import Changes
from aperto.engine.worker import EngineStats, Worker
from aperto.errors import ConfigError, ContextLengthError

_DEFAULT_CACHE_BYTES = 256 << 20
_LEAST_CONTEXT_TOKENS = 8192


def default_context_tokens(model: CacheModel) -> int:
    """Context length in tokens where none is configured: see EngineConfig.context_tokens."""
    bytes_per_token = max(
        1, sum(model.page_bytes(g) for g, w in enumerate(model.window_groups) if w == 0)
    )
    affordable = _DEFAULT_CACHE_BYTES * model.page_tokens // bytes_per_token
    power_of_two = 1 << (affordable.bit_length() - 1)
    return min(model.config.max_context, max(_LEAST_CONTEXT_TOKENS, power_of_two))


def plan_pages(model: CacheModel, config: EngineConfig) -> tuple[int, ...]:
    """Pages of each window group under a configuration.

    A group without a window holds cache_tokens. A windowed one holds what max_sequences and one
    batch need at once, whatever the context, and never more than a group without a window; what
    fewer sequences leave of it keeps the windows of prefixes that may come back.
    """
    context = min(model.config.max_context, config.context_tokens or default_context_tokens(model))
    full = -(-(config.cache_tokens or context) // model.page_tokens)
    sequences = config.max_sequences

    def pages(window: int) -> int:
        if window == 0:
            return full
        # A sequence that computes n positions reads and writes n + window - 1 neighbours; k of
        # those touch at most (k - 2) // page_tokens + 2 pages. Admission leaves each one more.
        neighbours = config.max_batch_tokens + sequences * (window - 3)
        return min(full, neighbours // model.page_tokens + 3 * sequences)

    return tuple(pages(window) for window in model.window_groups)


def plan_cache_bytes(model: CacheModel, config: EngineConfig) -> int:
    """Bytes of the key-value cache under a configuration."""
    return sum(n * model.page_bytes(g) for g, n in enumerate(plan_pages(model, config)))


class Engine:
    """Serves requests on one model. Thread-safe; close it, or use it in a `with` block."""

    def __init__(
        self,
        model: CoreModel,
        config: EngineConfig | None = None,
        sampler: Sampler | None = None,
        owner: PrefixOwner | None = None,
    ) -> None:
        """Start the engine's thread.

        sampler: by default the native one. owner: what the model's keys and values depend on;
        without it, none are saved in EngineConfig.prefix_dir. Raises ConfigError where that folder
        cannot be used.
        """
        self.config = config or EngineConfig()
        self.context_tokens = min(
            model.config.max_context, self.config.context_tokens or default_context_tokens(model)
        )
        """Longest prompt and answer together, in tokens."""
        self.vocab_size = model.config.vocab_size
        """Rows of the model's head: token ids are below it."""
        self._worker = Worker(
            model,
            plan_pages(model, self.config),
            self.config,
            self.context_tokens,
            sampler or _native_sampler(),
            owner,
        )
        thread = threading.Thread(target=self._worker.run, name="aperto-engine", daemon=True)
        # The thread holds the worker, not the engine: an engine that is dropped is closed.
        self._finalizer = weakref.finalize(self, _shut_down, self._worker, thread)
        thread.start()

    @property
    def limit_tokens(self) -> int:
        """Longest prompt and answer together that this engine serves, in tokens."""
        return min(self.context_tokens, self._worker.capacity_tokens)

    def submit(self, request: Request) -> TokenStream:
        """Start a request.

        Raises ConfigError for token ids outside the vocabulary, ContextLengthError where prompt
        and answer can never fit, QueueFullError where too many requests wait already, and
        EngineClosedError.
        """
        self._check_ids("the prompt", np.asarray(request.prompt))
        self._check_ids("logit_bias", np.fromiter(request.sampling.logit_bias, dtype=np.int64))
        total = len(request.prompt) + request.max_tokens
        limit = self.limit_tokens
        if total > limit:
            raise ContextLengthError(
                f"the prompt has {len(request.prompt)} tokens and up to {request.max_tokens} are "
                f"asked for, {total} together, but the context holds {limit}; shorten the prompt, "
                "lower max_tokens, or give the engine more context_tokens and cache_tokens"
            )
        sequence = self._worker.submit(request)
        # Through a method of self: a stream keeps its engine from being dropped, and so closed.
        return TokenStream(sequence.channel, functools.partial(self._cancel, sequence))

    def add_variant(self, name: str, changes: Changes) -> None:
        """Serve an adapter or interventions beside the model, while it answers.

        One of that name is replaced; answers under way keep what they began with. Raises
        AdapterError where it does not fit the model.
        """
        self._worker.add_variant(name, changes)

    def remove_variant(self, name: str) -> None:
        """Stop serving a variant; answers under way finish. Raises ConfigError if unknown."""
        self._worker.remove_variant(name)

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the variants that are served."""
        return self._worker.variants

    def view(self, variant: str) -> Engine:
        """This engine with a variant for all that is submitted there; closing it does nothing.

        Raises ConfigError for a name that is not served.
        """
        if variant not in self.variants:
            known = ", ".join(self.variants) or "none"
            raise ConfigError(f"no variant {variant!r} is loaded; there are: {known}")
        return _View(self, variant)

    def trace(self, ids: Seq[int], points: Iterable[str], variant: str = "") -> Arrays:
        """What passes named points (see `aperto.engine.hooks`) while a text is computed, by point.

        The text is computed by itself between two steps of the others. Raises ConfigError for
        unknown points, ids or variants, and EngineClosedError.
        """
        return self._worker.trace(ids, points, variant)

    def _cancel(self, sequence: Sequence) -> None:
        self._worker.cancel(sequence)

    def _check_ids(self, what: str, ids: NDArray[np.int64]) -> None:
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            wrong = int(ids.min() if ids.min() < 0 else ids.max())
            raise ConfigError(
                f"{what} has token id {wrong}; the model's ids are 0..{self.vocab_size - 1}"
            )

    def stats(self) -> EngineStats:
        """What is running, waiting and held right now."""
        return self._worker.stats()

    def close(self) -> None:
        """End all streams with EngineClosedError and stop; nothing happens the second time."""
        self._finalizer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _View(Engine):
    """One variant of an engine."""

    def __init__(self, base: Engine, variant: str) -> None:
        self._base, self._variant = base, variant
        self.config, self.vocab_size = base.config, base.vocab_size
        self.context_tokens = base.context_tokens
        self._worker = base._worker

    def close(self) -> None:
        pass

    def submit(self, request: Request) -> TokenStream:
        return super().submit(dataclasses.replace(request, variant=self._variant))

    def trace(self, ids: Seq[int], points: Iterable[str], variant: str = "") -> Arrays:
        return super().trace(ids, points, variant or self._variant)


def _native_sampler() -> Sampler:
    from aperto.native import sample  # the C++ core: not loaded for those who bring their own

    sampler: Sampler = sample
    return sampler


def _shut_down(worker: Worker, thread: threading.Thread) -> None:
    worker.stop()
    if thread is not threading.current_thread():
        thread.join()
