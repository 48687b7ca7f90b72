"""A model on this machine, ready to talk to: `aperto.load("nano").chat("Hello")`."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias, overload

from aperto.chat import Chat, ChatEvent, ChatOptions, Done, TokenDrawn
from aperto.config import EngineConfig, Precision, load_settings
from aperto.engine import Engine, SamplingParams, Timings, Usage
from aperto.engine.load import load_model, prefix_owner
from aperto.engine.memory import require_memory
from aperto.engine.variants import read_changes
from aperto.errors import ConfigError
from aperto.formats import open_checkpoint
from aperto.formats.hub import resolve_model
from aperto.formats.packed import Confirm, Progress
from aperto.harmony import (
    ANALYSIS,
    FINAL,
    Conversation,
    Effort,
    Message,
    MessageEnd,
    Repair,
    TextDelta,
    TurnRules,
    from_chat,
)
from aperto.tokenizer import Tokenizer

Prompt: TypeAlias = str | Conversation | Iterable[Mapping[str, Any]]
"""A user's text, a conversation, or messages as {"role": ..., "content": ...}."""


def load(
    name: str | Path = "nano",
    *,
    precision: Precision = "q8",
    threads: int | None = None,
    context: int | None = None,
    config: EngineConfig | None = None,
    progress: Progress | None = None,
    confirm: Confirm | None = None,
    adapters: Mapping[str, str | Path] | None = None,
) -> LocalModel:
    """Load a model and start its engine.

    Args:
        name: "nano", a path to a checkpoint, or a pulled "org/name".
        precision: "q8" (int8 activations) or "exact" (weights as stored, float32).
        threads: threads of the forward pass; None takes one a core.
        context: longest prompt and answer in tokens; None as EngineConfig.context_tokens says.
        config: the engine's other settings.
        progress: called with (bytes packed, bytes in all) while weights are packed.
        confirm: asked before the packed weights are written where disk space is short.
        adapters: adapters' folders and intervention files by the names of the variants.

    Raises ModelNotFoundError, CheckpointError (AdapterError among them), ConfigError,
    MemoryLimitError and DiskSpaceError.
    """
    settings = load_settings()
    config = config or EngineConfig()
    if context is not None:
        config = dataclasses.replace(config, context_tokens=context)
    checkpoint = open_checkpoint(resolve_model(name))
    tokenizer = Tokenizer.from_checkpoint(checkpoint.tokenizer_source())
    require_memory(checkpoint, precision, config)
    changes = {
        name: read_changes(path, checkpoint.config) for name, path in (adapters or {}).items()
    }
    model = load_model(
        checkpoint,
        precision=precision,
        num_threads=threads,
        isa=settings.isa,
        max_batch_tokens=config.max_batch_tokens,
        cache_dir=settings.cache_dir,
        progress=progress,
        confirm=confirm,
    )
    owner = prefix_owner(checkpoint, precision)
    local = LocalModel(str(name), Engine(model, config, owner=owner), tokenizer)
    try:
        for variant, change in changes.items():
            local.engine.add_variant(variant, change)
    except BaseException:
        local.close()
        raise
    return local


