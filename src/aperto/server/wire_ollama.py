"""Bodies of Ollama's `/api/*`: what is read of them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]


class _Wire(BaseModel):
    """A request's object: unknown fields are kept, so that they can be reported."""

    model_config = ConfigDict(extra="allow")


class OllamaOptions(_Wire):
    """How tokens are drawn, and how many."""

    num_predict: int | None = None
    num_ctx: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class OllamaFunction(_Wire):
    """Name and arguments of a call that was made."""

    name: str = ""
    arguments: Json | str | None = None


class OllamaCall(_Wire):
    """A call that the assistant made earlier."""

    id: str | None = None
    function: OllamaFunction = Field(default_factory=OllamaFunction)


class OllamaMessage(_Wire):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[OllamaCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaRequest(_Wire):
    """What `/api/chat` and `/api/generate` have in common."""

    model: str = Field(min_length=1)
    stream: bool | None = True
    format: str | Json | None = None
    options: OllamaOptions | None = None
    think: bool | str | None = None
    keep_alive: float | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)


class OllamaChatRequest(OllamaRequest):
    """Body of `POST /api/chat`; without messages the model is only loaded or unloaded."""

    messages: list[OllamaMessage] = Field(default_factory=list)
    tools: list[Json] | None = None


class GenerateRequest(OllamaRequest):
    """Body of `POST /api/generate`; without a prompt the model is only loaded or unloaded."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: list[Any] | None = None


class NameRequest(_Wire):
    """Body of `POST /api/show` and `POST /api/pull`; older clients say `name`."""

    model: str | None = None
    name: str | None = None
    stream: bool | None = True

    @property
    def wanted(self) -> str:
        """The model that is meant."""
        return self.model or self.name or ""


class OllamaError(BaseModel):
    """Body of every failed request."""

    error: str
