"""Bodies of `/v1/completions`, `/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from aperto.server.wire_chat import ChatMessage, StreamOptions, ToolSpec, UsageBody, Wire

TokenIds = list[int]


class CompletionRequest(Wire):
    """Body of `POST /v1/completions`. Fields that are not known are skipped and reported."""

    model: str | None = None
    prompt: str | TokenIds | list[str] | list[TokenIds] | None = None
    max_tokens: int | None = Field(16, ge=0)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    n: int | None = Field(1, ge=1)
    best_of: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    echo: bool | None = False
    logprobs: int | None = Field(None, ge=0, le=20)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = False


class LegacyLogprobs(BaseModel):
    """Logprobs token by token; the first token of a prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: LegacyLogprobs | None = None
    finish_reason: Literal["stop", "length"]
    seed: int


class Completion(BaseModel):
    """Answer of `POST /v1/completions` without `stream`."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: UsageBody
    warnings: list[str] | None = None


class TokenizeRequest(Wire):
    """Body of `POST /tokenize`: a text, or a conversation as it is rendered for the model."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    tools: list[ToolSpec] | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool | None = False


class Tokenized(BaseModel):
    """Ids of a text."""

    count: int
    max_model_len: int
    tokens: TokenIds
    token_strs: list[str] | None = None


class DetokenizeRequest(Wire):
    """Body of `POST /detokenize`."""

    model: str | None = None
    tokens: TokenIds


class Detokenized(BaseModel):
    """Text of ids."""

    prompt: str
