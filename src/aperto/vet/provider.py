"""Inspect's model provider `aperto/…`: the engine in this process, with channels and true ends.

`aperto/nano`, `aperto/openai/gpt-oss-20b`, `aperto/PATH`, and with an adapter
`aperto/nano:desk=FOLDER`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np
from inspect_ai.model import (
    ChatMessage,
    GenerateConfig,
    ModelAPI,
    ModelCall,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

import aperto
from aperto.config import EngineConfig, Precision
from aperto.engine import SamplingParams
from aperto.errors import ContextLengthError, QueueFullError, UsageError
from aperto.local_model import Answer, LocalModel, acollect, make_options
from aperto.tokenizer import Tokenizer
from aperto.vet.turns import choice_of, conversation_of, rules_of

WIDTH = EngineConfig().max_sequences
"""Answers drawn at once by default."""
_EFFORTS = {"minimal": "low", "xhigh": "high", "max": "high"}
_ADAPTED = re.compile(r"(?P<name>.+?):(?P<variant>[\w-]+)=(?P<folder>.+)")


@modelapi(name="aperto")
def aperto_provider() -> type[ModelAPI]:
    """The provider, for Inspect's table of them."""
    return ApertoAPI


@dataclasses.dataclass(frozen=True, slots=True)
class Opened:
    """What is loaded for a model's name."""

    name: str
    adapter: Path | None = None
    precision: Precision = "q8"
    threads: int | None = None
    context: int | None = None
    width: int = WIDTH

    @classmethod
    def named(cls, name: str, **arguments: Any) -> Opened:
        """A name as `NAME` or `NAME:VARIANT=FOLDER`, and the arguments of a model.

        Raises UsageError for arguments there are not.
        """
        known = {field.name for field in dataclasses.fields(cls)} - {"name"}
        if unknown := sorted(set(arguments) - known):
            there = ", ".join(sorted(known))
            raise UsageError(f"unknown model arguments {', '.join(unknown)}; there are {there}")
        if found := _ADAPTED.fullmatch(name):
            name, arguments = found["name"], arguments | {"adapter": found["folder"]}
        if arguments.get("adapter") is not None:
            arguments["adapter"] = Path(arguments["adapter"])
        return cls(name, **arguments)

    def load(self) -> LocalModel:
        """Load it."""
        return aperto.load(
            self.name,
            precision=self.precision,
            threads=self.threads,
            context=self.context,
            config=EngineConfig(max_sequences=self.width, max_batch_tokens=max(512, self.width)),
            adapters=None if self.adapter is None else {"adapter": self.adapter},
        )


_LOCK = threading.Lock()
_LOADED: dict[Opened, LocalModel] = {}


def model_of(wanted: Opened) -> LocalModel:
    """The loaded model, one for all who ask; loads it where it is not there."""
    with _LOCK:
        if wanted not in _LOADED:
            _LOADED[wanted] = wanted.load()
        model = _LOADED[wanted]
    return model if wanted.adapter is None else model.variant("adapter")


def close_models() -> None:
    """Close what `model_of` loaded."""
    with _LOCK:
        for model in _LOADED.values():
            model.close()
        _LOADED.clear()


