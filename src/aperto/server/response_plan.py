"""A Responses request read and checked: what to ask the model, before any work is done."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from aperto.chat import ChatOptions
from aperto.harmony import Conversation, TurnRules
from aperto.server.convert import answer_format_from, effort_from, sampling_from, stop_from
from aperto.server.errors import ApiError
from aperto.server.moderations import Judge, asked_judge
from aperto.server.pool import Lease
from aperto.server.response_input import InputReader, own_items
from aperto.server.response_tools import Choice, ToolTable
from aperto.server.room import Fitted, fitted, kept_for_answer
from aperto.server.services import Services
from aperto.server.store import UNFINISHED
from aperto.server.wire_responses import Json, ReasoningConfig, ResponsesRequest, response_body
from aperto.tools.tool import Tool

_MOST_ROUNDS = 16
_NOT_KEPT = {
    "conversation": "conversation objects are not kept here, and nothing of it was read; use "
    "previous_response_id",
    "prompt": "prompt templates are not kept here, and nothing of it was read; send instructions "
    "and input",
}
_KNOWN_EXTRAS = {
    "client_metadata",
    "prompt_cache_options",
    "prompt_cache_retention",
    "stream_id",
    "type",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What a request asks of the model."""

    request: ResponsesRequest
    """The request."""
    model: str
    """The served model that answers."""
    earlier: Sequence[Json]
    """Items of the responses that this one goes on from."""
    own: Sequence[Json]
    """The request's own input items."""
    table: ToolTable
    """The tools it offers."""
    conversation: Conversation
    """What was said."""
    choice: Choice
    """Whether and whom the model may call."""
    options: ChatOptions
    """How to answer; the choice comes in when the server's tools are open."""
    body: Json
    """The response object before anything was generated."""
    is_reasoning_hidden: bool
    """Whether the text of the reasoning is kept from the client."""
    judge: Judge | None = None
    """Judges the input and what is answered, where asked for."""

    def fitted(self, lease: Lease, tools: Sequence[Tool] = ()) -> Fitted:
        """The options with the choice and the server's tools, cut to the context's room."""
        rules = self.choice.rules(self.options.rules or TurnRules(), tools)
        options = dataclasses.replace(self.options, tools=tuple(tools), rules=rules)
        return fitted(lease, self.conversation, options, "max_output_tokens")


async def make_plan(
    request: ResponsesRequest,
    served: Services,
    memory: Mapping[str, Sequence[Json]] | None = None,
) -> Plan:
    """Read a request.

    Args:
        request: what was asked for.
        served: the server's parts.
        memory: whole conversations, as items, by the id of their last response; looked at before
            the store.

    Raises ApiError for what is not there or cannot be understood, and ConfigError.
    """
    _refuse(request)
    model, _ = served.pool.resolve(request.model)
    judge = asked_judge(request.moderation, served)
    earlier = await _earlier(request.previous_response_id, served, memory or {})
    known = {str(item["id"]): item for item in earlier}

    def find(item_id: str) -> Json | None:
        stored = served.store.find_item(item_id) if served.store is not None else None
        return known.get(item_id) or stored

    own = await asyncio.to_thread(own_items, request.input, find)
    is_served = request.max_tool_calls != 0
    table = ToolTable(request.tools, served.settings.tools if is_served else ())
    answer, announced = _answer_format(request, table.warnings)
    choice = table.choice(request.tool_choice)
    options = _options(request, served, table, answer)
    reader = InputReader(table, served.sealer, served.recall)
    formats = (announced,) if announced is not None else ()
    conversation = await asyncio.to_thread(
        reader.conversation, [*earlier, *own], request.instructions, formats
    )
    body = response_body(request, model, table.echo)
    body["store"] = body["store"] and served.store is not None
    warnings = [*_skipped(request), *table.warnings, *reader.warnings]
    if warnings:
        body["warnings"] = warnings
    return Plan(
        request=request,
        model=model,
        earlier=earlier,
        own=own,
        table=table,
        conversation=conversation,
        choice=choice,
        options=options,
        body=body,
        is_reasoning_hidden=(request.reasoning or ReasoningConfig()).exclude,
        judge=judge,
    )


