"""`/v1/messages` and `/v1/messages/count_tokens`: Anthropic's door."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from aperto.chat import ChatEvent
from aperto.server.answers import Answers
from aperto.server.anthropic_events import MessageWriter
from aperto.server.anthropic_plan import MessagesPlan, plan_messages
from aperto.server.errors import (
    ERROR_RESPONSES,
    ApiError,
    as_api_error,
    register_error_shape,
)
from aperto.server.pool import Lease
from aperto.server.services import Services, services
from aperto.server.sse import (
    CLIENT_CLOSED,
    STREAMED,
    JsonResponse,
    Piece,
    sse_response,
    while_connected,
)
from aperto.server.wire_anthropic import (
    CountRequest,
    ErrorBody,
    Json,
    MessageBody,
    MessagesRequest,
    TokenCount,
)

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {**response, "model": ErrorBody} for status, response in ERROR_RESPONSES.items()
}
_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}

router = APIRouter(tags=["messages"], responses=_ERRORS)


def error_shape(error: ApiError) -> Json:
    """Anthropic's error object."""
    default = "invalid_request_error" if error.status < 500 else "api_error"
    kind = _ERROR_TYPES.get(error.status, default)
    return {"type": "error", "error": {"type": kind, "message": error.message}}


register_error_shape("/v1/messages", error_shape)


@router.post("/v1/messages", response_model=MessageBody, responses=STREAMED)
async def create_message(
    body: MessagesRequest, request: Request, served: Annotated[Services, Depends(services)]
) -> Response:
    """Answer a conversation, whole or as server-sent events."""
    response = await while_connected(request, _respond(body, served))
    return response or Response(status_code=CLIENT_CLOSED)


@router.post("/v1/messages/count_tokens", response_model=TokenCount)
async def count_tokens(
    body: CountRequest, served: Annotated[Services, Depends(services)]
) -> Response:
    """Count the tokens of a conversation as the model would read it."""
    plan = await asyncio.to_thread(plan_messages, body, served)
    async with served.pool.lease(plan.model) as lease:
        chat = lease.model.conversations
        ids = await asyncio.to_thread(chat.prompt_ids, plan.conversation, plan.options)
    return JsonResponse({"input_tokens": len(ids)})


async def _respond(body: MessagesRequest, served: Services) -> Response:
    plan = await asyncio.to_thread(plan_messages, body, served)
    starter = _Starter(plan)
    answers = await Answers.open(served, plan.model, starter)
    sealer = served.sealer
    writer = MessageWriter(
        starter.plan,
        answers.lease.name,
        served.recall,
        None if sealer is None else lambda text: sealer.seal(text, "reasoning"),
    )
    if body.stream:
        return sse_response(_events(answers, writer))
    async with answers:
        async for _, event in answers:
            writer.feed(event)
    return JsonResponse(writer.body)


class _Starter:
    """Submits a plan to the leased model, and keeps it as it was fitted to it."""

    def __init__(self, plan: MessagesPlan) -> None:
        self.plan = plan

    def __call__(self, lease: Lease) -> Sequence[AsyncIterator[ChatEvent]]:
        self.plan = self.plan.fitted(lease)
        chat = lease.model.conversations
        return [chat.astream(self.plan.conversation, self.plan.options)]


async def _events(answers: Answers, writer: MessageWriter) -> AsyncIterator[Piece]:
    """The stream of an answer; what fails on the way becomes an error event."""
    async with answers:
        try:
            yield _named(writer.start())
            async for _, event in answers:
                for made in writer.feed(event):
                    yield _named(made)
        except Exception as error:
            yield _named(error_shape(as_api_error(error)))


def _named(event: Json) -> Piece:
    return event["type"], event
