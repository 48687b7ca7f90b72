"""Conversation in, events out: where tokens, messages and the engine meet.

Every front end talks to the model through `Chat`: it renders a conversation, submits it, reads
what comes back, and keeps stop strings and reasoning out of the answer. `complete` continues raw
text beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterable, Iterator
from collections.abc import Sequence as Seq
from typing import Literal, TypeAlias

from aperto.engine import Engine, Request, SamplingParams, Timings, Token, TokenStream, Usage
from aperto.errors import ConfigError
from aperto.harmony import (
    ANALYSIS,
    FINAL,
    Conversation,
    DeveloperContent,
    Effort,
    Event,
    Message,
    MessageEnd,
    MessageStart,
    Role,
    StreamParser,
    SystemContent,
    TextDelta,
    TurnEnd,
    render,
    stop_ids,
)
from aperto.tokenizer import Tokenizer, Utf8Stream

_END_OF_TEXT = "<|endoftext|>"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How one answer is generated. Raises ConfigError on values out of range."""

    effort: Effort | None = None
    """Reasoning effort; None leaves what the conversation's system message says."""
    system: str = ""
    """Instructions put before those of the conversation's developer message."""
    max_tokens: int | None = None
    """Most tokens to draw, reasoning included; None means up to the end of the context."""
    sampling: SamplingParams = dataclasses.field(default_factory=SamplingParams)
    """How to draw them."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer where they begin; looked for in the final channel only."""
    logprobs: bool = False
    """Whether a TokenDrawn event precedes what each token adds."""
    num_top_logprobs: int = 0
    """Most likely tokens reported with each token, 0 to 20."""

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) and text for text in self.stop):
            raise ConfigError(f"stop is {self.stop!r}; expected strings that are not empty")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}; expected 1 or more, or None")


@dataclasses.dataclass(frozen=True, slots=True)
class TokenDrawn:
    """A token of the answer, before the events that it leads to."""

    token: Token
    """Its id and logprobs."""
    channel: str | None
    """Channel of the message it belongs to; None inside a header and in raw text."""


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """The last event of an answer."""

    finish_reason: Literal["stop", "call", "length", "cancelled"]
    """Answered (or met a stop string), waits for a tool, cut at a limit, or closed."""
    stop: str | None
    """The stop string that was met."""
    seed: int
    """Seed that repeats this answer."""
    usage: Usage
    """Tokens of prompt and answer."""
    reasoning_tokens: int
    """Tokens of the answer in the analysis channel."""
    timings: Timings
    """Where the time went."""


ChatEvent: TypeAlias = Event | TokenDrawn | Done


class Chat:
    """Answers conversations with one engine and the tokenizer of its model."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self._stop_ids = frozenset(stop_ids(tokenizer)) | _ids(tokenizer, _END_OF_TEXT)

    def stream(
        self, conversation: Conversation, options: ChatOptions | None = None
    ) -> Iterator[ChatEvent]:
        """Answer a conversation; the request is under way when this returns.

        Closing the iterator cancels it. Raises TemplateError, ConfigError, ContextLengthError,
        QueueFullError and EngineClosedError; iterating raises EngineError where it fails later.
        """
        return _events(*self._answer(conversation, options or ChatOptions()))

    def astream(
        self, conversation: Conversation, options: ChatOptions | None = None
    ) -> AsyncIterator[ChatEvent]:
        """Like `stream`, for `async for`."""
        return _events_async(*self._answer(conversation, options or ChatOptions()))

    def complete(
        self, prompt: str | Seq[int], options: ChatOptions | None = None
    ) -> Iterator[ChatEvent]:
        """Continue raw text or ids, without messages or channels: text events and Done.

        Special tokens that are drawn do not show up in the text. Raises what `stream` raises.
        """
        return _events(*self._continue(prompt, options or ChatOptions()))

    def acomplete(
        self, prompt: str | Seq[int], options: ChatOptions | None = None
    ) -> AsyncIterator[ChatEvent]:
        """Like `complete`, for `async for`."""
        return _events_async(*self._continue(prompt, options or ChatOptions()))

    def prompt_ids(
        self, conversation: Conversation, options: ChatOptions | None = None
    ) -> list[int]:
        """The ids that `stream` would submit."""
        prepared = _prepared(conversation, options or ChatOptions())
        return render(prepared, self.tokenizer, history="ended")

    def _answer(
        self, conversation: Conversation, options: ChatOptions
    ) -> tuple[TokenStream, _Turn]:
        stream = self._submit(self.prompt_ids(conversation, options), options)
        return stream, _Turn(self.tokenizer, options)

    def _continue(self, prompt: str | Seq[int], options: ChatOptions) -> tuple[TokenStream, _Text]:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return self._submit(ids, options), _Text(self.tokenizer, options)

    def _submit(self, prompt: Seq[int], options: ChatOptions) -> TokenStream:
        max_tokens = options.max_tokens
        if max_tokens is None:
            max_tokens = max(1, self.engine.limit_tokens - len(prompt))
        return self.engine.submit(
            Request(
                prompt=prompt,
                max_tokens=max_tokens,
                sampling=options.sampling,
                stop_ids=self._stop_ids,
                num_top_logprobs=options.num_top_logprobs,
            )
        )


def _ids(tokenizer: Tokenizer, name: str) -> frozenset[int]:
    return frozenset(() if name not in tokenizer.special else (tokenizer.special[name],))


def _prepared(conversation: Conversation, options: ChatOptions) -> Conversation:
    """The conversation with the options' effort and instructions in their messages."""
    messages = list(conversation)
    if not messages or messages[0].role is not Role.SYSTEM:
        messages.insert(0, Message(Role.SYSTEM, SystemContent()))
    head = messages[0]
    if options.effort is not None and isinstance(head.content, SystemContent):
        content = dataclasses.replace(head.content, effort=Effort(options.effort))
        messages[0] = dataclasses.replace(head, content=content)
    if options.system:
        second = messages[1] if len(messages) > 1 else None
        if second is not None and isinstance(second.content, DeveloperContent):
            both = "\n\n".join(filter(None, (options.system, second.content.instructions)))
            content_ = dataclasses.replace(second.content, instructions=both)
            messages[1] = dataclasses.replace(second, content=content_)
        else:
            messages.insert(1, Message(Role.DEVELOPER, DeveloperContent(options.system)))
    return Conversation(tuple(messages))


