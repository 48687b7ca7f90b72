"""JSON and server-sent events on the wire, and what happens when the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
}
"""For routes that may also answer with events: their place in the OpenAPI document."""
CLIENT_CLOSED = 499
"""Status, in logs alone, of a request whose client went away."""


def to_json(value: Any) -> bytes:
    """Compact UTF-8 JSON; lone surrogates, which clients may send, become question marks."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace")


class JsonResponse(Response):
    """A JSON body."""

    media_type = "application/json"

    def __init__(
        self, content: Any, status_code: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(content, status_code, headers)

    def render(self, content: Any) -> bytes:
        """The body's bytes."""
        return to_json(content)


Piece = tuple[str | None, dict[str, Any] | str]
"""Name of an event, if it has one, and its data: an object, or text sent as it is."""


def encode_piece(piece: Piece) -> bytes:
    """One server-sent event."""
    name, data = piece
    payload = data.encode("utf-8", "replace") if isinstance(data, str) else to_json(data)
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + payload + b"\n\n"


class StreamResponse(Response):
    """Bytes as they come; the iterator is closed as soon as the client is gone.

    Args:
        chunks: an async generator of bytes; it is closed in every case.
        media_type: content type.
    """

    def __init__(self, chunks: AsyncIterator[bytes], media_type: str) -> None:
        self._chunks = chunks
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, or until the client disconnects."""
        sender = asyncio.ensure_future(self._send(send))
        watcher = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({sender, watcher}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(watcher)
            was_done = sender.done()
            await _cancel(sender)
        if was_done:
            sender.result()

    async def _send(self, send: Send) -> None:
        try:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await aclose(self._chunks)


def sse_response(pieces: AsyncIterator[Piece]) -> StreamResponse:
    """Server-sent events; `pieces` is closed at once when the client goes away."""

    async def encoded() -> AsyncIterator[bytes]:
        try:
            async for piece in pieces:
                yield encode_piece(piece)
        finally:
            await aclose(pieces)

    return StreamResponse(encoded(), "text/event-stream; charset=utf-8")


async def aclose(iterator: AsyncIterator[Any]) -> None:
    """Close an async generator; other iterators have nothing to close."""
    close = getattr(iterator, "aclose", None)
    if close is not None:
        await close()


async def while_connected(request: Request, work: Awaitable[T]) -> T | None:
    """The result of `work`; None, with the work cancelled, once the client is gone."""
    worker = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        return worker.result() if worker.done() else None
    finally:
        await _cancel(watcher)
        await _cancel(worker)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: asyncio.Future[Any]) -> None:
    """End a task and wait for it; what it raises was looked at by then, or does not matter."""
    if task.done():
        return
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task


class Started(AsyncIterator[T]):
    """The events of an iterator whose first one was waited for already: see `started`."""

    def __init__(self, events: AsyncIterator[T], first: list[T]) -> None:
        self._events = events
        self._first = first

    async def __anext__(self) -> T:
        return self._first.pop() if self._first else await anext(self._events)

    async def aclose(self) -> None:
        """Close the iterator beneath."""
        await aclose(self._events)


async def started(events: AsyncIterator[T]) -> Started[T]:
    """The same events, the first of them waited for, so that an early failure is raised here."""
    try:
        return Started(events, [await anext(events)])
    except StopAsyncIteration:
        return Started(events, [])
    except BaseException:
        await aclose(events)
        raise
