"""Requests of Ollama's clients in the words of the chat door."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aperto.chat import ChatOptions
from aperto.server.convert import sampling_from, stop_from, unknown_fields
from aperto.server.services import Services
from aperto.server.wire_chat import CalledFunction, CallSpec, ChatMessage, ChatRequest, ToolSpec
from aperto.server.wire_ollama import (
    GenerateRequest,
    OllamaChatRequest,
    OllamaMessage,
    OllamaOptions,
    OllamaRequest,
)

# Options that say how Ollama loads and runs a model, or that have no counterpart of any weight.
_SILENT = frozenset(
    {
        "f16_kv",
        "low_vram",
        "main_gpu",
        "num_batch",
        "num_gpu",
        "num_keep",
        "num_thread",
        "numa",
        "penalize_newline",
        "repeat_last_n",
        "use_mlock",
        "use_mmap",
    }
)


def plain_name(name: str) -> str:
    """A model's name without Ollama's default tag."""
    return name.removesuffix(":latest")


def warnings_of(body: OllamaRequest, context_tokens: int) -> list[str]:
    """What of a request is not done as asked, where the chat door would not see it."""
    options = body.options or OllamaOptions()
    lines = [*unknown_fields(body), *unknown_fields(options, _SILENT)]
    if options.num_ctx is not None and options.num_ctx > context_tokens:
        lines.append(f"num_ctx: {options.num_ctx} was asked for; the context is {context_tokens}")
    return lines


def chat_request(body: OllamaChatRequest) -> ChatRequest:
    """The same request for the chat door. Raises what its model raises."""
    return _request(body, chat_messages(body.messages), body.tools)


def generate_request(body: GenerateRequest) -> ChatRequest:
    """A prompt with instructions as a conversation of one turn."""
    messages = [OllamaMessage(role="user", content=body.prompt, images=body.images)]
    if body.system:
        messages.insert(0, OllamaMessage(role="system", content=body.system))
    return _request(body, chat_messages(messages), None)


def _request(
    body: OllamaRequest, messages: list[ChatMessage], tools: Sequence[Any] | None
) -> ChatRequest:
    options = body.options or OllamaOptions()
    return ChatRequest(
        messages=messages,
        stream=body.stream is not False,
        max_tokens=_max_tokens(options),
        response_format=_format(body.format),
        tools=None if tools is None else [ToolSpec.model_validate(tool) for tool in tools],
        reasoning_effort=_effort(body.think),
        stop=list(stop_from(options.stop)),
        logprobs=body.logprobs,
        top_logprobs=body.top_logprobs,
        **_sampling(options),
    )


def raw_options(body: GenerateRequest, served: Services) -> ChatOptions:
    """How a raw prompt is continued."""
    options = body.options or OllamaOptions()
    return ChatOptions(
        max_tokens=_max_tokens(options),
        sampling=sampling_from(**_sampling(options)),
        stop=stop_from(options.stop),
        announce_prefill_s=None if body.stream is False else served.settings.heartbeat_s,
    )


def _sampling(options: OllamaOptions) -> dict[str, Any]:
    """Sampling in OpenAI's names; Ollama says "at random" with a seed below 0."""
    seed = options.seed
    return {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": None if options.top_k is None else max(0, options.top_k),
        "min_p": options.min_p,
        "seed": None if seed is None or seed < 0 else seed,
        "repetition_penalty": options.repeat_penalty,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
    }


def _max_tokens(options: OllamaOptions) -> int | None:
    """Most tokens; Ollama says "no limit" with a number below 0."""
    most = options.num_predict
    return None if most is None or most < 1 else most


def _format(value: Any) -> dict[str, Any] | None:
    if value in (None, ""):
        return None
    if isinstance(value, dict):
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": value}}
    return {"type": "json_object" if value == "json" else value}


def _effort(think: bool | str | None) -> str | None:
    if isinstance(think, str):
        known = {"": None, "true": None, "false": "none"}
        return known.get(think, think)
    return "none" if think is False else None


def chat_messages(messages: Sequence[OllamaMessage]) -> list[ChatMessage]:
    """Ollama's messages as the chat door's; results without a name follow the calls' order."""
    made: list[ChatMessage] = []
    unanswered: list[str] = []
    for message in messages:
        if message.role == "assistant":
            unanswered = [call.function.name for call in message.tool_calls or ()]
        name = message.tool_name
        if message.role == "tool":
            if name is None and unanswered:
                name = unanswered[0]
            if name in unanswered:
                unanswered.remove(name)
        made.append(_message(message, name))
    return made


def _message(message: OllamaMessage, name: str | None) -> ChatMessage:
    parts = [{"type": "text", "text": message.content or ""}]
    parts += [{"type": "image"} for _ in message.images or ()]
    calls = [
        CallSpec(
            id=call.id,
            function=CalledFunction(name=call.function.name, arguments=call.function.arguments),
        )
        for call in message.tool_calls or ()
    ]
    return ChatMessage(
        role=message.role,
        content=parts if message.images else message.content,
        name=name,
        reasoning=message.thinking,
        tool_calls=calls or None,
        tool_call_id=message.tool_call_id,
    )
