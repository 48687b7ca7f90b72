"""Bodies of `/v1/messages`: what is read of them, and the shapes of what is answered."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]


class _Wire(BaseModel):
    """A request's object: unknown fields are kept, so that they can be reported."""

    model_config = ConfigDict(extra="allow")


class MessageSpec(_Wire):
    """One message: text, or blocks of text, thinking, tool calls, results, files, images."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Json] = ""


class ToolSpec(_Wire):
    """A tool of the client; those that Anthropic defines by their type are skipped."""

    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: Json | None = None
    strict: bool | None = None


class ToolChoice(_Wire):
    """Whether and which tool is to be called."""

    type: str = "auto"
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(_Wire):
    """How much the model may think, and whether that is shown."""

    type: str = "enabled"
    budget_tokens: int | None = Field(None, ge=0)
    display: str | None = None


class OutputConfig(_Wire):
    """How much effort is made, and the form of the answer."""

    effort: str | None = None
    format: Json | None = None


class CountRequest(_Wire):
    """Body of `POST /v1/messages/count_tokens`."""

    model: str | None = None
    messages: list[MessageSpec] = Field(min_length=1)
    system: str | list[Json] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest):
    """Body of `POST /v1/messages`. Fields that are not known are skipped and reported."""

    max_tokens: int = Field(ge=1)
    stream: bool | None = False
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


class MessageUsage(BaseModel):
    """Tokens that were read and written; the prompt is the sum of the three input counts."""

    input_tokens: int
    cache_creation_input_tokens: int | None
    cache_read_input_tokens: int | None
    output_tokens: int
    output_tokens_details: dict[str, int] | None = None


class MessageBody(BaseModel):
    """Answer of `POST /v1/messages` without `stream`."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Json]
    stop_reason: Literal[
        "end_turn",
        "max_tokens",
        "stop_sequence",
        "tool_use",
        "model_context_window_exceeded",
    ]
    stop_sequence: str | None
    usage: MessageUsage
    warnings: list[str] | None = None


class TokenCount(BaseModel):
    """Answer of `POST /v1/messages/count_tokens`."""

    input_tokens: int


class ErrorDetail(BaseModel):
    """What went wrong."""

    type: str
    message: str


class ErrorBody(BaseModel):
    """Body of every failed request."""

    type: Literal["error"] = "error"
    error: ErrorDetail
