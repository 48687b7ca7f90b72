"""Bodies of `/v1/chat/completions`: what is read of them, and the shapes of what is answered."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from aperto.server.wire_moderation import ModerationConfig, Verdict


class Wire(BaseModel):
    """A request's object: unknown fields are kept, so that they can be reported."""

    model_config = ConfigDict(extra="allow")


class FunctionSpec(Wire):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolSpec(Wire):
    """A tool; types other than "function" are skipped with a warning."""

    type: str = "function"
    function: FunctionSpec | None = None


class CalledFunction(Wire):
    """Name and arguments of a call that was made."""

    name: str = ""
    arguments: str | dict[str, Any] | None = ""


class CallSpec(Wire):
    """A call that the assistant made earlier."""

    id: str | None = None
    type: str = "function"
    function: CalledFunction | None = None


class ChatMessage(Wire):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallSpec] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None


class StreamOptions(Wire):
    """What a stream carries besides the answer."""

    include_usage: bool | None = None


class ReasoningOptions(Wire):
    """How much the model may reason, and whether that is shown."""

    effort: str | None = None
    max_tokens: int | None = Field(None, ge=0)
    exclude: bool | None = None


class ChatRequest(Wire):
    """Body of `POST /v1/chat/completions`. Fields that are not known are skipped and reported."""

    model: str | None = None
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(1, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    seed: int | None = None
    stop: str | list[str] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    reasoning: ReasoningOptions | None = None
    include_reasoning: bool | None = None
    moderation: ModerationConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    functions: list[FunctionSpec] | None = None
    function_call: str | dict[str, Any] | None = None


class TokenLogprob(BaseModel):
    """A token, how likely the model thought it, and what else it thought likely."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[dict[str, Any]] = []


class ChoiceLogprobs(BaseModel):
    """Logprobs of the answer's tokens."""

    content: list[TokenLogprob] | None = None
    refusal: list[TokenLogprob] | None = None


class FunctionCall(BaseModel):
    """Name and JSON arguments."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call for the client to make."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class AnswerMessage(BaseModel):
    """What the assistant said."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(BaseModel):
    """One of the answers."""

    index: int
    message: AnswerMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"]
    seed: int


class PromptTokens(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int


class CompletionTokens(BaseModel):
    """Of the answer's tokens."""

    reasoning_tokens: int


class UsageBody(BaseModel):
    """Tokens that were read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokens
    completion_tokens_details: CompletionTokens


class ModerationVerdicts(BaseModel):
    """Verdicts on one side of an answer."""

    type: Literal["moderation_results"] = "moderation_results"
    model: str
    results: list[Verdict]


class ModerationBlock(BaseModel):
    """Verdicts on what the user said last and on each choice, where `moderation` was asked for."""

    input: ModerationVerdicts
    output: ModerationVerdicts


class ChatCompletion(BaseModel):
    """Answer of `POST /v1/chat/completions` without `stream`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: UsageBody
    moderation: ModerationBlock | None = None
    warnings: list[str] | None = None
