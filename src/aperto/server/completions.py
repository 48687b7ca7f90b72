"""`/v1/completions`: raw continuations, and the log-likelihoods that harnesses ask for."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from aperto.chat import ChatEvent, Done, TokenDrawn
from aperto.engine import Request as EngineRequest
from aperto.engine import TokenStream
from aperto.harmony import TextDelta, stop_ids
from aperto.server.answers import Answers
from aperto.server.choices import usage_of
from aperto.server.convert import sampling_from, stop_from, unknown_fields
from aperto.server.errors import ERROR_RESPONSES, ApiError, as_api_error
from aperto.server.legacy_logprobs import LegacyLogprobs
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
from aperto.server.wire_completions import Completion, CompletionRequest
from aperto.tokenizer import Tokenizer
from aperto.turn import TextReader

router = APIRouter(tags=["completions"], responses=ERROR_RESPONSES)

_END_OF_TEXT = "<|endoftext|>"


@router.post("/v1/completions", response_model=Completion, responses=STREAMED)
async def create_completion(
    body: CompletionRequest, request: Request, served: Annotated[Services, Depends(services)]
) -> Response:
    """Continue texts or token ids, whole or as server-sent events."""
    response = await while_connected(request, _respond(body, served))
    return response or Response(status_code=CLIENT_CLOSED)


async def _respond(body: CompletionRequest, served: Services) -> Response:
    writer = _Writer(body, served)
    writer.answers = await Answers.open(served, body.model, writer.start)
    if body.stream:
        return sse_response(writer.events())
    return JsonResponse(await writer.whole())


class _Continuation:
    """One prompt and its continuation."""

    def __init__(self, body: CompletionRequest, tokenizer: Tokenizer, ids: list[int]) -> None:
        self._body = body
        self._tokenizer = tokenizer
        self._has_told_prompt = not body.echo
        self.ids = ids
        self.drawn: list[int] = []
        self.stream: TokenStream | None = None
        self.text: list[str] = []
        self.logprobs = LegacyLogprobs(tokenizer, body.logprobs or 0)
        self.done: Done | None = None

    def request(self, engine_limit: int, stops: frozenset[int], index: int) -> EngineRequest:
        """What the engine is asked; choices after the first take the seeds that follow."""
        body = self._body
        seed = None if body.seed is None else body.seed + index
        room = engine_limit - len(self.ids)
        most = 16 if body.max_tokens is None else body.max_tokens
        return EngineRequest(
            prompt=self.ids,
            max_tokens=min(most, room) if room > 0 else most,
            sampling=dataclasses.replace(_sampling(body), seed=seed),
            stop_ids=stops,
            num_top_logprobs=body.logprobs or 0,
            echo_logprobs=bool(body.echo) and body.logprobs is not None,
        )

    def feed(self, event: ChatEvent) -> str | None:
        """The text that an event adds; "" where there is only something to tell of tokens."""
        added = ""
        if not self._has_told_prompt:
            added = self._tell_prompt()
        match event:
            case TokenDrawn():
                self.drawn.append(event.token.id)
                if self._body.logprobs is not None:
                    self.logprobs.add(event.token)
            case TextDelta():
                added += event.text
            case Done():
                self.done = event
        self.text.append(added)
        return added or None

    def _tell_prompt(self) -> str:
        self._has_told_prompt = True
        if self._body.logprobs is not None and self.stream is not None:
            self.logprobs.add_prompt(self.ids, self.stream.prompt_logprobs)
        return self._tokenizer.decode(self.ids)

    @property
    def finish_reason(self) -> str:
        """Why it ended, in OpenAI's words."""
        return "length" if self.done and self.done.finish_reason == "length" else "stop"


