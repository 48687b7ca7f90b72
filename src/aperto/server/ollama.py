"""`/api/chat` and `/api/generate`: Ollama's doors to the model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any

import pydantic
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from aperto.chat import ChatEvent
from aperto.server.answers import Answers
from aperto.server.chat_request import ChatPlan, plan_chat
from aperto.server.choices import ChoiceReader
from aperto.server.errors import (
    ERROR_RESPONSES,
    ApiError,
    as_api_error,
    register_error_shape,
)
from aperto.server.ollama_answers import (
    AnswerWriter,
    ChatLines,
    RawLines,
    in_message,
    in_response,
    timestamp,
)
from aperto.server.ollama_request import (
    chat_request,
    generate_request,
    plain_name,
    raw_options,
    warnings_of,
)
from aperto.server.pool import Lease
from aperto.server.services import Services, services
from aperto.server.sse import (
    CLIENT_CLOSED,
    JsonResponse,
    StreamResponse,
    aclose,
    to_json,
    while_connected,
)
from aperto.server.wire_chat import ChatRequest
from aperto.server.wire_ollama import (
    GenerateRequest,
    Json,
    OllamaChatRequest,
    OllamaError,
    OllamaRequest,
)

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {**response, "model": OllamaError} for status, response in ERROR_RESPONSES.items()
}
"""For `APIRouter(responses=...)`: Ollama's error shape in the OpenAPI document."""
LINES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}
}
"""For routes that may also answer with lines of JSON."""

router = APIRouter(tags=["ollama"], responses=ERRORS)


def error_shape(error: ApiError) -> Json:
    """Ollama's error object."""
    return {"error": error.message}


register_error_shape("/api/", error_shape)


@router.post("/api/chat", responses=LINES)
async def chat(
    body: OllamaChatRequest, request: Request, served: Annotated[Services, Depends(services)]
) -> Response:
    """Answer a conversation, as lines of JSON or whole."""
    empty = in_message({})
    work = (
        _chat(body, lambda: chat_request(body), in_message, served)
        if body.messages
        else _load_only(body, empty, served)
    )
    return await while_connected(request, work) or Response(status_code=CLIENT_CLOSED)


@router.post("/api/generate", responses=LINES)
async def generate(
    body: GenerateRequest, request: Request, served: Annotated[Services, Depends(services)]
) -> Response:
    """Answer a prompt, or continue it raw, as lines of JSON or whole."""
    if not body.prompt:
        work = _load_only(body, in_response({}), served)
    elif body.raw:
        work = _raw(body, served)
    else:
        work = _chat(body, lambda: generate_request(body), in_response, served)
    return await while_connected(request, work) or Response(status_code=CLIENT_CLOSED)


async def _load_only(body: OllamaRequest, empty: Json, served: Services) -> Response:
    """Load a model, or unload it where it is to be kept for no time."""
    name, _ = served.pool.resolve(plain_name(body.model))
    is_unload = str(body.keep_alive) in ("0", "0.0", "0s")
    if is_unload:
        await served.pool.unload(name)
    else:
        async with served.pool.lease(name):
            pass
    reason = "unload" if is_unload else "load"
    head = {"model": name, "created_at": timestamp(time.time())}
    return JsonResponse(head | empty | {"done": True, "done_reason": reason})


async def _chat(
    body: OllamaRequest,
    read: Callable[[], ChatRequest],
    place: Callable[[Json], Json],
    served: Services,
) -> Response:
    began = time.perf_counter()
    plan = await asyncio.to_thread(plan_chat, _read(read), served)
    answers = await Answers.open(served, plain_name(body.model), lambda lease: _ask(lease, plan))
    lease, rules = answers.lease, plan.options.rules
    choice = ChoiceReader(
        lease.model.tokenizer,
        served.recall,
        logprobs=plan.logprobs,
        pure_content=rules is not None and rules.answer is not None,
    )
    warnings = plan.warnings + warnings_of(body, lease.engine.limit_tokens)
    writer = AnswerWriter(lease.name, ChatLines(choice, place), place({}), warnings, began)
    return await _written(answers, writer, body.stream is not False)


async def _raw(body: GenerateRequest, served: Services) -> Response:
    began = time.perf_counter()
    options = raw_options(body, served)
    prompt = body.prompt or ""
    answers = await Answers.open(
        served,
        plain_name(body.model),
        lambda lease: [lease.model.conversations.acomplete(prompt, options)],
    )
    lease = answers.lease
    warnings = warnings_of(body, lease.engine.limit_tokens)
    writer = AnswerWriter(lease.name, RawLines(), {"response": ""}, warnings, began)
    return await _written(answers, writer, body.stream is not False)


def _read(read: Callable[[], ChatRequest]) -> ChatRequest:
    """The request for the chat door; what does not fit is the client's fault."""
    try:
        return read()
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ApiError(400, f"{field}: {first['msg']}", code="invalid_value") from None


def _ask(lease: Lease, plan: ChatPlan) -> Sequence[AsyncIterator[ChatEvent]]:
    fitted = plan.fitted(lease)
    return [lease.model.conversations.astream(fitted.conversation, fitted.options)]


async def _written(answers: Answers, writer: AnswerWriter, is_streamed: bool) -> Response:
    if is_streamed:
        return lines_response(_lines(answers, writer))
    async with answers:
        async for _, event in answers:
            writer.feed(event)
    return JsonResponse(writer.whole())


async def _lines(answers: Answers, writer: AnswerWriter) -> AsyncIterator[Json]:
    async with answers:
        try:
            async for _, event in answers:
                line = writer.feed(event)
                if line is not None:
                    yield line
        except Exception as error:
            yield error_shape(as_api_error(error))


def lines_response(lines: AsyncIterator[Json]) -> StreamResponse:
    """A body of one JSON object a line; `lines` is closed at once when the client goes away."""

    async def encoded() -> AsyncIterator[bytes]:
        try:
            async for line in lines:
                yield to_json(line) + b"\n"
        finally:
            await aclose(lines)

    return StreamResponse(encoded(), "application/x-ndjson")
