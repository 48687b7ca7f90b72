"""A request to `/v1/messages` read: what to ask the model, and what could not be done as asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from aperto.chat import ChatOptions
from aperto.harmony import Conversation, Effort, FunctionTool
from aperto.server.anthropic_input import MessagesReader
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
from aperto.server.pool import Lease
from aperto.server.room import fitted, kept_for_answer
from aperto.server.services import Services
from aperto.server.wire_anthropic import CountRequest, MessagesRequest, Thinking, ToolSpec

# Fields without an effect on the answer: nothing is lost by not knowing them.
_SILENT = frozenset({"betas", "cache_control", "context_management", "diagnostics"})
_ALIAS_PREFIXES = ("claude", "anthropic/claude")
_LOW_BUDGET = 4000
_HIGH_BUDGET = 16000


@dataclasses.dataclass(frozen=True, slots=True)
class MessagesPlan:
    """What a request asks of the model."""

    model: str
    """Name of the model that answers."""
    conversation: Conversation
    """What was said."""
    options: ChatOptions
    """How to answer."""
    shows_blocks: bool
    """Whether reasoning becomes thinking blocks."""
    shows_reasoning: bool
    """Whether their text is shown, or only its sealed form."""
    warnings: list[str]
    """What is not done as asked, one line each."""
    is_lowered: bool = False
    """Whether the context has less room than max_tokens."""
    prompt_tokens: int = 0
    """Tokens of the prompt, once it was fitted."""

    def fitted(self, lease: Lease) -> MessagesPlan:
        """The plan with max_tokens cut to what the context has room for, with a warning.

        Raises ApiError 400, in the words that clients know, where the prompt leaves no room.
        """
        found = fitted(lease, self.conversation, self.options)
        prompt, limit = found.prompt_tokens or 0, lease.engine.limit_tokens
        if prompt >= limit:
            raise ApiError(
                400,
                # Claude Code shortens its conversation when it reads these words.
                f"prompt is too long: {prompt} tokens > {limit - 1} maximum",
                code="context_length_exceeded",
                param="messages",
            )
        if found.warning is not None:
            self.warnings.append(found.warning)
        return dataclasses.replace(
            self, options=found.options, is_lowered=found.warning is not None, prompt_tokens=prompt
        )


def plan_messages(body: CountRequest, served: Services) -> MessagesPlan:
    """Read a request; may block while a PDF is read.

    Raises ApiError 400 and 404, and ConfigError, for what cannot be understood.
    """
    warnings = unknown_fields(body, _SILENT)
    model = _model(body.model, served, warnings)
    output = body.output_config
    answer, announced = answer_format_from(_format(body), warnings, "output_config.format")
    effort, has_reasoning = _effort(body)
    budget = body.thinking.budget_tokens if body.thinking else None
    functions = _functions(body.tools or (), warnings)
    choice = body.tool_choice
    rules = tools_to_rules(
        functions,
        tool_choice=_choice(body),
        parallel_calls=not (choice and choice.disable_parallel_tool_use),
        reasoning=has_reasoning,
        answer=answer,
        warnings=warnings,
    )
    reader = MessagesReader(served.sealer, served.recall, warnings)
    tools = [function.tool for function in functions]
    conversation = reader.conversation(body.messages, body.system, tools, announced)
    options = ChatOptions(
        effort=effort,
        system=served.settings.system,
        rules=rules,
        reasoning_tokens=budget if has_reasoning else None,
    )
    if isinstance(body, MessagesRequest):
        options = _drawn(body, options, served)
    is_omitted = body.thinking is not None and body.thinking.display == "omitted"
    if output is not None and (extra := unknown_fields(output)):
        warnings += [f"output_config.{line}" for line in extra]
    return MessagesPlan(
        model=model,
        conversation=conversation,
        options=options,
        shows_blocks=body.thinking is not None,
        shows_reasoning=not is_omitted,
        warnings=warnings,
    )


def _drawn(body: MessagesRequest, options: ChatOptions, served: Services) -> ChatOptions:
    """The options with how tokens are drawn, and how many.

    Some are always kept for the answer: clients give max_tokens for what they will read.
    """
    return dataclasses.replace(
        options,
        max_tokens=body.max_tokens,
        answer_tokens=kept_for_answer(body.max_tokens),
        sampling=sampling_from(
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=None if body.top_k is None else max(0, body.top_k),
        ),
        stop=stop_from(body.stop_sequences),
        announce_prefill_s=served.settings.heartbeat_s if body.stream else None,
    )


def _model(name: str | None, served: Services, warnings: list[str]) -> str:
    """The served model a name means; Anthropic's own names mean the default one."""
    try:
        served.pool.resolve(name)
    except ApiError:
        if not (name or "").lower().startswith(_ALIAS_PREFIXES):
            raise
        found, _ = served.pool.resolve(None)
        warnings.append(f"model: {name!r} is not served here; {found!r} answers")
        return found
    return name or served.pool.resolve(None)[0]


def _effort(body: CountRequest) -> tuple[Effort | None, bool]:
    thinking = body.thinking
    if thinking is not None and (thinking.type == "disabled" or thinking.budget_tokens == 0):
        return Effort.LOW, False
    if body.output_config is not None and body.output_config.effort is not None:
        return effort_from(body.output_config.effort)
    return _effort_of_budget(thinking), True


def _effort_of_budget(thinking: Thinking | None) -> Effort | None:
    """How hard to think where only the most tokens of thought are said."""
    if thinking is None or thinking.budget_tokens is None:
        return None
    if thinking.budget_tokens < _LOW_BUDGET:
        return Effort.LOW
    return Effort.MEDIUM if thinking.budget_tokens < _HIGH_BUDGET else Effort.HIGH


def _format(body: CountRequest) -> Mapping[str, Any] | None:
    return body.output_config.format if body.output_config else None


def _choice(body: CountRequest) -> str | dict[str, Any] | None:
    """The choice of tools in OpenAI's words."""
    if body.tool_choice is None:
        return None
    if body.tool_choice.type == "tool":
        return {"type": "function", "name": body.tool_choice.name}
    return body.tool_choice.type


def _functions(
    tools: list[ToolSpec] | tuple[()], warnings: list[str]
) -> tuple[ClientFunction, ...]:
    """The client's functions; tools that Anthropic defines are skipped with a warning."""
    found = []
    for index, spec in enumerate(tools):
        if spec.type in (None, "custom") and spec.name:
            tool = FunctionTool(spec.name, spec.description or "", spec.input_schema)
            found.append(ClientFunction(tool, strict=spec.strict is True))
        else:
            kind = (spec.type or "custom")[:80]
            warnings.append(f"tools.{index}: type {kind!r} is not supported; it was skipped")
    return unique_functions(found, warnings)