class ApertoAPI(ModelAPI):
    """A model on this machine. Arguments: adapter, precision, threads, context, width."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        self.opened = Opened.named(model_name, **arguments)

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> tuple[ModelOutput | Exception, ModelCall]:
        """Answer; the call that is logged holds the ids of every token."""
        model = await anyio.to_thread.run_sync(model_of, self.opened)
        return await answer(model, self.model_name, input, tools, tool_choice, config)

    async def count_text_tokens(self, text: str) -> int:
        """Tokens of a text, exactly."""
        return len(await self.tokenize(text))

    async def tokenize(self, text: str) -> list[int]:
        """Ids of a text."""
        model = await anyio.to_thread.run_sync(model_of, self.opened)
        return model.tokenizer.encode(text)

    def max_connections(self) -> int:
        """As many as the engine draws at once."""
        return self.opened.width

    def connection_key(self) -> str:
        """One queue for one engine."""
        return str(self.opened)

    def should_retry(self, ex: Exception) -> bool:
        """Whether the engine was only full."""
        return isinstance(ex, QueueFullError)


async def answer(
    model: LocalModel,
    name: str,
    messages: Sequence[ChatMessage],
    tools: Sequence[ToolInfo],
    choice: ToolChoice,
    config: GenerateConfig,
) -> tuple[ModelOutput, ModelCall]:
    """One answer of a loaded model, and the record that it can be given again from.

    Where no seed is asked for one is drawn; it is logged either way. A prompt that the context
    does not hold is an empty answer with the stop reason `model_length`.
    Raises UsageError for settings that the engine has not.
    """
    if config.num_choices not in (None, 1):
        raise UsageError(f"num_choices is {config.num_choices}; expected 1: ask for epochs")
    tools = () if choice == "none" else tools
    conversation = conversation_of(messages, tools)
    asked = config.reasoning_effort or "medium"
    effort = _EFFORTS.get(asked, asked)
    options: dict[str, Any] = {
        "effort": effort,
        "rules": rules_of(
            tools,
            choice,
            reasoning=effort != "none",
            parallel=config.parallel_tool_calls is not False,
        ),
        "sampling": _sampling(config),
        "stop": tuple(config.stop_seqs or ()),
        "logprobs": True,
        "num_top_logprobs": config.top_logprobs or 0,
        "reasoning_tokens": config.reasoning_tokens,
    }
    prompt = model.conversations.prompt_ids(conversation, make_options(**options))
    room = model.engine.limit_tokens - len(prompt)
    wanted = config.max_tokens or max(1, room)
    record = {
        "prompt_sha256": ids_hash(prompt),
        "prompt_tokens": len(prompt),
        "effort": effort,
        "max_tokens": min(wanted, max(1, room)),
        "sampling": {
            field.name: getattr(options["sampling"], field.name)
            for field in dataclasses.fields(SamplingParams)
        },
    }
    made = make_options(**options, max_tokens=record["max_tokens"])
    try:
        reply = await acollect(model.conversations.astream(conversation, made))
    except ContextLengthError as error:
        return _too_long(name, str(error)), ModelCall.create(record, {"error": str(error)})
    capped = config.max_tokens is None or wanted > room
    return _output(name, reply, record, model.tokenizer, capped=capped, config=config)


def answer_again(
    model: LocalModel,
    messages: Sequence[ChatMessage],
    tools: Sequence[ToolInfo],
    choice: ToolChoice,
    config: GenerateConfig,
) -> ModelCall:
    """What `answer` would log now; blocks."""
    return asyncio.run(answer(model, model.name, messages, tools, choice, config))[1]


def ids_hash(ids: Sequence[int]) -> str:
    """SHA-256 of token ids as little-endian int32; hex."""
    return hashlib.sha256(np.asarray(ids, "<i4").tobytes()).hexdigest()


def _sampling(config: GenerateConfig) -> SamplingParams:
    asked: dict[str, Any] = {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "presence_penalty": config.presence_penalty,
        "frequency_penalty": config.frequency_penalty,
        "logit_bias": config.logit_bias,
        "seed": config.seed,
    }
    return SamplingParams(**{key: value for key, value in asked.items() if value is not None})


def _output(
    name: str,
    reply: Answer,
    record: dict[str, Any],
    tokenizer: Tokenizer,
    *,
    capped: bool,
    config: GenerateConfig,
) -> tuple[ModelOutput, ModelCall]:
    ids = [one.token.id for one in reply.logprobs]
    stream, usage = ids_hash(ids), reply.usage
    record["sampling"]["seed"] = reply.seed
    choice = choice_of(
        reply,
        tokenizer,
        name=name,
        call_id=f"call_{stream[:12]}",
        capped=capped,
        logprobs=bool(config.logprobs),
    )
    output = ModelOutput(
        model=name,
        choices=[choice],
        usage=ModelUsage(
            input_tokens=usage.prompt_tokens - usage.cached_tokens,
            input_tokens_cache_read=usage.cached_tokens,
            output_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            reasoning_tokens=reply.done.reasoning_tokens,
        ),
        metadata={
            "repairs": len(reply.repairs),
            "repair_kinds": sorted({one.kind.value for one in reply.repairs}),
            "seed": reply.seed,
            "prompt_sha256": record["prompt_sha256"],
            "tokens_sha256": stream,
        },
    )
    told = {"token_ids": ids, "tokens_sha256": stream, "finish_reason": reply.finish_reason}
    return output, ModelCall.create(record, told)


def _too_long(name: str, why: str) -> ModelOutput:
    return ModelOutput.from_content(name, "", stop_reason="model_length", error=why)
