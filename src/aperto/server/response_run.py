"""One response being made: the model leased, the chat read, its events written, its end kept."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

from aperto.chat import ChatEvent, Done, PrefillProgress, Warning
from aperto.errors import ContextLengthError
from aperto.harmony import FINAL, TextDelta
from aperto.server.errors import ApiError, as_api_error
from aperto.server.pool import Lease
from aperto.server.response_events import ResponseWriter
from aperto.server.response_plan import Plan
from aperto.server.services import Services
from aperto.server.sse import aclose
from aperto.server.store import Stored
from aperto.server.wire_responses import Json
from aperto.tools import Tool, close_tools, open_tools

T = TypeVar("T")

_PATIENCE = 1.5
"""How many heartbeats late the model's own report of progress may be before one is made up."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Submitted:
    """The model is loaded and has taken the request."""

    lease: Lease
    warning: str | None


class ResponseRun:
    """Makes the response of a plan. Closing the iterator of `events` cancels it.

    Args:
        plan: what to ask.
        served: the server's parts.
    """

    def __init__(self, plan: Plan, served: Services) -> None:
        self._plan, self._served = plan, served
        self._is_known = False
        request = plan.request
        self._is_in_background = bool(request.background)
        sealer = served.sealer if request.includes("reasoning.encrypted_content") else None
        self.writer = ResponseWriter(
            plan.body,
            plan.table,
            seal=None if sealer is None else lambda text: sealer.seal(text, "reasoning"),
            is_reasoning_hidden=plan.is_reasoning_hidden,
            is_served=lambda recipient: any(tool.accepts(recipient) for tool in self._tools),
        )
        self._tools: Sequence[Tool] = ()
        self._said: list[str] = []
        self._source: AsyncIterator[_Submitted | ChatEvent | None] = with_heartbeats(
            self._chat(), served.settings.heartbeat_s * _PATIENCE
        )
        self._first: _Submitted | ChatEvent | None = None
        self._has_begun = False
        self._refusal: ContextLengthError | None = None

    @property
    def body(self) -> Json:
        """The response object as it is now."""
        return self.writer.body

    @property
    def items(self) -> list[Json]:
        """The whole conversation as items, this response's output included."""
        return [*self._plan.earlier, *self._plan.own, *self.writer.whole]

    async def begin(self) -> None:
        """Wait until the model has taken the request, but no longer than for a heartbeat.

        Raises what leasing and submitting raise, so that a client gets the status of the error;
        a prompt that is too long is told by `events` or `result`.
        """
        try:
            self._first = await anext(self._source)
            self._has_begun = True
        except ContextLengthError as error:
            self._refusal = error
        except BaseException:
            await aclose(self._source)
            raise

    async def events(self) -> AsyncIterator[list[Json]]:
        """The response's events in order, those that belong together at once.

        What fails on the way becomes response.failed; nothing is raised.
        """
        try:
            yield self.writer.start()
            try:
                if self._refusal is not None:
                    raise self._refusal
                async for events in self._written():
                    yield events
            except Exception as error:
                yield await self._failed(as_api_error(error))
        finally:
            await aclose(self._source)

    async def result(self) -> Json:
        """The whole response. Raises what failed."""
        try:
            if self._refusal is not None:
                raise self._refusal
            self.writer.start()
            async for _ in self._written():
                pass
        finally:
            await aclose(self._source)
        return self.body

    async def keep(self, events: Sequence[Json] = ()) -> None:
        """Store the response as it is now, if it is to be stored; `events` go into its log."""
        store = self._served.store
        if store is None or not self.body["store"]:
            return
        stored = Stored(self.body, self._plan.own, self.writer.whole)
        if self._is_known:
            await asyncio.to_thread(store.update, stored, events)
        else:
            await asyncio.to_thread(store.add, stored)
            self._is_known = True

    async def _written(self) -> AsyncIterator[list[Json]]:
        if self._has_begun:
            events = await self._feed(self._first)
            if events:
                yield events
        async for event in self._source:
            events = await self._feed(event)
            if events:
                yield events

    async def _feed(self, event: _Submitted | ChatEvent | None) -> list[Json]:
        if event is None:
            return self.writer.heartbeat()
        if isinstance(event, _Submitted):
            self._note_model(event)
            return []
        if self._plan.request.generate is False:
            event = _warmed(event)
        await self._moderate(event)
        events = [] if event is None else self.writer.feed(event)
        if isinstance(event, Done):
            self._served.metrics.count(self._plan.model, event)
            for call_id, reasoning in self.writer.reasoning_of.items():
                self._served.recall.remember(call_id, reasoning)
            await self._keep_end()
        return events

    async def _moderate(self, event: ChatEvent | None) -> None:
        """Put verdicts into the response before its end is told."""
        if isinstance(event, TextDelta) and event.channel == FINAL:
            self._said.append(event.text)
        if isinstance(event, Done) and self._plan.judge is not None:
            text = "".join(self._said)
            said, answered = await self._plan.judge.verdicts(self._plan.conversation, [text])
            self.body["moderation"] = {"input": said, "output": answered}

    def _note_model(self, submitted: _Submitted) -> None:
        if submitted.warning is not None:
            self.writer.warn(submitted.warning)
        if self._plan.request.shows_logprobs:
            tokenizer = submitted.lease.model.tokenizer
            self.writer.piece = lambda token_id: (
                None if tokenizer.is_special(token_id) else tokenizer.piece(token_id)
            )

    async def _failed(self, error: ApiError) -> list[Json]:
        events = self.writer.fail(_failure_code(error), error.message)
        await self._keep_end()
        return events

    async def _keep_end(self) -> None:
        """Store the end before the client hears of it and goes on from there.

        In the background it is stored together with the events that tell of it.
        """
        if not self._is_in_background:
            await self.keep()

    async def _chat(self) -> AsyncIterator[_Submitted | ChatEvent]:
        async with self._served.pool.lease(self._plan.request.model) as lease:
            submitting = asyncio.ensure_future(asyncio.to_thread(self._submit, lease))
            try:
                stream, warning = await asyncio.shield(submitting)
                try:
                    yield _Submitted(lease, warning)
                    async for event in stream:
                        yield event
                finally:
                    await aclose(stream)
            finally:
                # It may open tools after the client has left; what it raised was told, if at all.
                await asyncio.gather(submitting, return_exceptions=True)
                if self._tools:
                    await asyncio.to_thread(close_tools, self._tools)

    def _submit(self, lease: Lease) -> tuple[AsyncIterator[ChatEvent], str | None]:
        self._tools = open_tools(
            self._plan.table.wanted, allow_unsandboxed=self._served.settings.allow_unsandboxed
        )
        found = self._plan.fitted(lease, self._tools)
        chat = lease.model.conversations
        return chat.astream(self._plan.conversation, found.options), found.warning


