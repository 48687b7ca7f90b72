"""Answers under way: the leased model, one or several streams of events, and their end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from aperto.chat import ChatEvent, Done
from aperto.server.pool import Lease
from aperto.server.services import Services
from aperto.server.sse import aclose, started

Start = Callable[[Lease], Sequence[AsyncIterator[ChatEvent]]]
"""Submits the requests of one call to a leased model; called in a thread."""


class Answers:
    """Events of some answers as (index, event), in the order they come.

    Holds the model until it is closed; closing cancels what still runs and frees its pages.
    """

    def __init__(
        self,
        served: Services,
        lease: Lease,
        streams: Sequence[AsyncIterator[ChatEvent]],
        stack: contextlib.AsyncExitStack,
    ) -> None:
        self.lease = lease
        self._metrics = served.metrics
        self._stack = stack
        self._events: AsyncIterator[tuple[int, ChatEvent]] = merged(streams)

    @classmethod
    async def open(cls, served: Services, model: str | None, start: Start) -> Answers:
        """Lease a model, submit, and wait for the first event, so that early failures raise here.

        Raises ApiError for unknown models, and what loading and submitting raise.
        """
        async with contextlib.AsyncExitStack() as stack:
            lease = await stack.enter_async_context(served.pool.lease(model))
            streams = await asyncio.to_thread(start, lease)
            answers = cls(served, lease, streams, stack.pop_all())
        try:
            answers._events = await started(answers._events)
        except BaseException:
            await answers.aclose()
            raise
        return answers

    def __aiter__(self) -> Answers:
        return self

    async def __anext__(self) -> tuple[int, ChatEvent]:
        index, event = await anext(self._events)
        if isinstance(event, Done):
            self._metrics.count(self.lease.name, event)
        return index, event

    async def aclose(self) -> None:
        """Cancel what runs and give the model back."""
        try:
            await aclose(self._events)
        finally:
            await self._stack.aclose()

    async def __aenter__(self) -> Answers:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()


def merged(
    streams: Sequence[AsyncIterator[ChatEvent]],
) -> AsyncIterator[tuple[int, ChatEvent]]:
    """Events of all streams with the index of theirs; closing it closes them all."""
    return _single(streams[0]) if len(streams) == 1 else _several(streams)


async def _single(stream: AsyncIterator[ChatEvent]) -> AsyncIterator[tuple[int, ChatEvent]]:
    try:
        async for event in stream:
            yield 0, event
    finally:
        await aclose(stream)


async def _several(
    streams: Sequence[AsyncIterator[ChatEvent]],
) -> AsyncIterator[tuple[int, ChatEvent]]:
    queue: asyncio.Queue[tuple[int, ChatEvent] | BaseException | None] = asyncio.Queue()

    async def pump(index: int, stream: AsyncIterator[ChatEvent]) -> None:
        try:
            async for event in stream:
                queue.put_nowait((index, event))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)
        finally:
            await aclose(stream)

    tasks = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    num_open = len(tasks)
    try:
        while num_open:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
