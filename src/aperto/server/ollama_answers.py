"""One answer's events as the lines of Ollama's stream."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable
from typing import Any, Protocol

from aperto.chat import ChatEvent, Done, PrefillProgress
from aperto.harmony import MessageEnd, TextDelta
from aperto.server.choices import ChoiceReader
from aperto.server.wire_ollama import Json

_NS = 1_000_000_000


def timestamp(seconds: float) -> str:
    """Time since 1970 as RFC 3339 in UTC."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat().replace("+00:00", "Z")


class Lines(Protocol):
    """What a reader of events gives: the fields that each adds to a line, and how it ended."""

    warnings: list[str]

    @property
    def done(self) -> Done | None:
        """How it ended, once it has."""

    def feed(self, event: ChatEvent) -> Json | None:
        """Fields of the line that an event leads to."""

    def whole(self) -> Json:
        """Fields of the whole answer."""


class ChatLines:
    """Reads a chat; puts a call on the line when its arguments are complete.

    Args:
        choice: reads the events as pieces of OpenAI's message.
        place: puts text, thinking and calls where the request's door has them.
    """

    def __init__(self, choice: ChoiceReader, place: Callable[[Json], Json]) -> None:
        self._choice = choice
        self._place = place
        self._calls: list[Json] = []
        self.warnings: list[str] = []
        """What was not done quite as asked."""

    @property
    def done(self) -> Done | None:
        """How it ended, once it has."""
        return self._choice.done

    def feed(self, event: ChatEvent) -> Json | None:
        """Fields of the line that an event leads to, if any."""
        piece = self._choice.feed(event)
        if isinstance(event, MessageEnd) and event.message.recipient is not None:
            call = self._call()
            return None if call is None else self._place({"content": "", "tool_calls": [call]})
        if isinstance(event, Done):
            self.warnings += self._choice.warnings
        if piece is None or "tool_calls" in piece.delta:
            return None
        return self._place(_fields(piece.delta)) | _logprobs(piece.logprobs)

    def whole(self) -> Json:
        """Fields of the whole answer."""
        message = self._choice.message()
        fields = self._place(
            _fields({"content": message["content"] or "", "reasoning": message["reasoning"]})
            | ({"tool_calls": self._calls} if self._calls else {})
        )
        return fields | _logprobs(self._choice.token_logprobs or None)

    def _call(self) -> Json | None:
        """The call that has just ended, in Ollama's shape."""
        made = self._choice.calls[-1]
        function = made["function"]
        try:
            arguments = json.loads(function["arguments"] or "{}")
        except json.JSONDecodeError:
            arguments = None
        if not isinstance(arguments, dict):
            self.warnings.append(f"the arguments of {function['name']} are incomplete; left out")
            return None
        index = len(self._calls)
        shaped = {"index": index, "name": function["name"], "arguments": arguments}
        self._calls.append({"id": made["id"], "function": shaped})
        return self._calls[-1]


class RawLines:
    """Reads the continuation of a raw prompt."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self.done: Done | None = None
        """How it ended, once it has."""
        self.warnings: list[str] = []
        """What was not done quite as asked."""

    def feed(self, event: ChatEvent) -> Json | None:
        """Fields of the line that an event leads to, if any."""
        if isinstance(event, TextDelta):
            self._texts.append(event.text)
            return {"response": event.text}
        if isinstance(event, Done):
            self.done = event
        return {"response": ""} if isinstance(event, PrefillProgress) else None

    def whole(self) -> Json:
        """Fields of the whole answer."""
        return {"response": "".join(self._texts)}


class AnswerWriter:
    """Writes an answer's lines, or all of it at once.

    Args:
        name: the model's name.
        lines: reads the events.
        empty: the fields of a line that adds nothing.
        warnings: what is not done as asked, known from the start.
        began: time.perf_counter() when the request came.
    """

    def __init__(
        self, name: str, lines: Lines, empty: Json, warnings: list[str], began: float
    ) -> None:
        self._name = name
        self._lines = lines
        self._empty = empty
        self._warnings = warnings
        self._began = began
        self._loaded = time.perf_counter()

    def feed(self, event: ChatEvent) -> Json | None:
        """The line that an event leads to, if any."""
        fields = self._lines.feed(event)
        if self._lines.done is event:
            return self._head() | self._empty | self._end()
        if fields is None:
            return None
        line = self._head() | fields | {"done": False}
        if isinstance(event, PrefillProgress):
            progress = {"done_tokens": event.done_tokens, "total_tokens": event.total_tokens}
            line["prefill"] = progress
        return line

    def whole(self) -> Json:
        """The body of an answer that is not streamed."""
        return self._head() | self._lines.whole() | self._end()

    def _head(self) -> Json:
        return {"model": self._name, "created_at": timestamp(time.time())}

    def _end(self) -> Json:
        done = self._lines.done
        assert done is not None
        lines = list(dict.fromkeys((*self._warnings, *self._lines.warnings)))
        total = time.perf_counter() - self._began
        # Time in the queue counts as loading: it is neither reading nor writing.
        load = max(0.0, total - done.timings.prefill_s - done.timings.decode_s)
        return {
            "done": True,
            "done_reason": "length" if done.finish_reason == "length" else "stop",
            "total_duration": _ns(total),
            "load_duration": _ns(load),
            "prompt_eval_count": done.usage.prompt_tokens,
            "prompt_eval_duration": _ns(done.timings.prefill_s),
            "eval_count": done.usage.completion_tokens,
            "eval_duration": _ns(done.timings.decode_s),
            "prompt_cached_count": done.usage.cached_tokens,
            **({"warnings": lines} if lines else {}),
        }


def in_message(fields: Json) -> Json:
    """Where `/api/chat` has what is said."""
    return {"message": {"role": "assistant", "content": "", **fields}}


def in_response(fields: Json) -> Json:
    """Where `/api/generate` has what is said; it knows no calls."""
    thinking = {"thinking": fields["thinking"]} if "thinking" in fields else {}
    return {"response": fields.get("content", ""), **thinking}


def _fields(delta: Json) -> Json:
    fields: Json = {"content": delta.get("content") or ""}
    if delta.get("reasoning"):
        fields["thinking"] = delta["reasoning"]
    return fields


def _logprobs(entries: list[Json] | None) -> dict[str, Any]:
    return {} if entries is None else {"logprobs": entries}


def _ns(seconds: float) -> int:
    return round(seconds * _NS)