def _failure_code(error: ApiError) -> str:
    """The word for an error among those that a response may carry."""
    if error.code == "context_length_exceeded":
        return error.code  # Codex makes its context shorter when it reads this
    known = {400: "invalid_prompt", 429: "rate_limit_exceeded"}
    return known.get(error.status, "server_error")


def _warmed(event: ChatEvent) -> ChatEvent | None:
    """What is told of an answer that was only to read its prompt into the cache."""
    if isinstance(event, Done):
        usage = dataclasses.replace(event.usage, completion_tokens=0)
        return dataclasses.replace(event, finish_reason="stop", usage=usage, reasoning_tokens=0)
    return event if isinstance(event, PrefillProgress | Warning) else None


async def with_heartbeats(events: AsyncIterator[T], interval_s: float) -> AsyncIterator[T | None]:
    """The same events, and None whenever nothing came for `interval_s` seconds."""
    waiting: asyncio.Future[T] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(_next(events))
            done, _ = await asyncio.wait({waiting}, timeout=interval_s)
            if not done:
                yield None
                continue
            finished, waiting = waiting, None
            try:
                event = finished.result()
            except _NothingMore:
                return
            yield event
    finally:
        if waiting is not None:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await waiting
        await aclose(events)


class _NothingMore(Exception):
    """The end of an iterator: a future cannot hold StopAsyncIteration."""


async def _next(events: AsyncIterator[T]) -> T:
    try:
        return await anext(events)
    except StopAsyncIteration:
        raise _NothingMore from None
