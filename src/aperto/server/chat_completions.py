"""`/v1/chat/completions`: OpenAI's chat door."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from aperto.chat import ChatEvent
from aperto.server.answers import Answers
from aperto.server.chat_request import ChatPlan, plan_chat
from aperto.server.choices import ChoiceReader, Piece, usage_of
from aperto.server.errors import ERROR_RESPONSES, as_api_error
from aperto.server.pool import Lease
from aperto.server.services import Services, services
from aperto.server.sse import (
    CLIENT_CLOSED,
    STREAMED,
    JsonResponse,
    sse_response,
    while_connected,
)
from aperto.server.sse import Piece as Event
from aperto.server.wire_chat import ChatCompletion, ChatRequest

_CHUNK = "chat.completion.chunk"

router = APIRouter(tags=["chat"], responses=ERROR_RESPONSES)


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAMED)
async def create_chat_completion(
    body: ChatRequest, request: Request, served: Annotated[Services, Depends(services)]
) -> Response:
    """Answer a conversation, whole or as server-sent events."""
    response = await while_connected(request, _respond(body, served))
    return response or Response(status_code=CLIENT_CLOSED)


async def _respond(body: ChatRequest, served: Services) -> Response:
    plan = await asyncio.to_thread(plan_chat, body, served)
    answers = await Answers.open(served, body.model, lambda lease: _start(lease, plan))
    writer = _Writer(plan, answers, served)
    if body.stream:
        return sse_response(writer.events())
    return JsonResponse(await writer.whole())


def _start(lease: Lease, plan: ChatPlan) -> Sequence[AsyncIterator[ChatEvent]]:
    plan = plan.fitted(lease)
    chat = lease.model.conversations
    return [chat.astream(plan.conversation, plan.choice(i)) for i in range(plan.num_choices)]


class _Writer:
    """Writes answers in OpenAI's shape, in pieces or whole."""

    def __init__(self, plan: ChatPlan, answers: Answers, served: Services) -> None:
        self._plan = plan
        self._answers = answers
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._choices = [self._reader(served) for _ in range(plan.num_choices)]

    def _reader(self, served: Services) -> ChoiceReader:
        rules = self._plan.options.rules
        return ChoiceReader(
            self._answers.lease.model.tokenizer,
            served.recall,
            logprobs=self._plan.logprobs,
            show_reasoning=self._plan.show_reasoning,
            pure_content=rules is not None and rules.answer is not None,
        )

    async def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        async with self._answers:
            async for index, event in self._answers:
                self._choices[index].feed(event)
        body = self._body("chat.completion", [self._choice(i) for i in range(len(self._choices))])
        judged = await self._moderation()
        return {**body, "usage": self._usage(), **judged, **self._warnings()}

    async def events(self) -> AsyncIterator[Event]:
        """The data of an answer's server-sent events."""
        async with self._answers:
            try:
                for index in range(len(self._choices)):
                    first = Piece({"role": "assistant", "content": ""})
                    yield None, self._chunk(index, first) | (self._warnings() if not index else {})
                async for index, event in self._answers:
                    choice = self._choices[index]
                    if (piece := choice.feed(event)) is not None:
                        yield None, self._chunk(index, piece)
                    if choice.done is event:
                        yield None, self._last_chunk(index)
                if self._plan.judge is not None:
                    yield None, self._body(_CHUNK, []) | await self._moderation()
                if self._plan.include_usage:
                    yield None, self._body(_CHUNK, []) | {"usage": self._usage()}
            except Exception as error:
                yield None, as_api_error(error).body()
            yield None, "[DONE]"

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        lease = self._answers.lease
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": lease.name,
            "system_fingerprint": lease.info.fingerprint,
            "choices": choices,
        }

    def _chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "delta": piece.delta, "finish_reason": None}
        if piece.logprobs is not None:
            choice["logprobs"] = {"content": piece.logprobs, "refusal": None}
        chunk = self._body(_CHUNK, [choice])
        if self._plan.include_usage:
            chunk["usage"] = None
        if piece.prefill is not None:
            chunk["prefill"] = dataclasses.asdict(piece.prefill)
        return chunk

    def _last_chunk(self, index: int) -> dict[str, Any]:
        choice = self._choices[index]
        assert choice.done is not None
        chunk = self._chunk(index, Piece({}))
        chunk["choices"][0]["finish_reason"] = choice.finish_reason
        late = {"warnings": choice.warnings} if choice.warnings else {}
        return chunk | {"seed": choice.done.seed, "timings": _timings(choice)} | late

    def _choice(self, index: int) -> dict[str, Any]:
        choice = self._choices[index]
        assert choice.done is not None
        logprobs = {"content": choice.token_logprobs, "refusal": None}
        return {
            "index": index,
            "message": choice.message(),
            "logprobs": logprobs if self._plan.logprobs else None,
            "finish_reason": choice.finish_reason,
            "seed": choice.done.seed,
            "timings": _timings(choice),
        }

    async def _moderation(self) -> dict[str, Any]:
        judge = self._plan.judge
        if judge is None:
            return {}
        texts = ["".join(choice.content) for choice in self._choices]
        said, *answered = await judge.verdicts(self._plan.conversation, texts)
        both = {"input": [said], "output": answered}
        return {
            "moderation": {
                side: {"type": "moderation_results", "model": judge.name, "results": results}
                for side, results in both.items()
            }
        }

    def _usage(self) -> dict[str, Any]:
        return usage_of([choice.done for choice in self._choices if choice.done is not None])

    def _warnings(self) -> dict[str, list[str]]:
        late = [text for choice in self._choices for text in choice.warnings]
        lines = list(dict.fromkeys((*self._plan.warnings, *late)))
        return {"warnings": lines} if lines else {}


def _timings(choice: ChoiceReader) -> dict[str, float]:
    assert choice.done is not None
    timings = choice.done.timings
    return {
        "queued_s": round(timings.queued_s, 4),
        "prefill_s": round(timings.prefill_s, 4),
        "decode_s": round(timings.decode_s, 4),
        "tokens_per_s": round(timings.tokens_per_s, 2),
    }
