"""One answer's events as the blocks and stream events of Anthropic's Messages API."""

from __future__ import annotations

import copy
import json
import secrets
from collections.abc import Callable

from aperto.chat import ChatEvent, Done, PrefillProgress, Warning
from aperto.harmony import ANALYSIS, COMMENTARY, MessageEnd, MessageStart, TextDelta
from aperto.server.anthropic_input import SIGNED
from aperto.server.anthropic_plan import MessagesPlan
from aperto.server.convert import FUNCTIONS
from aperto.server.recall import Recall
from aperto.server.wire_anthropic import Json

_UNSEALED = "unsealed"
"""Signature of reasoning where the server has no key; it must not be empty."""


class MessageWriter:
    """Turns chat events into stream events, and keeps the whole message.

    Args:
        plan: what was asked, fitted to the model.
        name: the model's name.
        recall: where the reasoning before calls is kept.
        seal: encrypts reasoning for its signature; None where there is no key.
    """

    def __init__(
        self,
        plan: MessagesPlan,
        name: str,
        recall: Recall,
        seal: Callable[[str], str] | None,
    ) -> None:
        self._plan, self._recall, self._seal = plan, recall, seal
        rules = plan.options.rules
        self._is_pure = rules is not None and rules.answer is not None
        self._start: MessageStart | None = None
        self._is_open = False
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._late: list[str] = []
        self.body: Json = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": name,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(plan.prompt_tokens, None, 0),
        }
        """The message as it is now."""
        if plan.warnings:
            self.body["warnings"] = list(plan.warnings)

    def start(self) -> Json:
        """The first event of a stream."""
        return {"type": "message_start", "message": copy.deepcopy(self.body)}

    def feed(self, event: ChatEvent) -> list[Json]:
        """The stream events that an event of the chat leads to."""
        match event:
            case MessageStart():
                return self._begin(event)
            case TextDelta():
                return self._add(event.text)
            case MessageEnd():
                return self._close()
            case PrefillProgress():
                progress = {"done_tokens": event.done_tokens, "total_tokens": event.total_tokens}
                return [{"type": "ping", "prefill": progress}]
            case Warning():
                self._warn(event.text)
            case Done():
                return [*self._close(), *self._end(event)]
        return []

    def _begin(self, start: MessageStart) -> list[Json]:
        closed = self._close()
        self._start = start
        if start.recipient is None:
            return closed
        call_id = f"toolu_{secrets.token_hex(12)}"
        self._recall.remember(call_id, "".join(self._thoughts))
        name = start.recipient.removeprefix(FUNCTIONS)
        return [*closed, self._open({"type": "tool_use", "id": call_id, "name": name, "input": {}})]

    def _open(self, block: Json) -> Json:
        self._is_open = True
        self.body["content"].append(block)
        return {
            "type": "content_block_start",
            "index": self._index,
            "content_block": copy.deepcopy(block),
        }

    @property
    def _index(self) -> int:
        return len(self.body["content"]) - 1

    def _add(self, text: str) -> list[Json]:
        start = self._start
        if start is None:
            return []
        self._texts.append(text)
        if start.recipient is not None:
            return [self._delta({"type": "input_json_delta", "partial_json": text})]
        if start.channel == ANALYSIS:
            return self._add_thought(text)
        if self._is_pure and start.channel == COMMENTARY:
            return []  # the text must be the answer alone, as JSON must
        opened = [] if self._is_open else [self._open({"type": "text", "text": ""})]
        return [*opened, self._delta({"type": "text_delta", "text": text})]

    def _add_thought(self, text: str) -> list[Json]:
        self._thoughts.append(text)
        if not self._plan.shows_blocks:
            return []
        block = {"type": "thinking", "thinking": "", "signature": ""}
        events = [] if self._is_open else [self._open(block)]
        if self._plan.shows_reasoning:
            events.append(self._delta({"type": "thinking_delta", "thinking": text}))
        return events

    def _delta(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self) -> list[Json]:
        """The end of the current block, if there is one."""
        text = "".join(self._texts)
        self._texts.clear()
        self._start = None
        if not self._is_open:
            return []
        self._is_open = False
        events = []
        block = self.body["content"][-1]
        if block["type"] == "text":
            block["text"] = text
        elif block["type"] == "tool_use":
            block["input"] = self._arguments(text)
        else:
            block["thinking"] = text if self._plan.shows_reasoning else ""
            block["signature"] = SIGNED + self._seal(text) if self._seal else _UNSEALED
            events.append(self._delta({"type": "signature_delta", "signature": block["signature"]}))
        return [*events, {"type": "content_block_stop", "index": self._index}]

    def _arguments(self, text: str) -> Json:
        try:
            found = json.loads(text or "{}")
        except json.JSONDecodeError:
            found = None
        if not isinstance(found, dict):
            self._warn("tool_use: the arguments are incomplete; input is left empty")
            return {}
        return found

    def _end(self, done: Done) -> list[Json]:
        usage = _usage(
            done.usage.prompt_tokens, done.usage.cached_tokens, done.usage.completion_tokens
        )
        usage["output_tokens_details"] = {"thinking_tokens": done.reasoning_tokens}
        ending = {"stop_reason": self._stop_reason(done), "stop_sequence": done.stop}
        self.body.update(ending, usage=usage)
        event: Json = {"type": "message_delta", "delta": ending, "usage": usage}
        if self._late:
            event["warnings"] = self._late
        return [event, {"type": "message_stop"}]

    def _stop_reason(self, done: Done) -> str:
        if done.finish_reason == "length":
            is_full = self._plan.is_lowered
            return "model_context_window_exceeded" if is_full else "max_tokens"
        # Models also end a call as if it were a message; clients look for calls by this word alone.
        if any(block["type"] == "tool_use" for block in self.body["content"]):
            return "tool_use"
        return "end_turn" if done.stop is None else "stop_sequence"

    def _warn(self, text: str) -> None:
        self._late.append(text)
        self.body.setdefault("warnings", []).append(text)


def _usage(prompt: int, cached: int | None, output: int) -> Json:
    """Usage; how much came from the cache is None while it is not known yet."""
    return {
        "input_tokens": prompt - (cached or 0),
        "cache_creation_input_tokens": None if cached is None else 0,
        "cache_read_input_tokens": cached,
        "output_tokens": output,
    }
