"""A server whose model replays harmony text, and the checks that every response must pass."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openresponses_types as spec
import pydantic
from openai.types.responses import Response, ResponseStreamEvent
from tests.fakes import Script

from aperto.chat import ChatEvent, ChatOptions, PrefillProgress
from aperto.engine import Timings, Token, Usage
from aperto.errors import ContextLengthError
from aperto.harmony import Conversation, render
from aperto.server.pool import ModelInfo, ModelPool
from aperto.server.services import Services
from aperto.server.settings import ServerSettings
from aperto.tokenizer import Tokenizer
from aperto.turn import TurnReader

LIMIT_TOKENS = 2000
THOUGHT = "<|channel|>analysis<|message|>17 * 23 is 391.<|end|><|start|>assistant"
ANSWER = THOUGHT + "<|channel|>final<|message|>It is 391.<|return|>"
CALL = (
    THOUGHT + "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
    '{"city": "Oslo"}<|call|>'
)
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": False,
}


class ScriptedChat:
    """Answers with the texts (or fails with the errors) of `script`, one a request."""

    def __init__(
        self, *script: str | Exception, delay_s: float = 0.0, limit_tokens: int = LIMIT_TOKENS
    ) -> None:
        self.script = list(script)
        self.limit_tokens = limit_tokens
        self.delay_s = delay_s
        self.progress: Sequence[PrefillProgress] = ()
        self.asked: list[tuple[Conversation, ChatOptions]] = []
        self.num_open = 0
        self.tokenizer = Tokenizer.bundled()

    def prompt_ids(self, conversation: Conversation, options: ChatOptions) -> list[int]:
        return render(conversation, self.tokenizer, history="ended")

    def prompt_text(self, index: int = -1) -> str:
        """What the model was shown; special tokens stand for themselves."""
        names = {i: name for name, i in self.tokenizer.special.items()}
        ids = self.prompt_ids(*self.asked[index])
        return "".join(names.get(i) or self.tokenizer.decode([i]) for i in ids)

    def astream(self, conversation: Conversation, options: ChatOptions) -> AsyncIterator[ChatEvent]:
        self.asked.append((conversation, options))
        num_prompt = len(self.prompt_ids(conversation, options))
        limit = self.limit_tokens
        if num_prompt >= limit:
            raise ContextLengthError(f"the prompt has {num_prompt} tokens; {limit} fit")
        answer = self.script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return self._events(Script.ids(self.tokenizer, answer), options, num_prompt)

    async def _events(
        self, ids: list[int], options: ChatOptions, num_prompt: int
    ) -> AsyncIterator[ChatEvent]:
        self.num_open += 1
        reader = TurnReader(self.tokenizer, options.stop, options.logprobs)
        try:
            for progress in self.progress:
                yield progress
            drawn = 0
            for token_id in ids[: options.max_tokens]:
                await asyncio.sleep(self.delay_s)
                drawn += 1
                top = ((token_id, -0.25), (0, -2.0))[: options.num_top_logprobs]
                for event in reader.feed(Token(token_id, -0.25, top)):
                    yield event
                if reader.is_over:
                    break
            for event in reader.close(_ended(ids, drawn, options, num_prompt)):
                yield event
        finally:
            self.num_open -= 1


def _ended(ids: list[int], drawn: int, options: ChatOptions, num_prompt: int) -> Any:
    """What a token stream knows once it has ended."""
    return SimpleNamespace(
        finish_reason="length" if drawn < len(ids) else "stop",
        seed=options.sampling.seed or 0,
        usage=Usage(prompt_tokens=num_prompt, cached_tokens=8, completion_tokens=drawn),
        timings=Timings(queued_s=0.0, prefill_s=0.1, decode_s=1.0, decode_tokens=drawn),
    )


def scripted_services(chat: ScriptedChat, state_dir: Path, **settings: Any) -> Services:
    """The server's parts around a scripted model called "scripted"."""
    given = ServerSettings(models=("scripted",), state_dir=state_dir, **settings)
    model = SimpleNamespace(
        conversations=chat,
        tokenizer=chat.tokenizer,
        engine=SimpleNamespace(limit_tokens=chat.limit_tokens),
        close=lambda: None,
    )
    info = ModelInfo("scripted", 0, chat.limit_tokens, 0, "scripted")
    pool = ModelPool(given, loader=lambda source: model, describe=lambda name, source: info)
    return Services.create(given, pool)


_OPENAI_EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)
_SPEC_EVENTS = {
    next(iter(model.model_fields["type"].annotation)).value: model
    for name, model in vars(spec.types).items()
    if name.endswith("StreamingEvent") and name != "ErrorStreamingEvent"
}
# Open Responses leaves out OpenAI's word "text" here; clients of today know OpenAI's names.
_SPEC_NAMES = {
    "response.reasoning_text.delta": "response.reasoning.delta",
    "response.reasoning_text.done": "response.reasoning.done",
}
_BEYOND_SPEC = ("response.custom_tool_call_input", "response.mcp_call")
_BEYOND_SPEC_ITEMS = ("custom_tool_call", "mcp_call")
REQUIRED = set(spec.types.ResponseResource.model_fields) | {"user"}


def check_body(body: dict[str, Any]) -> None:
    """Open Responses' and OpenAI's models take the body, and no required field is missing."""
    assert set(body) >= REQUIRED
    kept = [item for item in body["output"] if item["type"] not in _BEYOND_SPEC_ITEMS]
    tools = [tool for tool in body["tools"] if tool["type"] == "function"]
    # The generated model has no type for schemas but null.
    shape = body["text"]["format"] | {"schema": None}
    text = body["text"] | {"format": shape}
    spec.types.ResponseResource.model_validate(
        body | {"output": kept, "tools": tools, "text": text}
    )
    error = body["error"]
    if error is not None and error["code"] == "context_length_exceeded":
        error = error | {"code": "server_error"}  # what Codex waits for is not in OpenAI's list
    Response.model_validate(body | {"error": error})


def check_events(events: Sequence[dict[str, Any]]) -> None:
    """Numbers advance by one, every event and body fits the models, first and last are right."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created"
    assert events[-1]["type"] in (
        "response.completed",
        "response.incomplete",
        "response.failed",
    )
    for event in events:
        if "response" in event:
            check_body(event["response"])
        if event["type"] != "response.failed":
            _OPENAI_EVENT.validate_python(event)
        _check_spec(event)


def _check_spec(event: dict[str, Any]) -> None:
    if event["type"].startswith(_BEYOND_SPEC) or "response" in event:
        return
    if event.get("item", {}).get("type") in _BEYOND_SPEC_ITEMS:
        return
    if event.get("part", {}).get("type") == "reasoning_text":
        assert set(event["part"]) == {"type", "text"}
    name = _SPEC_NAMES.get(event["type"], event["type"])
    _SPEC_EVENTS[name].model_validate(event | {"type": name})


def sse_events(text: str) -> list[dict[str, Any]]:
    """The events of a body of server-sent events, each named as its type says."""
    blocks = text.strip().split("\n\n")
    assert blocks.pop() == "data: [DONE]"
    events = []
    for block in blocks:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def types(events: Sequence[dict[str, Any]]) -> list[str]:
    """Types of events without their common beginning, deltas in a row once."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [
        name
        for index, name in enumerate(names)
        if not (name.endswith("delta") and index and names[index - 1] == name)
    ]


def item_types(body: dict[str, Any]) -> list[str]:
    return [item["type"] for item in body["output"]]