class LocalModel:
    """A loaded model. Thread-safe; close it, or use it in a `with` block, to free its memory."""

    def __init__(self, name: str, engine: Engine, tokenizer: Tokenizer) -> None:
        self.name = name
        self.engine = engine
        self.tokenizer = tokenizer
        self.conversations = Chat(engine, tokenizer)
        """What `chat` is built on, for those who want every option and event."""

    def variant(self, name: str) -> LocalModel:
        """The same model with an adapter or intervention of `load`; closing it does nothing.

        Raises ConfigError for a name that is not loaded.
        """
        return LocalModel(f"{self.name}:{name}", self.engine.view(name), self.tokenizer)

    def trace(self, prompt: str | Seq[int], points: Iterable[str]) -> dict[str, Any]:
        """What passes named points of the forward pass while text or ids are computed.

        Points and shapes: see `aperto.engine.hooks`. Raises ConfigError for unknown points.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return self.engine.trace(ids, points)

    @overload
    def chat(self, prompt: Prompt, *, stream: Literal[False] = False, **options: Any) -> Answer: ...

    @overload
    def chat(
        self, prompt: Prompt, *, stream: Literal[True], **options: Any
    ) -> Iterator[ChatEvent]: ...

    def chat(
        self, prompt: Prompt, *, stream: bool = False, **options: Any
    ) -> Answer | Iterator[ChatEvent]:
        """Answer a prompt: the whole Answer, or with `stream` its events as they come.

        Options: those of ChatOptions (effort, system, max_tokens, stop, rules, tools, ...) and of
        SamplingParams (seed, temperature, top_p, ...), by name. The effort "none" answers without
        reasoning.
        Raises ConfigError for others, and what `Chat.stream` raises.
        """
        events = self.conversations.stream(_conversation(prompt), make_options(**options))
        return events if stream else collect(events)

    async def achat(self, prompt: Prompt, **options: Any) -> Answer:
        """Like `chat`, without blocking the event loop."""
        return await acollect(self.astream(prompt, **options))

    def astream(self, prompt: Prompt, **options: Any) -> AsyncIterator[ChatEvent]:
        """Like `chat` with `stream`, for `async for`."""
        return self.conversations.astream(_conversation(prompt), make_options(**options))

    def complete(self, prompt: str | Seq[int], **options: Any) -> Answer:
        """Continue raw text or ids; takes the options of `chat` that have a meaning here."""
        return collect(self.conversations.complete(prompt, make_options(**options)))

    def close(self) -> None:
        """End what is running and stop the engine."""
        self.engine.close()

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


_CHAT_FIELDS = {field.name for field in dataclasses.fields(ChatOptions)}
_SAMPLING_FIELDS = {field.name for field in dataclasses.fields(SamplingParams)}


def make_options(**options: Any) -> ChatOptions:
    """ChatOptions from the fields of ChatOptions and SamplingParams, given flat.

    Raises ConfigError for unknown names and values out of range.
    """
    unknown = sorted(set(options) - _CHAT_FIELDS - _SAMPLING_FIELDS)
    if unknown:
        known = ", ".join(sorted(_CHAT_FIELDS | _SAMPLING_FIELDS))
        raise ConfigError(f"unknown options {', '.join(unknown)}; known ones: {known}")
    drawn = {name: options.pop(name) for name in _SAMPLING_FIELDS & set(options)}
    if drawn:
        base = options.get("sampling", SamplingParams())
        options["sampling"] = dataclasses.replace(base, **drawn)
    if isinstance(options.get("stop"), str):
        options["stop"] = (options["stop"],)
    elif "stop" in options:
        options["stop"] = tuple(options["stop"])
    if options.get("effort") == "none":
        rules = options.get("rules") or TurnRules()
        options["rules"] = dataclasses.replace(rules, reasoning=False)
        options["effort"] = Effort.LOW
    if options.get("effort") is not None and options["effort"] not in tuple(Effort):
        known = ", ".join(("none", *Effort))
        raise ConfigError(f"effort is {options['effort']!r}; expected one of {known}")
    return ChatOptions(**options)


def _conversation(prompt: Prompt) -> Conversation:
    if isinstance(prompt, Conversation):
        return prompt
    return from_chat([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; as a string, its final text."""

    text: str
    """What the model says to the user (or the raw continuation)."""
    reasoning: str
    """What it thought before."""
    messages: tuple[Message, ...]
    """All its messages, ready to be added to the conversation."""
    repairs: tuple[Repair, ...]
    """Slips of format that were mended."""
    logprobs: tuple[TokenDrawn, ...]
    """Its tokens, where logprobs were asked for."""
    done: Done
    """Why it ended, usage and timings."""

    def __str__(self) -> str:
        return self.text

    @property
    def finish_reason(self) -> str:
        """ "stop", "call", "length" or "cancelled"; see Done."""
        return self.done.finish_reason

    @property
    def seed(self) -> int:
        """Seed that repeats this answer."""
        return self.done.seed

    @property
    def usage(self) -> Usage:
        """Tokens of prompt and answer."""
        return self.done.usage

    @property
    def timings(self) -> Timings:
        """Where the time went."""
        return self.done.timings

    @property
    def calls(self) -> tuple[Message, ...]:
        """Calls of tools, in order."""
        return tuple(m for m in self.messages if m.recipient is not None)


def collect(events: Iterable[ChatEvent]) -> Answer:
    """The whole answer of `Chat.stream` or `Chat.complete`."""
    collector = _Collector()
    for event in events:
        collector.add(event)
    return collector.answer()


async def acollect(events: AsyncIterable[ChatEvent]) -> Answer:
    """The whole answer of `Chat.astream` or `Chat.acomplete`."""
    collector = _Collector()
    async for event in events:
        collector.add(event)
    return collector.answer()


class _Collector:
    """Sums up events as they come."""

    def __init__(self) -> None:
        self._texts: dict[str | None, list[str]] = {}
        self._messages: list[Message] = []
        self._repairs: list[Repair] = []
        self._logprobs: list[TokenDrawn] = []
        self._done: Done | None = None

    def add(self, event: ChatEvent) -> None:
        match event:
            case TextDelta():
                self._texts.setdefault(event.channel, []).append(event.text)
            case MessageEnd():
                self._messages.append(event.message)
            case Repair():
                self._repairs.append(event)
            case TokenDrawn():
                self._logprobs.append(event)
            case Done():
                self._done = event

    def answer(self) -> Answer:
        if self._done is None:
            raise ConfigError("the events have no Done; expected those of one whole answer")
        return Answer(
            text=self._text(FINAL) or self._text(None),
            reasoning=self._text(ANALYSIS),
            messages=tuple(self._messages),
            repairs=tuple(self._repairs),
            logprobs=tuple(self._logprobs),
            done=self._done,
        )

    def _text(self, channel: str | None) -> str:
        return "".join(self._texts.get(channel, ()))
