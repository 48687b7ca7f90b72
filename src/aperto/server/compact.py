"""`/v1/responses/compact`: a conversation made short by a summary that clients carry sealed."""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from aperto.harmony import TurnRules
from aperto.harmony.messages import user
from aperto.local_model import Answer, acollect
from aperto.server.errors import ERROR_RESPONSES, ApiError
from aperto.server.response_plan import Plan, make_plan
from aperto.server.services import Services, services
from aperto.server.sse import CLIENT_CLOSED, JsonResponse, while_connected
from aperto.server.wire_responses import (
    CompactedObject,
    CompactRequest,
    Json,
    ResponsesRequest,
    new_id,
    usage_body,
)

MAX_SUMMARY_TOKENS = 4096
"""Longest summary, where the context has room for it."""
_TASK = (
    "Write a summary of this conversation that lets you go on with it later without seeing it. "
    "Keep what was asked for, what was decided and why, names, numbers, file paths and code that "
    "is still needed, what was tried and what came of it, and what is left to do. Write the "
    "summary alone, in plain text."
)

router = APIRouter(tags=["responses"], responses=ERROR_RESPONSES)


@router.post("/v1/responses/compact", response_model=CompactedObject)
async def compact_conversation(
    body: CompactRequest, request: Request, served: Annotated[Services, Depends(services)]
) -> Response:
    """Summarise a conversation; the output is the next request's input."""
    response = await while_connected(request, _compact(body, served))
    return response or Response(status_code=CLIENT_CLOSED)


async def _compact(body: CompactRequest, served: Services) -> Response:
    if served.sealer is None:
        raise ApiError(501, "this server has no key to seal summaries with", code="no_key")
    plan = await make_plan(_as_request(body), served)
    answer = await _summary(plan, served)
    summary = {
        "id": new_id("cmp"),
        "type": "compaction",
        "encrypted_content": served.sealer.seal(answer.text, "compaction"),
    }
    usage = answer.usage
    compacted = {
        "id": new_id("resp"),
        "object": "response.compaction",
        "created_at": int(time.time()),
        "output": [*_user_messages(plan), summary],
        "usage": usage_body(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, 0),
    }
    return JsonResponse(compacted)


def _as_request(body: CompactRequest) -> ResponsesRequest:
    return ResponsesRequest(
        model=body.model,
        input=body.input,
        instructions=body.instructions,
        previous_response_id=body.previous_response_id,
        max_output_tokens=MAX_SUMMARY_TOKENS,
        store=False,
    )


async def _summary(plan: Plan, served: Services) -> Answer:
    """The model's summary. Raises ApiError (500) where it wrote none."""
    plan = dataclasses.replace(
        plan,
        conversation=plan.conversation.plus(user(_TASK)),
        options=dataclasses.replace(plan.options, rules=TurnRules(reasoning=False)),
    )
    async with served.pool.lease(plan.request.model) as lease:
        options = plan.fitted(lease).options
        chat = lease.model.conversations
        answer = await acollect(chat.astream(plan.conversation, options))
    served.metrics.count(plan.model, answer.done)
    if not answer.text.strip():
        raise ApiError(
            500, "the model wrote no summary; send the request again", code="empty_summary"
        )
    return answer


def _user_messages(plan: Plan) -> list[Json]:
    return [item for item in (*plan.earlier, *plan.own) if item.get("role") == "user"]