def _refuse(request: ResponsesRequest) -> None:
    """Turn away what nothing sensible could be done with."""
    for name in ("input", "instructions", "tools", "tool_choice", "text"):
        if not _is_finite(getattr(request, name)):
            raise ApiError(
                400, f"{name} holds a number that JSON cannot carry (NaN or Infinity)", param=name
            )
    if request.background and not request.is_stored:
        raise ApiError(
            400,
            "background is true and store is false; a response that is fetched later has to be "
            "stored: leave store out, or set it to true",
            code="invalid_value",
            param="store",
        )


def _is_finite(value: object) -> bool:
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


async def _earlier(
    previous_id: str | None, served: Services, memory: Mapping[str, Sequence[Json]]
) -> Sequence[Json]:
    if previous_id is None:
        return ()
    if previous_id in memory:
        return memory[previous_id]
    store = served.store
    body = None if store is None else await asyncio.to_thread(store.get, previous_id)
    if store is None or body is None:
        raise _not_found(previous_id, previous_id)
    if body["status"] in UNFINISHED:
        raise ApiError(
            400,
            f"the response {previous_id!r} is {body['status']}; wait until it has ended, or cancel "
            "it, and go on from it then",
            code="previous_response_not_completed",
            param="previous_response_id",
        )
    items, missing = await asyncio.to_thread(store.chain, previous_id)
    if missing is not None:
        raise _not_found(previous_id, missing)
    return items


def _not_found(previous_id: str, missing: str) -> ApiError:
    before = "" if missing == previous_id else f", which goes on from {missing!r},"
    return ApiError(
        400,
        f"the response {previous_id!r}{before} is not stored here (any longer); send the whole "
        "conversation as input, without previous_response_id",
        code="previous_response_not_found",
        param="previous_response_id",
    )


def _answer_format(request: ResponsesRequest, warnings: list[str]) -> tuple[Any, Any]:
    given = request.text.format if request.text else None
    return answer_format_from(given, warnings, "text.format")


def _options(
    request: ResponsesRequest, served: Services, table: ToolTable, answer: Any
) -> ChatOptions:
    reasoning = request.reasoning or ReasoningConfig()
    effort, has_reasoning = effort_from(reasoning.effort)
    budget = reasoning.max_tokens
    most = 1 if request.generate is False else request.max_output_tokens
    is_followed = bool(request.stream or request.background)
    return ChatOptions(
        effort=effort,
        system=served.settings.system,
        max_tokens=most,
        sampling=_sampling(request),
        stop=stop_from(request.stop),
        logprobs=request.shows_logprobs,
        num_top_logprobs=request.top_logprobs or 0,
        rules=TurnRules(
            calls=table.calls,
            parallel_calls=request.parallel_tool_calls is not False,
            reasoning=has_reasoning,
            answer=answer,
        ),
        reasoning_tokens=budget,
        max_tool_rounds=min(request.max_tool_calls or _MOST_ROUNDS, _MOST_ROUNDS),
        answer_tokens=kept_for_answer(most) if budget else 0,
        announce_prefill_s=served.settings.heartbeat_s if is_followed else None,
    )


def _sampling(request: ResponsesRequest) -> Any:
    return sampling_from(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=request.repetition_penalty,
        logit_bias=request.logit_bias,
        seed=request.seed,
    )


def _skipped(request: ResponsesRequest) -> list[str]:
    """One line for each thing that was asked for and has no effect."""
    reasoning, text = request.reasoning or ReasoningConfig(), request.text
    checks = {
        f"reasoning.effort: {reasoning.effort!r} is served as 'high'": reasoning.effort
        in ("xhigh", "max"),
        "reasoning.effort: 'minimal' is served as 'low'": reasoning.effort == "minimal",
        "reasoning.summary: no summary is written; the reasoning itself is in the item's content": (
            reasoning.summary not in (None, "none")
        ),
        "text.verbosity: has no effect": text is not None
        and text.verbosity not in (None, "medium"),
        "truncation: 'auto' is served as 'disabled'; nothing is ever cut from the input": (
            request.truncation == "auto"
        ),
    }
    lines = [line for line, is_skipped in checks.items() if is_skipped]
    extras = {"conversation": request.conversation, **(request.model_extra or {})}
    given = sorted(n for n, value in extras.items() if value is not None and n not in _KNOWN_EXTRAS)
    skipped = "not supported; it was skipped"
    return [*lines, *(f"{name}: {_NOT_KEPT.get(name, skipped)}" for name in given)]
