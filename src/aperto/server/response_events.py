"""What a chat says, as events of the Responses API in their order."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from aperto.chat import ChatEvent, Done, PrefillProgress, TokenDrawn, ToolEnd, Warning
from aperto.engine import Token
from aperto.harmony import (
    ANALYSIS,
    COMMENTARY,
    MessageEnd,
    MessageStart,
    Repair,
    TextDelta,
    TurnEnd,
)
from aperto.server.response_items import (
    CallItem,
    CustomCallItem,
    MessageItem,
    OutputItem,
    ReasoningItem,
    Seal,
    ServedCallItem,
)
from aperto.server.response_tools import ToolTable
from aperto.server.wire_responses import Json, usage_body

Piece = Callable[[int], bytes | None]
"""Bytes of a token; None for tokens that are no text."""


class ResponseWriter:
    """Turns the events of one answer into those of one response, and keeps the response.

    Args:
        body: the response object before anything was generated; it is kept up to date.
        table: the request's tools.
        piece: bytes of a token, where logprobs of the answer are to be shown.
        seal: encrypts reasoning, where the client asked to carry it.
        is_reasoning_hidden: whether the text of the reasoning is kept from the client.
        is_served: whether a recipient is a tool that the server runs itself.
    """

    def __init__(
        self,
        body: Json,
        table: ToolTable,
        *,
        piece: Piece | None = None,
        seal: Seal | None = None,
        is_reasoning_hidden: bool = False,
        is_served: Callable[[str], bool] | None = None,
    ) -> None:
        self.body = body
        self.piece = piece
        """Bytes of a token, where logprobs are shown."""
        self._table, self._seal = table, seal
        self._is_hidden, self._is_served = is_reasoning_hidden, is_served
        self.whole: list[Json] = []
        """The output items with all their reasoning, whatever the body shows."""
        self.is_over = False
        """Whether the response has ended."""
        self._number = 0
        self._current: OutputItem | None = None
        self._pending_reasoning = False
        self._is_ending = False
        self._served: list[ServedCallItem] = []
        self._logprobs: list[Json] = []
        self._thoughts: list[str] = []
        self.reasoning_of: dict[str, str] = {}
        """For each call that the client is to run, the reasoning that led to it."""

    def start(self) -> list[Json]:
        """The events before anything is known of the answer."""
        first = [self._response_event("response.created")]
        if self.body["status"] == "queued":
            first.append(self._response_event("response.queued"))
            self.body["status"] = "in_progress"
        return [*first, self._response_event("response.in_progress")]

    def feed(self, event: ChatEvent) -> list[Json]:
        """The events that follow from one of the chat's."""
        match event:
            case TokenDrawn():
                self._note_token(event)
                return []
            case PrefillProgress():
                return self.heartbeat(event)
            case MessageStart():
                return [*self._settle("completed"), *self._begin(event)]
            case TextDelta():
                return self._write(event.text)
            case MessageEnd():
                self._is_ending = True
                return []
            case TurnEnd():
                return [] if event.reason == "end_of_stream" else self._settle("completed")
            case ToolEnd():
                return [*self._settle("completed"), *self._answered(event)]
            case Warning():
                self.warn(event.text)
                return []
            case Repair():
                self._extend("repairs", f"{event.kind}: {event.detail}")
                return []
            case Done():
                return self._finish(event)
            case _:
                return self._settle("completed")

    def heartbeat(self, progress: PrefillProgress | None = None) -> list[Json]:
        """An event that says that the response is still worked on, and how far its prompt is."""
        event = self._response_event("response.in_progress")
        if progress is not None:
            event["prefill"] = dataclasses.asdict(progress)
        return [event]

    def warn(self, text: str) -> None:
        """Tell the client of something that was not done quite as asked."""
        self._extend("warnings", text)

    def fail(self, code: str, message: str) -> list[Json]:
        """The events of a response that cannot go on."""
        events = self._settle("incomplete", force=True)
        self.body["error"] = {"code": code, "message": message}
        return [*events, self._end("failed", "response.failed")]

    def cancel(self) -> list[Json]:
        """The events of a response that is not wanted any longer."""
        events = self._settle("incomplete", force=True)
        return [*events, self._end("cancelled", "response.incomplete")]

    def _finish(self, done: Done) -> list[Json]:
        usage = done.usage
        self.body["usage"] = usage_body(
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
            done.reasoning_tokens,
        )
        self.body["seed"] = done.seed
        is_cut = done.finish_reason in ("length", "cancelled")
        if done.finish_reason == "cancelled":
            return self.cancel()
        events = self._settle("incomplete" if is_cut else "completed", force=True)
        if not is_cut:
            return [*events, self._end("completed", "response.completed")]
        self.body["incomplete_details"] = {"reason": "max_output_tokens"}
        return [*events, self._end("incomplete", "response.incomplete")]

    def _end(self, status: str, kind: str) -> Json:
        self.is_over = True
        self.body["status"] = status
        self.body["completed_at"] = int(time.time()) if status == "completed" else None
        return self._response_event(kind)

    def _begin(self, start: MessageStart) -> list[Json]:
        self._logprobs = []
        index = len(self.body["output"])
        recipient = start.recipient
        if recipient is not None and recipient != "all":
            return self._open(self._call(index, recipient))
        if start.channel == ANALYSIS:
            self._pending_reasoning = True  # opened by its first text: empty thoughts are no item
            return []
        phase = "commentary" if start.channel == COMMENTARY else "final_answer"
        return self._open(MessageItem(index, phase))

    def _call(self, index: int, recipient: str) -> OutputItem:
        if self._is_served is not None and self._is_served(recipient):
            return ServedCallItem(index, recipient)
        tool = self._table.of(recipient)
        item = CustomCallItem(index, tool) if tool.kind == "custom" else CallItem(index, tool)
        self.reasoning_of[item.call_id] = "\n\n".join(self._thoughts)
        return item

    def _open(self, item: OutputItem) -> list[Json]:
        self._current = item
        self.body["output"] = [*self.body["output"], item.item("in_progress")]
        self.whole.append(item.whole("in_progress"))
        return self._numbered(item.open())

    def _write(self, text: str) -> list[Json]:
        opened: list[Json] = []
        if self._pending_reasoning:
            self._pending_reasoning = False
            item = ReasoningItem(len(self.body["output"]), self._seal, self._is_hidden)
            opened = self._open(item)
        if self._current is None:
            return opened
        logprobs, self._logprobs = self._logprobs, []
        return [*opened, *self._numbered(self._current.write(text, logprobs))]

    def _settle(self, status: str, *, force: bool = False) -> list[Json]:
        """End the message that the model has ended, or with `force` whatever is open."""
        item, is_ending = self._current, self._is_ending
        events: list[Json] = []
        if item is not None and (is_ending or force):
            self._current = None
            if isinstance(item, ServedCallItem):
                self._served.append(item)
                events += self._numbered(item.asked())
            else:
                events += self._close(item, status)
        if is_ending or force:
            self._is_ending = self._pending_reasoning = False
        if force:
            unanswered, self._served = self._served, []
            for served in unanswered:
                events += self._close(served, "incomplete")
        return events

    def _close(self, item: OutputItem, status: str) -> list[Json]:
        if isinstance(item, MessageItem) and self._logprobs:
            item.add_logprobs(self._logprobs)
        self._logprobs = []
        if isinstance(item, ReasoningItem):
            self._thoughts.append(item.text)
        return self._replaced(item, item.close(status), status)

    def _answered(self, end: ToolEnd) -> list[Json]:
        if not self._served:
            return []
        item = self._served.pop(0)
        output = "\n".join(message.text for message in end.results)
        return self._replaced(item, item.answered(output), "completed")

    def _replaced(self, item: OutputItem, events: list[Json], status: str) -> list[Json]:
        output = list(self.body["output"])
        output[item.index] = events[-1]["item"]
        self.body["output"] = output
        self.whole[item.index] = item.whole(status)
        return self._numbered(events)

    def _note_token(self, event: TokenDrawn) -> None:
        if self.piece is None or not isinstance(self._current, MessageItem):
            return
        if (data := self.piece(event.token.id)) is not None:
            self._logprobs.append(_logprob(event.token, data, self.piece))

    def _extend(self, field: str, text: str) -> None:
        known = self.body.get(field, [])
        self.body[field] = known if text in known else [*known, text]

    def _response_event(self, kind: str) -> Json:
        return self._numbered([{"type": kind, "response": dict(self.body)}])[0]

    def _numbered(self, events: list[Json]) -> list[Json]:
        for event in events:
            event["sequence_number"] = self._number
            self._number += 1
        return events


def _logprob(token: Token, data: bytes, piece: Piece) -> Json:
    top = [(logprob, piece(token_id)) for token_id, logprob in token.top_logprobs]
    return {
        **_named(data, token.logprob),
        "top_logprobs": [_named(other or b"", logprob) for logprob, other in top],
    }


def _named(data: bytes, logprob: float) -> Json:
    return {"token": data.decode("utf-8", "replace"), "bytes": list(data), "logprob": logprob}
