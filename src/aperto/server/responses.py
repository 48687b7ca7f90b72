"""`/v1/responses`: OpenAI's Responses door, and what is done with stored responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from aperto.server.background import Background
from aperto.server.errors import ERROR_RESPONSES, ApiError
from aperto.server.response_plan import make_plan
from aperto.server.response_run import ResponseRun
from aperto.server.services import Services, services
from aperto.server.sse import (
    CLIENT_CLOSED,
    JsonResponse,
    Piece,
    aclose,
    sse_response,
    while_connected,
)
from aperto.server.store import Store
from aperto.server.wire_responses import (
    DeletedResponse,
    InputTokens,
    ItemList,
    Json,
    ResponseObject,
    ResponsesRequest,
)

router = APIRouter(tags=["responses"], responses=ERROR_RESPONSES)

_LAST_NUMBER = 2**53
_DONE: Piece = (None, "[DONE]")

Served = Annotated[Services, Depends(services)]


@router.post("/v1/responses", response_model=ResponseObject)
async def create_response(body: ResponsesRequest, request: Request, served: Served) -> Response:
    """Answer items, whole, as server-sent events, or in the background."""
    response = await while_connected(request, _respond(body, served))
    return response or Response(status_code=CLIENT_CLOSED)


async def _respond(request: ResponsesRequest, served: Services) -> Response:
    plan = await make_plan(request, served)
    run = ResponseRun(plan, served)
    if request.background:
        jobs = _background(served)
        queued = await jobs.start(run)
        if request.stream:
            return sse_response(_single(jobs.follow(queued["id"])))
        return JsonResponse(queued)
    await run.begin()
    if request.stream:
        return sse_response(_named(run.events()))
    return JsonResponse(await run.result())


@router.post("/v1/responses/input_tokens", response_model=InputTokens)
async def count_input_tokens(body: ResponsesRequest, served: Served) -> Response:
    """How many tokens a request's prompt has."""
    plan = await make_plan(body, served)
    async with served.pool.lease(body.model) as lease:
        chat = lease.model.conversations
        ids = await asyncio.to_thread(chat.prompt_ids, plan.conversation, plan.options)
    return JsonResponse({"object": "response.input_tokens", "input_tokens": len(ids)})


@router.get("/v1/responses/{response_id}", response_model=ResponseObject)
async def get_response(
    response_id: str,
    served: Served,
    stream: bool = False,
    starting_after: Annotated[int, Query(ge=-1, le=_LAST_NUMBER)] = -1,
) -> Response:
    """A stored response; with `stream`, the events of one that was made in the background."""
    store = _store(served, response_id)
    body = await _stored(store, response_id)
    if not stream:
        return JsonResponse(body)
    if not body["background"]:
        raise ApiError(
            400,
            f"the response {response_id!r} was not made in the background, so its events are not "
            "kept; get it without stream",
            code="invalid_value",
            param="stream",
        )
    return sse_response(_single(_background(served).follow(response_id, starting_after)))


@router.delete("/v1/responses/{response_id}", response_model=DeletedResponse)
async def delete_response(response_id: str, served: Served) -> Response:
    """Forget a response; one that is still made is cancelled first."""
    store = _store(served, response_id)
    await _stored(store, response_id)
    await _background(served).cancel(response_id)
    await asyncio.to_thread(store.delete, response_id)
    return JsonResponse({"id": response_id, "object": "response", "deleted": True})


@router.post("/v1/responses/{response_id}/cancel", response_model=ResponseObject)
async def cancel_response(response_id: str, served: Served) -> Response:
    """End a response that is made in the background; one that has ended stays as it is."""
    store = _store(served, response_id)
    body = await _stored(store, response_id)
    if not body["background"]:
        raise ApiError(
            400,
            f"the response {response_id!r} was not made in the background; only such responses can "
            "be cancelled, others by closing the connection",
            code="invalid_value",
        )
    await _background(served).cancel(response_id)
    return JsonResponse(await _stored(store, response_id))


@router.get("/v1/responses/{response_id}/input_items", response_model=ItemList)
async def list_input_items(
    response_id: str,
    served: Served,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
    before: str | None = None,
) -> Response:
    """A response's own input items, a page at a time."""
    store = _store(served, response_id)
    items = await asyncio.to_thread(store.input_items, response_id)
    if items is None:
        raise _missing(response_id)
    if order == "desc":
        items.reverse()
    page = _between(items, after, before)
    shown = page[:limit]
    return JsonResponse(
        {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(page) > limit,
        }
    )


def _between(items: list[Json], after: str | None, before: str | None) -> list[Json]:
    ids = [item["id"] for item in items]
    for name, item_id in (("after", after), ("before", before)):
        if item_id is not None and item_id not in ids:
            raise ApiError(
                400,
                f"{name} is {item_id!r}, which is no input item of this response",
                code="invalid_value",
                param=name,
            )
    first = 0 if after is None else ids.index(after) + 1
    return items[first : None if before is None else ids.index(before)]


def _store(served: Services, response_id: str) -> Store:
    if served.store is None:
        raise _missing(response_id)
    return served.store


def _background(served: Services) -> Background:
    if served.background is None:
        raise ApiError(
            400,
            "this server stores no responses, so none can be made in the background",
            code="unsupported_parameter",
            param="background",
        )
    return served.background


async def _stored(store: Store, response_id: str) -> Json:
    body = await asyncio.to_thread(store.get, response_id)
    if body is None:
        raise _missing(response_id)
    return body


def _missing(response_id: str) -> ApiError:
    return ApiError(
        404,
        f"there is no response {response_id!r}: it was not stored, was deleted, or is too old",
        code="response_not_found",
        param="response_id",
    )


async def _named(batches: AsyncIterator[list[Json]]) -> AsyncIterator[Piece]:
    """Events with their names, as server-sent events carry them."""
    try:
        async for events in batches:
            for event in events:
                yield event["type"], event
        yield _DONE
    finally:
        await aclose(batches)


async def _single(events: AsyncIterator[Json]) -> AsyncIterator[Piece]:
    try:
        async for event in events:
            yield event["type"], event
        yield _DONE
    finally:
        await aclose(events)
