"""WebSocket on `/v1/responses`: turn after turn on one connection, in parallel lanes if asked."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect

from aperto.server.errors import ApiError, as_api_error
from aperto.server.response_plan import make_plan
from aperto.server.response_run import ResponseRun
from aperto.server.services import Services, services
from aperto.server.sse import aclose, to_json
from aperto.server.wire_responses import Json, ResponsesRequest

MAX_LANES = 16
"""Most lanes (stream_id) of one connection."""
MAX_WAITING = 64
"""Most messages of one lane that wait for those before them."""
_MAX_REMEMBERED = 16

router = APIRouter(tags=["responses"])


@router.websocket("/v1/responses")
async def responses_socket(
    socket: WebSocket, served: Annotated[Services, Depends(services)]
) -> None:
    """Take response.create messages, send the events of their responses."""
    await socket.accept()
    await _Connection(socket, served).serve()


class _Connection:
    """One client: its lanes, and the conversations that only this connection knows."""

    def __init__(self, socket: WebSocket, served: Services) -> None:
        self._socket, self._served = socket, served
        self._lanes: dict[str | None, asyncio.Queue[Json]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._memory: OrderedDict[str, Sequence[Json]] = OrderedDict()
        self._sending = asyncio.Lock()

    async def serve(self) -> None:
        """Read messages until the client goes away; what is under way then ends."""
        try:
            while True:
                await self._take(await self._socket.receive_text())
        except (WebSocketDisconnect, KeyError):  # KeyError: a binary message
            pass
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, text: str) -> None:
        lane = None
        try:
            message = _parsed(text, self._served.settings.max_body_bytes)
            lane = message.get("stream_id")
            self._queue(lane).put_nowait(message)
        except asyncio.QueueFull:
            error = ApiError(429, f"{MAX_WAITING} messages wait already", code="too_many_messages")
            await self._send_error(error, lane)
        except ApiError as error:
            await self._send_error(error, lane)

    def _queue(self, lane: str | None) -> asyncio.Queue[Json]:
        if lane not in self._lanes:
            if len(self._lanes) >= MAX_LANES:
                raise ApiError(
                    429, f"the connection has {MAX_LANES} lanes already", code="too_many_lanes"
                )
            self._lanes[lane] = asyncio.Queue(MAX_WAITING)
            self._tasks.append(asyncio.create_task(self._work(lane)))
        return self._lanes[lane]

    async def _work(self, lane: str | None) -> None:
        """One response after the other, in the order in which they were asked for."""
        while True:
            message = await self._lanes[lane].get()
            try:
                await self._respond(message, lane)
            except Exception as error:
                self._memory.pop(str(message.get("previous_response_id")), None)
                await self._send_error(as_api_error(error), lane)

    async def _respond(self, message: Json, lane: str | None) -> None:
        plan = await make_plan(_request(message), self._served, self._memory)
        run = ResponseRun(plan, self._served)
        await run.begin()
        batches = run.events()
        try:
            async for events in batches:
                for event in events:
                    await self._send(event, lane)
        finally:
            await aclose(batches)
        if run.body["status"] in ("completed", "incomplete"):
            self._memory[run.body["id"]] = run.items
            while len(self._memory) > _MAX_REMEMBERED:
                self._memory.popitem(last=False)

    async def _send_error(self, error: ApiError, lane: str | None) -> None:
        body = error.body()["error"]
        body["code"] = body["code"] or body["type"]
        await self._send({"type": "error", "status": error.status, "error": body}, lane)

    async def _send(self, event: Json, lane: str | None) -> None:
        if lane is not None:
            event = {**event, "stream_id": lane}
        async with self._sending:
            await self._socket.send_text(to_json(event).decode("utf-8"))


def _parsed(text: str, max_bytes: int) -> Json:
    if len(text) > max_bytes:
        raise ApiError(
            413, f"the message has more than {max_bytes} bytes", code="request_too_large"
        )
    try:
        message: Any = json.loads(text)
    except ValueError as error:
        raise ApiError(400, f"the message is not JSON: {error}", code="invalid_json") from None
    kind = message.get("type") if isinstance(message, dict) else type(message).__name__
    if kind != "response.create":
        raise ApiError(
            400, f"the message is {kind!r}; expected 'response.create'", code="unsupported_event"
        )
    lane = message.get("stream_id")
    if not isinstance(lane, str | None):
        raise ApiError(400, f"stream_id is {lane!r}; expected text", code="invalid_value")
    made: Json = message
    return made


def _request(message: Json) -> ResponsesRequest:
    """The message as a request; what has no meaning on a WebSocket does not count."""
    fields = {k: v for k, v in message.items() if k not in ("type", "stream_id", "background")}
    try:
        return ResponsesRequest.model_validate({**fields, "stream": True})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ApiError(
            400, f"{field}: {first['msg']}", code="invalid_value", param=field
        ) from error
