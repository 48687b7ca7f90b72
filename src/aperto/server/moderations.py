"""`/v1/moderations`: texts against the server's policy, judged by a model chosen for that."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from aperto.errors import EngineError
from aperto.harmony import Conversation, Effort, Role, TurnRules
from aperto.harmony.rules import JsonSchema
from aperto.local_model import LocalModel
from aperto.moderation import Moderation, Policy, moderate, verdict_schema
from aperto.server.errors import ERROR_RESPONSES, ApiError
from aperto.server.services import Services, services
from aperto.server.sse import CLIENT_CLOSED, JsonResponse, while_connected
from aperto.server.wire_moderation import (
    ModerationConfig,
    ModerationInput,
    ModerationRequest,
    Moderations,
    Verdict,
)
from aperto.server.wire_responses import new_id

MAX_TOKENS = 2048
"""Longest verdict, reasoning included."""
_OPENAI_NAMES = ("omni-moderation", "text-moderation")

router = APIRouter(tags=["moderations"], responses=ERROR_RESPONSES)


@router.post("/v1/moderations", response_model=Moderations)
async def create_moderation(
    body: ModerationRequest, request: Request, served: Annotated[Services, Depends(services)]
) -> Response:
    """Judge texts by the server's policy."""
    response = await while_connected(request, _moderations(body, served))
    return response or Response(status_code=CLIENT_CLOSED)


async def _moderations(body: ModerationRequest, served: Services) -> Response:
    texts = _texts(body, served.settings.max_choices)
    judge = judge_of(body.model, served)
    judged = await judge.all_of(texts)
    for one in judged:
        if isinstance(one, EngineError):
            raise one
    content = {
        "id": new_id("modr"),
        "model": judge.name,
        "results": [_result(one) for one in judged if isinstance(one, Moderation)],
        "policy": judge.policy.name,
        "policy_sha256": judge.policy.sha256,
    }
    return JsonResponse(content)


@dataclasses.dataclass(frozen=True, slots=True)
class Judge:
    """The server's judge and what it judges by."""

    name: str
    policy: Policy
    served: Services

    async def all_of(self, texts: Sequence[str]) -> list[Moderation | EngineError]:
        """A verdict on each text, in order; an error where there is none."""
        async with self.served.pool.lease(self.name) as lease:
            return await asyncio.gather(
                *(asyncio.to_thread(_judged, text, lease.model, self.policy) for text in texts)
            )

    async def verdicts(self, conversation: Conversation, outputs: Sequence[str]) -> list[Verdict]:
        """Verdicts on what the user said last, and then on each answer to it."""
        users = (m.text for m in reversed(conversation.messages) if m.role is Role.USER)
        return [self._verdict(one) for one in await self.all_of([next(users, ""), *outputs])]

    def _verdict(self, one: Moderation | EngineError) -> Verdict:
        if isinstance(one, EngineError):
            return {"type": "error", "code": "unreadable_verdict", "message": str(one)}
        return {"type": "moderation_result", "model": self.name, **_result(one)}


def asked_judge(config: ModerationConfig | None, served: Services) -> Judge | None:
    """The judge that a request's `moderation` asks for; None where it asks for none.

    Raises ApiError where there is no such judge (404), or a verdict should block (400).
    """
    if config is None:
        return None
    modes = config.policy
    for side in (modes.input, modes.output) if modes else ():
        if side is not None and side.mode != "score":
            raise ApiError(
                400,
                f"moderation mode {side.mode!r} is not served; expected 'score', which tells the "
                "verdict and leaves the decision to the client",
                param="moderation",
            )
    return judge_of(config.model, served)


def judge_of(model: str | None, served: Services) -> Judge:
    """The judge of a name; names of OpenAI's and none mean the server's. Raises ApiError (404)."""
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
    return Judge(name, policy, served)


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


def _judged(text: str, model: LocalModel, policy: Policy) -> Moderation | EngineError:
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

    try:
        return moderate(text, judge, policy)
    except EngineError as error:
        return error


def _result(one: Moderation) -> dict[str, Any]:
    return {
        "flagged": one.flagged,
        "categories": one.categories,
        "category_scores": {name: float(hit) for name, hit in one.categories.items()},
        "category_applied_input_types": {name: ["text"] for name in one.categories},
        "rationale": one.rationale,
    }