class StopStrings:
    """Finds the first of some strings in text that arrives in pieces, letting none of it out."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None
        """The string that was met."""

    def feed(self, text: str) -> str:
        """The text that is certainly no part of a stop string."""
        if not self._stops:
            return text
        text = self._held + text
        hits = [(at, -len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if hits:
            at, _, self.found = min(hits)
            self._held = ""
            return text[:at]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text that was held back, now that nothing follows."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)


class _Turn:
    """Reads one answer: tokens in, events out."""

    def __init__(self, tokenizer: Tokenizer, options: ChatOptions) -> None:
        self._parser = StreamParser(tokenizer)
        self._stops = StopStrings(options.stop)
        self._logprobs = options.logprobs
        self._channel: str | None = None
        self._final: list[str] = []
        self._reasoning_tokens = 0
        self._is_call = False
        self.is_over = False
        """Whether no more tokens are wanted: a stop string, or words put into others' mouths."""

    def feed(self, token: Token) -> list[ChatEvent]:
        """The events of one token."""
        events: list[ChatEvent] = [TokenDrawn(token, self._channel)] if self._logprobs else []
        self._reasoning_tokens += self._channel == ANALYSIS
        for event in self._parser.feed(token.id):
            events += self._filter(event)
        return events

    def close(self, stream: TokenStream) -> list[ChatEvent]:
        """The events after the last token."""
        events: list[ChatEvent] = []
        if not self.is_over:
            for event in self._parser.close():
                events += self._filter(event)
        done = _done(stream, self, self._stops.found, self._reasoning_tokens, self._is_call)
        return [*events, done]

    def _filter(self, event: Event) -> list[ChatEvent]:
        if self.is_over:
            return []
        if isinstance(event, TextDelta) and event.channel == FINAL:
            return self._final_text(event.text)
        if isinstance(event, MessageStart):
            if event.role is not Role.ASSISTANT:
                self.is_over = True
                return [TurnEnd("end_of_stream")]
            self._channel = event.channel
        elif isinstance(event, MessageEnd):
            held = self._release()
            self._channel = None
            return [*held, event]
        elif isinstance(event, TurnEnd):
            self._is_call = event.reason == "call"
        return [event]

    def _final_text(self, text: str) -> list[ChatEvent]:
        text = self._stops.feed(text)
        self._final.append(text)
        events: list[ChatEvent] = [TextDelta(FINAL, text)] if text else []
        if self._stops.found is None:
            return events
        self.is_over = True
        message = Message(Role.ASSISTANT, "".join(self._final), channel=FINAL)
        return [*events, MessageEnd(message), TurnEnd("return")]

    def _release(self) -> list[ChatEvent]:
        held = self._stops.flush()
        self._final.clear()
        return [TextDelta(FINAL, held)] if held else []


class _Text:
    """Reads a raw continuation: tokens in, text events out."""

    def __init__(self, tokenizer: Tokenizer, options: ChatOptions) -> None:
        self._tokenizer = tokenizer
        self._utf8 = Utf8Stream()
        self._stops = StopStrings(options.stop)
        self._logprobs = options.logprobs
        self.is_over = False
        """Whether a stop string was met: no more tokens are wanted."""

    def feed(self, token: Token) -> list[ChatEvent]:
        """The events of one token."""
        events: list[ChatEvent] = [TokenDrawn(token, None)] if self._logprobs else []
        piece = self._tokenizer.piece(token.id)
        if piece is None or self._tokenizer.is_special(token.id):
            return events
        text = self._stops.feed(self._utf8.feed(piece))
        self.is_over = self._stops.found is not None
        return [*events, TextDelta(None, text)] if text else events

    def close(self, stream: TokenStream) -> list[ChatEvent]:
        """The events after the last token."""
        text = "" if self.is_over else self._stops.feed(self._utf8.close()) + self._stops.flush()
        done = _done(stream, self, self._stops.found, 0, False)
        return [TextDelta(None, text), done] if text else [done]


def _done(
    stream: TokenStream,
    reader: _Turn | _Text,
    stop: str | None,
    reasoning_tokens: int,
    is_call: bool,
) -> Done:
    reason: Literal["stop", "call", "length", "cancelled"]
    if reader.is_over:
        reason = "stop"
    elif is_call:
        reason = "call"
    elif stream.finish_reason == "length":
        reason = "length"
    else:
        reason = "cancelled" if stream.finish_reason == "cancelled" else "stop"
    return Done(reason, stop, stream.seed, stream.usage, reasoning_tokens, stream.timings)


def _events(stream: TokenStream, reader: _Turn | _Text) -> Iterator[ChatEvent]:
    with stream:
        for token in stream:
            yield from reader.feed(token)
            if reader.is_over:
                break
        stream.close()
        yield from reader.close(stream)


async def _events_async(stream: TokenStream, reader: _Turn | _Text) -> AsyncIterator[ChatEvent]:
    with stream:
        async for token in stream:
            for event in reader.feed(token):
                yield event
            if reader.is_over:
                break
        stream.close()
        for event in reader.close(stream):
            yield event
