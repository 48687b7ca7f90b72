"""The caller's end of a request: tokens as they are drawn, by plain or async iteration."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Literal, NamedTuple

from aperto.errors import ApertoError

FinishReason = Literal["stop", "length", "cancelled", "error"]


class Token(NamedTuple):
    """One token and how likely the model itself thought it."""

    id: int
    """Token id."""
    logprob: float
    """Natural logarithm of its probability, before temperature, penalties, bias and mask."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """The most likely tokens with their logprobs, best first, as many as the request asked for."""


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    """Tokens of the prompt, cached or not."""
    cached_tokens: int
    """Tokens of the prompt whose keys and values came from the prefix cache."""
    completion_tokens: int
    """Tokens drawn so far, the stop token included."""


@dataclasses.dataclass(frozen=True, slots=True)
class Timings:
    """Wall-clock times of one request so far."""

    queued_s: float
    """From submission to admission."""
    prefill_s: float
    """From admission to the first token."""
    decode_s: float
    """From the first token to the last."""
    decode_tokens: int
    """Tokens after the first."""

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed; 0 before the second token."""
        return self.decode_tokens / self.decode_s if self.decode_s > 0 else 0.0


class Channel:
    """What the engine thread and the caller share about one request."""

    __slots__ = (
        "_head",
        "_queue",
        "_waker",
        "admitted_at",
        "cached_tokens",
        "completion_tokens",
        "ended_at",
        "error",
        "finish_reason",
        "first_token_at",
        "prefilled_tokens",
        "prompt_logprobs",
        "prompt_tokens",
        "seed",
        "submitted_at",
    )

    def __init__(self, prompt_tokens: int, seed: int) -> None:
        self._queue: SimpleQueue[Token | None] = SimpleQueue()
        self._head: list[Token | None] = []  # taken from the queue to see whether there is one
        self._waker: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = 0
        self.prefilled_tokens = 0
        self.completion_tokens = 0
        self.seed = seed
        self.prompt_logprobs: list[Token | None] = []
        self.finish_reason: FinishReason | None = None
        self.error: ApertoError | None = None
        self.submitted_at = time.monotonic()
        self.admitted_at: float | None = None
        self.first_token_at: float | None = None
        self.ended_at: float | None = None

    def put(self, token: Token) -> None:
        """Hand over one token; called by the engine thread."""
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        self.completion_tokens += 1
        self._queue.put(token)
        if self._waker is not None:
            self._wake()

    def end(self, reason: FinishReason, error: ApertoError | None = None) -> None:
        """Say that nothing follows; only the first call counts."""
        if self.finish_reason is not None:
            return
        self.error = error
        self.ended_at = time.monotonic()
        self.finish_reason = reason
        self._queue.put(None)
        if self._waker is not None:
            self._wake()

    def _wake(self) -> None:
        waker, self._waker = self._waker, None
        if waker is None:
            return
        loop, future = waker
        if not loop.is_closed():
            loop.call_soon_threadsafe(_set_done, future)

    def get(self) -> Token | None:
        """Wait for the next token; None at the end."""
        return self._head.pop() if self._head else self._queue.get()

    async def get_async(self) -> Token | None:
        """Wait for the next token without blocking the event loop; None at the end."""
        await self.ready_async(None)
        return self.get()

    def ready(self, timeout_s: float | None) -> bool:
        """Wait until `get` would not wait; False where that takes longer than timeout_s."""
        if not self._head:
            try:
                self._head.append(self._queue.get(timeout=timeout_s))
            except Empty:
                return False
        return True

    async def ready_async(self, timeout_s: float | None) -> bool:
        """Like `ready`, without blocking the event loop."""
        if self._head or not self._queue.empty():
            return True
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waker = (loop, future)
        # The engine thread may have put a token before it could see the waker.
        if self._queue.empty():
            await asyncio.wait((future,), timeout=timeout_s)
        self._waker = None
        return not self._queue.empty()

    def timings(self) -> Timings:
        """Times so far."""
        now = self.ended_at or time.monotonic()
        admitted = self.admitted_at or now
        first = self.first_token_at or now
        return Timings(
            queued_s=admitted - self.submitted_at,
            prefill_s=first - admitted,
            decode_s=now - first,
            decode_tokens=max(0, self.completion_tokens - 1),
        )


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class TokenStream:
    """Iterate over the tokens of one request, with `for` or `async for`, in one consumer.

    Closing it, leaving its `with` block or dropping the last reference cancels the request; its
    memory is freed before the engine's next step. Iteration raises the typed error of a request
    that failed, after the tokens that came before.
    """

    def __init__(self, channel: Channel, cancel: Callable[[], None]) -> None:
        self._channel = channel
        self._cancel = cancel
        self._is_exhausted = False
        self._is_closed = False

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the request ended; None while it runs.

        "stop": a stop token or the end of the grammar; "length": max_tokens; "cancelled": closed
        by the caller; "error": failed, see `error`.
        """
        if self._is_closed and self._channel.finish_reason is None:
            return "cancelled"
        return self._channel.finish_reason

    @property
    def error(self) -> ApertoError | None:
        """What made the request fail, if anything did."""
        return self._channel.error

    @property
    def seed(self) -> int:
        """Seed of the draws: the request's, or the one drawn for it. Repeats the same tokens."""
        return self._channel.seed

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        channel = self._channel
        return Usage(channel.prompt_tokens, channel.cached_tokens, channel.completion_tokens)

    @property
    def timings(self) -> Timings:
        """Wall-clock times so far."""
        return self._channel.timings()

    @property
    def prefilled_tokens(self) -> int:
        """Tokens of the prompt that are computed or came from the cache, 0 while it waits.

        Of `usage.prompt_tokens`; both are there while `ready` and `aready` wait.
        """
        return self._channel.prefilled_tokens

    def ready(self, timeout_s: float | None = None) -> bool:
        """Wait until the next token, or the end, can be had at once; False after timeout_s."""
        return self._is_finished() or self._channel.ready(timeout_s)

    async def aready(self, timeout_s: float | None = None) -> bool:
        """Like `ready`, without blocking the event loop."""
        return self._is_finished() or await self._channel.ready_async(timeout_s)

    @property
    def prompt_logprobs(self) -> tuple[Token | None, ...]:
        """With `echo_logprobs`: one entry a prompt token once prefilled, None for the first."""
        return tuple(self._channel.prompt_logprobs)

    def close(self) -> None:
        """Cancel the request; nothing happens where it has ended."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._channel.finish_reason is None:
            self._cancel()

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> Token:
        token = None if self._is_finished() else self._channel.get()
        if token is None:
            self._finish()
            raise StopIteration
        return token

    def __aiter__(self) -> TokenStream:
        return self

    async def __anext__(self) -> Token:
        token = None if self._is_finished() else await self._channel.get_async()
        if token is None:
            self._finish()
            raise StopAsyncIteration
        return token

    def _is_finished(self) -> bool:
        return self._is_exhausted or self._is_closed

    def _finish(self) -> None:
        """Raise the request's error, once."""
        first, self._is_exhausted = not self._is_exhausted, True
        if first and not self._is_closed and self._channel.error is not None:
            raise self._channel.error

    def __enter__(self) -> TokenStream:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> TokenStream:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
