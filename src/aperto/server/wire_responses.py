"""The Responses API as it is written: the request's fields, and the response object."""

from __future__ import annotations

import secrets
import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from aperto.server.wire_moderation import ModerationConfig

Json = dict[str, Any]


def new_id(prefix: str) -> str:
    """An id nobody can guess: `prefix`, an underline and 48 hexadecimal digits."""
    return f"{prefix}_{secrets.token_hex(24)}"


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class ReasoningConfig(_Lenient):
    """How much the model thinks, and what is shown of it."""

    effort: str | None = None
    """none, minimal, low, medium, high or xhigh."""
    summary: str | None = None
    """Accepted; the reasoning itself is shown, no summary is written."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of reasoning (an extension); the answer is then begun."""
    exclude: bool = False
    """Whether the reasoning is kept out of the response (an extension)."""


class TextConfig(_Lenient):
    """What form the answer has."""

    format: Json | None = None
    """text, json_object, json_schema; as extensions regex (pattern) and lark (grammar)."""
    verbosity: str | None = None
    """Accepted; the model has no such control."""


class ResponsesRequest(_Lenient):
    """Body of POST /v1/responses, and what a response.create message holds. Fields that are not
    listed are accepted and skipped."""

    model: str | None = None
    """Name of the model; the first one that is served where it is missing."""
    input: str | list[Json] | None = None
    """Text of the user, or items."""
    instructions: str | list[Json] | None = None
    """What the model is told before the input; not carried over to later responses."""
    previous_response_id: str | None = None
    """The response that this one goes on from."""
    conversation: str | Json | None = None
    """Not served: there are no conversation objects."""
    include: list[str] | None = None
    """reasoning.encrypted_content, message.output_text.logprobs."""
    moderation: ModerationConfig | None = None
    """Judges the input and what is answered."""
    tools: list[Json] | None = None
    """function, custom and namespace tools; others are skipped with a warning."""
    tool_choice: str | Json | None = None
    """auto, none, required, or an object that names tools."""
    parallel_tool_calls: bool | None = None
    """Whether more than one call may be made in one turn; by default yes."""
    max_tool_calls: int | None = Field(default=None, ge=0)
    """Most rounds of tools that the server runs itself."""
    text: TextConfig | None = None
    """What form the answer has."""
    reasoning: ReasoningConfig | None = None
    """How much the model thinks."""
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Most tokens, reasoning included."""
    temperature: float | None = Field(default=None, ge=0, le=100)
    """Sampling temperature; 1 by default."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Nucleus sampling; 1 by default."""
    top_k: int | None = Field(default=None, ge=0)
    """Most tokens to draw from (an extension); 0 sets no limit."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Least probability relative to the likeliest token (an extension)."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Off every token that was drawn before."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """Off every token, for each time it was drawn before."""
    repetition_penalty: float | None = Field(default=None, gt=0)
    """Factor against tokens of prompt and answer (an extension)."""
    logit_bias: dict[str, float] | None = None
    """Token ids and what is added to their logits (an extension)."""
    seed: int | None = None
    """Repeats an answer (an extension)."""
    stop: str | list[str] | None = None
    """Strings that end the answer (an extension)."""
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    """Most likely tokens shown with each token of the answer."""
    stream: bool | None = None
    """Whether to send events as they come."""
    stream_options: Json | None = None
    """Accepted."""
    background: bool | None = None
    """Whether to answer at once and work on; the response is fetched later."""
    store: bool | None = None
    """Whether the response is kept; by default yes."""
    truncation: Literal["auto", "disabled"] | None = None
    """Nothing is ever truncated; "auto" leads to a warning."""
    metadata: dict[str, str] | None = None
    """Given back as it is."""
    user: str | None = None
    """Given back as it is."""
    safety_identifier: str | None = None
    """Given back as it is."""
    prompt_cache_key: str | None = None
    """Given back as it is; prefixes are shared without it."""
    service_tier: str | None = None
    """Accepted; there is one tier."""
    generate: bool | None = None
    """False reads the prompt into the cache and answers nothing."""

    def includes(self, what: str) -> bool:
        """Whether something was asked for under `include`."""
        return what in (self.include or ())

    @property
    def is_stored(self) -> bool:
        """Whether the response is to be kept."""
        return self.store is not False

    @property
    def shows_logprobs(self) -> bool:
        """Whether tokens of the answer come with their logprobs."""
        return self.includes("message.output_text.logprobs") or bool(self.top_logprobs)


class CompactRequest(_Lenient):
    """Body of POST /v1/responses/compact."""

    model: str | None = None
    """Name of the model that writes the summary."""
    input: str | list[Json] | None = None
    """Items to compact."""
    previous_response_id: str | None = None
    """A response whose conversation is to be compacted, before the input."""
    instructions: str | None = None
    """What the model is told besides."""
    prompt_cache_key: str | None = None
    """Accepted."""


def response_body(request: ResponsesRequest, model: str, tools: list[Json]) -> Json:
    """The response object before anything was generated.

    Args:
        request: what was asked for.
        model: name of the model that answers.
        tools: those of the request's tools that the model is offered, as they are echoed.
    """
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "queued" if request.background else "in_progress",
        "background": bool(request.background),
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "model": model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": _reasoning(request),
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": request.is_stored,
        "temperature": _default(request.temperature, 1.0),
        "text": _text(request),
        "tool_choice": _default(request.tool_choice, "auto"),
        "tools": tools,
        "top_logprobs": request.top_logprobs or 0,
        "top_p": _default(request.top_p, 1.0),
        "presence_penalty": request.presence_penalty or 0.0,
        "frequency_penalty": request.frequency_penalty or 0.0,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
        "metadata": request.metadata or {},
    }


def _default(value: Any, default: Any) -> Any:
    return default if value is None else value


def _reasoning(request: ResponsesRequest) -> Json:
    given = request.reasoning or ReasoningConfig()
    effort = {"xhigh": "high", "max": "high"}.get(given.effort or "", given.effort or "medium")
    return {"effort": effort, "summary": None}


def _text(request: ResponsesRequest) -> Json:
    given = request.text or TextConfig()
    shape = dict(given.format or {"type": "text"})
    if shape.get("type") == "json_schema":
        shape = {"strict": False, "name": "answer", "description": None} | shape
        shape["strict"] = bool(shape["strict"])
    return {"format": shape, "verbosity": given.verbosity or "medium"}


def usage_body(
    input_tokens: int, cached_tokens: int, output_tokens: int, reasoning_tokens: int
) -> Json:
    """Token counts as responses carry them. What the cache takes up is not billed, so 0."""
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": cached_tokens, "cache_write_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": input_tokens + output_tokens,
    }


class ResponseObject(_Lenient):
    """A response; its other fields say what was asked for. As extensions, `warnings` lists what
    was not done as asked, `repairs` what was mended in the model's format, and `seed` repeats the
    answer."""

    id: str
    object: Literal["response"]
    created_at: int
    status: str
    """queued, in_progress, completed, incomplete, failed or cancelled."""
    model: str
    output: list[Json]
    """Items: reasoning, message, function_call, custom_tool_call, mcp_call."""


class ItemList(BaseModel):
    """A page of items."""

    object: Literal["list"]
    data: list[Json]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedResponse(BaseModel):
    """What is said of a response that was deleted."""

    id: str
    object: Literal["response"]
    deleted: bool


class InputTokens(BaseModel):
    """The length of a prompt."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class CompactedObject(BaseModel):
    """A conversation made short: its user messages and a sealed summary of the rest."""

    id: str
    object: Literal["response.compaction"]
    created_at: int
    output: list[Json]
    usage: Json