class _Writer:
    """Asks for continuations and writes them in OpenAI's shape, in pieces or whole."""

    answers: Answers

    def __init__(self, body: CompletionRequest, served: Services) -> None:
        self._body = body
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._choices: list[_Continuation] = []
        self._warnings = unknown_fields(body)
        self._slots = asyncio.Semaphore(2 * served.settings.max_concurrency)
        self._most = served.settings.max_waiting
        if body.best_of not in (None, body.n or 1):
            self._warnings.append("best_of: not supported; n continuations are drawn")

    def start(self, lease: Lease) -> Sequence[AsyncIterator[ChatEvent]]:
        """The streams of all prompts, each drawn n times; each is submitted when its turn comes."""
        tokenizer = lease.model.tokenizer
        prompts = [_ids(prompt, tokenizer) for prompt in _prompts(self._body)]
        num = self._body.n or 1
        if len(prompts) * num > self._most:
            raise ApiError(
                400,
                f"{len(prompts)} prompts with n {num} are {len(prompts) * num} continuations; "
                f"expected at most {self._most}; send fewer prompts at once",
                param="prompt",
            )
        ends = frozenset(stop_ids(tokenizer)) | {tokenizer.special.get(_END_OF_TEXT, -1)}
        requests = []
        for ids in prompts:
            for index in range(num):
                choice = _Continuation(self._body, tokenizer, ids)
                self._choices.append(choice)
                requests.append(choice.request(lease.engine.limit_tokens, ends - {-1}, index))
        pairs = zip(self._choices, requests, strict=True)
        return [self._stream(lease, choice, request) for choice, request in pairs]

    async def _stream(
        self, lease: Lease, choice: _Continuation, request: EngineRequest
    ) -> AsyncIterator[ChatEvent]:
        reader = TextReader(lease.model.tokenizer, stop_from(self._body.stop), logprobs=True)
        async with self._slots:
            with lease.engine.submit(request) as stream:
                choice.stream = stream
                async for token in stream:
                    for event in reader.feed(token):
                        yield event
                    if reader.is_over:
                        break
                stream.close()
                for event in reader.close(stream):
                    yield event

    async def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        async with self.answers:
            async for index, event in self.answers:
                self._choices[index].feed(event)
        choices = [self._choice(i, "".join(c.text)) for i, c in enumerate(self._choices)]
        body = self._shell(choices) | {"usage": self._usage()}
        return body | ({"warnings": self._warnings} if self._warnings else {})

    async def events(self) -> AsyncIterator[Piece]:
        """The data of an answer's server-sent events."""
        options = self._body.stream_options
        extra: dict[str, Any] = {"warnings": self._warnings} if self._warnings else {}
        async with self.answers:
            try:
                async for index, event in self.answers:
                    added = self._choices[index].feed(event)
                    if added is not None or isinstance(event, Done):
                        yield None, self._shell([self._choice(index, added or "")]) | extra
                        extra = {}
                if options is not None and options.include_usage:
                    yield None, self._shell([]) | {"usage": self._usage()}
            except Exception as error:
                yield None, as_api_error(error).body()
            yield None, "[DONE]"

    def _shell(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        lease = self.answers.lease
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": lease.name,
            "system_fingerprint": lease.info.fingerprint,
            "choices": choices,
        }

    def _choice(self, index: int, text: str) -> dict[str, Any]:
        choice, done = self._choices[index], self._choices[index].done
        found: dict[str, Any] = {
            "index": index,
            "text": text,
            "logprobs": None if self._body.logprobs is None else choice.logprobs.take(),
            "finish_reason": None if done is None else choice.finish_reason,
        }
        if done is not None:
            found["seed"] = done.seed
            if self._body.return_token_ids:
                found |= {"prompt_token_ids": choice.ids, "token_ids": choice.drawn}
        return found

    def _usage(self) -> dict[str, Any]:
        """Tokens in all; a prompt that is drawn from n times counts once."""
        num = self._body.n or 1
        dones = [choice.done for choice in self._choices]
        groups = [[d for d in dones[i : i + num] if d] for i in range(0, len(dones), num)]
        total = usage_of(groups[0])
        for group in groups[1:]:
            one = usage_of(group)
            for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
                total[key] += one[key]
            for key in ("prompt_tokens_details", "completion_tokens_details"):
                total[key] = {name: n + one[key][name] for name, n in total[key].items()}
        return total


def _sampling(body: CompletionRequest) -> Any:
    return sampling_from(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=None if body.top_k is None else max(0, body.top_k),
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=body.logit_bias,
    )


def _prompts(body: CompletionRequest) -> list[str | list[int]]:
    """The prompts: one text, one list of ids, or a list of either."""
    prompt = body.prompt
    if prompt is None or isinstance(prompt, str):
        return [prompt or ""]
    if not prompt or isinstance(prompt[0], int):
        return [[i for i in prompt if isinstance(i, int)]]
    return [item for item in prompt if not isinstance(item, int)]


def _ids(prompt: str | list[int], tokenizer: Tokenizer) -> list[int]:
    """Ids of a prompt; an empty one is the start of a new text."""
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    if ids:
        return ids
    return [tokenizer.special_id(_END_OF_TEXT)]
