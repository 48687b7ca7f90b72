"""`/v1/moderations`: texts against the server's policy, judged by a model chosen for that."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel
from starlette.responses import Response

from aperto.harmony import Conversation, Effort, Role, TurnRules
from aperto.harmony.rules import JsonSchema
from aperto.local_model import LocalModel
from aperto.moderation import Moderation, Policy, moderate, verdict_schema
from aperto.server.errors import ERROR_RESPONSES, ApiError
from aperto.server.services import Services, services
from aperto.server.sse import CLIENT_CLOSED, JsonResponse, while_connected
from aperto.server.wire_chat import ModerationResult, Wire
from aperto.server.wire_responses import new_id

MAX_TOKENS = 2048
"""Longest verdict, reasoning included."""
_OPENAI_NAMES = ("omni-moderation", "text-moderation")

router = APIRouter(tags=["moderations"], responses=ERROR_RESPONSES)


class ModerationInput(Wire):
    """One part of the input; only text can be judged."""

    type: str
    text: str | None = None


class ModerationRequest(Wire):
    """Body of `POST /v1/moderations`."""

    input: str | list[str] | list[ModerationInput]
    model: str | None = None


class Moderations(BaseModel):
    """Answer of `POST /v1/moderations`, one result for each input."""

    id: str
    model: str
    results: list[ModerationResult]
    policy: str
    """Name of the policy."""
    policy_sha256: str


@router.post("/v1/moderations", response_model=Moderations)
async def create_moderation(
    body: ModerationRequest, request: Request, served: Annotated[Services, Depends(services)]
) -> Response:
    """Judge texts by the server's policy."""
    response = await while_connected(request, _moderations(body, served))
    return response or Response(status_code=CLIENT_CLOSED)


async def _moderations(body: ModerationRequest, served: Services) -> Response:
    texts = _texts(body, served.settings.max_choices)
    name, policy = judge_of(body.model, served)
    results = await judge_all(texts, name, policy, served)
    return JsonResponse({"id": new_id("modr"), "results": results, **_of(name, policy)})


async def moderation_block(
    conversation: Conversation, outputs: Sequence[str], served: Services
) -> dict[str, Any]:
    """Verdicts on what the user said last and on each answer to it."""
    name, policy = judge_of(None, served)
    said = next((m.text for m in reversed(conversation.messages) if m.role is Role.USER), "")
    results = await judge_all([said, *outputs], name, policy, served)
    return {**_of(name, policy), "input": results[0], "output": results[1:]}


async def judge_all(
    texts: Sequence[str], name: str, policy: Policy, served: Services
) -> list[dict[str, Any]]:
    """Verdicts in OpenAI's shape, in order."""
    async with served.pool.lease(name) as lease:
        judged = await asyncio.gather(
            *(asyncio.to_thread(_judged, text, lease.model, policy) for text in texts)
        )
    return [_result(one) for one in judged]


def judge_of(model: str | None, served: Services) -> tuple[str, Policy]:
    """Name of the judge and its policy. Raises ApiError (404) where there is no such judge."""
    name, policy = served.judge, served.policy
    if name is None or policy is None:
        raise ApiError(
            404,
            "this server has no model that judges; start it with --moderation-model",
            code="model_not_found",
            param="model",
        )
    if model and model != name and not model.startswith(_OPENAI_NAMES):
        raise ApiError(
            404,
            f"{model!r} is not the model that judges here; that is {name!r}",
            code="model_not_found",
            param="model",
        )
    return name, policy


def _of(name: str, policy: Policy) -> dict[str, str]:
    return {"model": name, "policy": policy.name, "policy_sha256": policy.sha256}


def _texts(body: ModerationRequest, limit: int) -> list[str]:
    parts = [body.input] if isinstance(body.input, str) else body.input
    if not 1 <= len(parts) <= limit:
        raise ApiError(400, f"input has {len(parts)} parts; expected 1 to {limit}", param="input")
    return [part if isinstance(part, str) else _text_of(part) for part in parts]


def _text_of(part: ModerationInput) -> str:
    if part.type != "text" or part.text is None:
        raise ApiError(
            400, f"an input of type {part.type!r} cannot be judged; expected text", param="input"
        )
    return part.text


def _judged(text: str, model: LocalModel, policy: Policy) -> Moderation:
    seeds = iter(range(1 << 30))

    def judge(told: str, content: str) -> str:
        answer = model.chat(
            [{"role": "system", "content": told}, {"role": "user", "content": content}],
            effort=Effort.LOW,
            max_tokens=MAX_TOKENS,
            seed=next(seeds),
            rules=TurnRules(answer=JsonSchema(verdict_schema(policy))),
        )
        return answer.text

    return moderate(text, judge, policy)


def _result(one: Moderation) -> dict[str, Any]:
    return {
        "flagged": one.flagged,
        "categories": one.categories,
        "category_scores": {name: float(hit) for name, hit in one.categories.items()},
        "category_applied_input_types": {name: ["text"] for name in one.categories},
        "rationale": one.rationale,
    }
