"""One answer as it is read: tokens in, events out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Literal, TypeAlias

from aperto.engine import Timings, Token, TokenStream, Usage
from aperto.harmony import (
    ANALYSIS,
    FINAL,
    Event,
    Message,
    MessageEnd,
    MessageStart,
    Role,
    StreamParser,
    TextDelta,
    TurnEnd,
)
from aperto.tokenizer import Tokenizer, Utf8Stream


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


@dataclasses.dataclass(frozen=True, slots=True)
class PrefillProgress:
    """Nothing is drawn yet: the prompt waits or is being read."""

    done_tokens: int
    """Tokens of the prompt that are computed or came from the cache."""
    total_tokens: int
    """Tokens of the prompt."""


@dataclasses.dataclass(frozen=True, slots=True)
class ToolStart:
    """A tool begins to work on a call."""

    call: Message
    """The model's call."""


@dataclasses.dataclass(frozen=True, slots=True)
class ToolEnd:
    """A tool has answered; the model goes on after it."""

    call: Message
    """The model's call."""
    results: tuple[Message, ...]
    """What the tool said, as it was added to the conversation."""


@dataclasses.dataclass(frozen=True, slots=True)
class Warning:
    """Something was not done quite as asked, such as a part of a schema that is not enforced."""

    text: str
    """One line for the caller."""


ChatEvent: TypeAlias = Event | TokenDrawn | PrefillProgress | ToolStart | ToolEnd | Warning | Done
"""What an answer consists of; Done comes last and once."""


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


class TurnReader:
    """Reads one answer: tokens in, events out."""

    def __init__(self, tokenizer: Tokenizer, stop: Iterable[str], logprobs: bool) -> None:
        self._parser = StreamParser(tokenizer)
        self._stops = StopStrings(stop)
        self._logprobs = logprobs
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


class TextReader:
    """Reads a raw continuation: tokens in, text events out."""

    def __init__(self, tokenizer: Tokenizer, stop: Iterable[str], logprobs: bool) -> None:
        self._tokenizer = tokenizer
        self._utf8 = Utf8Stream()
        self._stops = StopStrings(stop)
        self._logprobs = logprobs
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
    reader: TurnReader | TextReader,
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
