"""A chat request read: what to ask the model, and what could not be done as asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from aperto.chat import ChatOptions
from aperto.harmony import Conversation, FunctionTool
from aperto.server.chat_messages import ConversationBuilder
from aperto.server.convert import (
    ClientFunction,
    answer_format_from,
    effort_from,
    sampling_from,
    stop_from,
    tools_to_rules,
    unique_functions,
    unknown_fields,
)
from aperto.server.errors import ApiError
from aperto.server.moderations import Judge, asked_judge
from aperto.server.pool import Lease
from aperto.server.room import fitted, kept_for_answer
from aperto.server.services import Services
from aperto.server.wire_chat import ChatRequest, FunctionSpec

# vLLM's names for a constrained answer, as the response_format each stands for.
_STRUCTURED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "json": lambda value: {"type": "json_schema", "json_schema": {"schema": value}},
    "json_object": lambda value: {"type": "json_object"},
    "regex": lambda value: {"type": "regex", "pattern": value},
    "grammar": lambda value: {"type": "lark", "grammar": value},
}
_HANDLED = frozenset({"structured_outputs", *(f"guided_{kind}" for kind in _STRUCTURED)})


@dataclasses.dataclass(frozen=True, slots=True)
class ChatPlan:
    """What a chat request asks of the model."""

    conversation: Conversation
    """What was said."""
    options: ChatOptions
    """How to answer."""
    num_choices: int
    """How many answers are wanted."""
    logprobs: bool
    """Whether content comes with logprobs."""
    show_reasoning: bool
    """Whether reasoning is passed on."""
    include_usage: bool
    """Whether a stream ends with the usage."""
    warnings: list[str]
    """What is not done as asked, one line each."""
    judge: Judge | None = None
    """Judges input and answers, where asked for."""

    def choice(self, index: int) -> ChatOptions:
        """Options of one choice: with a seed, those after the first take the seeds that follow."""
        sampling = self.options.sampling
        if sampling.seed is None or index == 0:
            return self.options
        sampling = dataclasses.replace(sampling, seed=sampling.seed + index)
        return dataclasses.replace(self.options, sampling=sampling)

    def fitted(self, lease: Lease) -> ChatPlan:
        """The plan with max_tokens cut to what the context has room for, with a warning.

        A prompt that leaves no room is not cut: submitting it raises ContextLengthError.
        """
        found = fitted(lease, self.conversation, self.options)
        if found.warning is not None:
            self.warnings.append(found.warning)
        return dataclasses.replace(self, options=found.options)


def plan_chat(body: ChatRequest, served: Services) -> ChatPlan:
    """Read a request. Raises ApiError 400 and ConfigError for what cannot be understood."""
    settings = served.settings
    num_choices = body.n or 1
    if num_choices > settings.max_choices:
        raise ApiError(400, f"n is {num_choices}; expected 1..{settings.max_choices}", param="n")
    warnings = unknown_fields(body, _HANDLED)
    functions = functions_from(body, warnings)
    answer, announced = answer_format_from(_response_format(body), warnings)
    effort, has_reasoning = effort_from(_effort(body))
    budget = body.reasoning.max_tokens if body.reasoning else None
    rules = tools_to_rules(
        functions,
        tool_choice=_tool_choice(body),
        parallel_calls=body.parallel_tool_calls,
        reasoning=has_reasoning and budget != 0,
        answer=answer,
        warnings=warnings,
    )
    builder = ConversationBuilder(served.recall, warnings)
    conversation = builder.build(body.messages, [f.tool for f in functions], announced)
    max_tokens = body.max_completion_tokens or body.max_tokens
    options = ChatOptions(
        effort=effort,
        system=settings.system,
        max_tokens=max_tokens,
        sampling=_sampling(body),
        stop=stop_from(body.stop),
        logprobs=bool(body.logprobs),
        num_top_logprobs=(body.top_logprobs or 0) if body.logprobs else 0,
        rules=rules,
        reasoning_tokens=budget or None,
        answer_tokens=kept_for_answer(max_tokens) if budget else 0,
        announce_prefill_s=settings.heartbeat_s if body.stream else None,
    )
    stream_options = body.stream_options
    return ChatPlan(
        conversation=conversation,
        options=options,
        num_choices=num_choices,
        logprobs=bool(body.logprobs),
        show_reasoning=_shows_reasoning(body),
        include_usage=bool(stream_options and stream_options.include_usage),
        warnings=warnings,
        judge=asked_judge(body.moderation, served),
    )


def _sampling(body: ChatRequest) -> Any:
    return sampling_from(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=None if body.top_k is None else max(0, body.top_k),
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=body.logit_bias,
        seed=body.seed,
    )


def _effort(body: ChatRequest) -> str | None:
    if body.reasoning_effort is not None:
        return body.reasoning_effort
    if body.reasoning is not None and body.reasoning.effort is not None:
        return body.reasoning.effort
    arguments = body.chat_template_kwargs or {}
    if arguments.get("enable_thinking") is False:
        return "none"
    effort = arguments.get("reasoning_effort")
    return None if effort is None else str(effort)


def _shows_reasoning(body: ChatRequest) -> bool:
    is_excluded = body.reasoning is not None and body.reasoning.exclude is True
    return body.include_reasoning is not False and not is_excluded


def _response_format(body: ChatRequest) -> Mapping[str, Any] | None:
    if body.response_format is not None:
        return body.response_format
    extra = body.model_extra or {}
    structured = extra.get("structured_outputs")
    for kind, as_format in _STRUCTURED.items():
        value = extra.get(f"guided_{kind}")
        if value is None and isinstance(structured, Mapping):
            value = structured.get(kind)
        if value is not None and value is not False:
            return as_format(value)
    return None


def _tool_choice(body: ChatRequest) -> str | Mapping[str, Any] | None:
    if body.tool_choice is not None or body.function_call is None:
        return body.tool_choice
    if isinstance(body.function_call, str):
        return body.function_call
    return {"type": "function", "function": body.function_call}


def functions_from(body: ChatRequest, warnings: list[str]) -> tuple[ClientFunction, ...]:
    """The client's functions; tools of other types are skipped with a warning."""
    found = [_function(spec) for spec in body.functions or ()]
    for index, tool in enumerate(body.tools or ()):
        if tool.type == "function" and tool.function is not None:
            found.append(_function(tool.function))
        else:
            warnings.append(f"tools.{index}: type {tool.type!r} is not supported; it was skipped")
    return unique_functions(found, warnings)


def _function(spec: FunctionSpec) -> ClientFunction:
    tool = FunctionTool(spec.name, spec.description or "", spec.parameters)
    return ClientFunction(tool, strict=spec.strict is True)
