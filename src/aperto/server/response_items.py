"""Output items of a response while they are written: each knows its events and its final form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aperto.server.response_tools import WireTool, served_name
from aperto.server.wire_responses import Json, new_id

Seal = Callable[[str], str]
"""Encrypts reasoning for a client to carry."""


class OutputItem:
    """One item. Its methods give events that still lack their sequence numbers.

    Args:
        index: its place in the response's output.
        prefix: first letters of its id.
    """

    def __init__(self, index: int, prefix: str) -> None:
        self.index = index
        self.id = new_id(prefix)
        self.text = ""
        """What was written so far."""

    def open(self) -> list[Json]:
        """The events that begin it."""
        added = self._event("response.output_item.added", item=self.item("in_progress"))
        del added["item_id"]
        return [added]

    def write(self, text: str, logprobs: list[Json]) -> list[Json]:
        """The events of more text; `logprobs` are those of its tokens, where asked for."""
        self.text += text
        return []

    def close(self, status: str) -> list[Json]:
        """The events that end it, completed or incomplete."""
        done = self._event("response.output_item.done", item=self.item(status))
        del done["item_id"]
        return [done]

    def item(self, status: str) -> Json:
        """The item as it is now, as clients see it."""
        raise NotImplementedError

    def whole(self, status: str) -> Json:
        """The item with everything that a later turn needs, seen by clients or not."""
        return self.item(status)

    def _event(self, kind: str, **fields: Any) -> Json:
        return {"type": kind, "item_id": self.id, "output_index": self.index, **fields}

    def _part_event(self, kind: str, **fields: Any) -> Json:
        return self._event(kind, content_index=0, **fields)


class ReasoningItem(OutputItem):
    """What the model thinks.

    Args:
        index: its place in the response's output.
        seal: encrypts the text for the client to carry; None where that was not asked for.
        is_hidden: whether the text itself is kept from the client.
    """

    def __init__(self, index: int, seal: Seal | None, is_hidden: bool) -> None:
        super().__init__(index, "rs")
        self._seal, self._is_hidden = seal, is_hidden

    def open(self) -> list[Json]:
        """See OutputItem."""
        events = super().open()
        if not self._is_hidden:
            part = {"type": "reasoning_text", "text": ""}
            events.append(self._part_event("response.content_part.added", part=part))
        return events

    def write(self, text: str, logprobs: list[Json]) -> list[Json]:
        """See OutputItem."""
        self.text += text
        if self._is_hidden:
            return []
        return [self._part_event("response.reasoning_text.delta", delta=text)]

    def close(self, status: str) -> list[Json]:
        """See OutputItem."""
        part = {"type": "reasoning_text", "text": self.text}
        shown = [
            self._part_event("response.reasoning_text.done", text=self.text),
            self._part_event("response.content_part.done", part=part),
        ]
        return [*([] if self._is_hidden else shown), *super().close(status)]

    def item(self, status: str) -> Json:
        """See OutputItem."""
        item = self.whole(status)
        if self._is_hidden:
            item["content"] = []
        if self._seal is not None:
            is_open = status == "in_progress"
            item["encrypted_content"] = None if is_open else self._seal(self.text)
        return item

    def whole(self, status: str) -> Json:
        """See OutputItem."""
        content = [{"type": "reasoning_text", "text": self.text}] if self.text else []
        return {
            "id": self.id,
            "type": "reasoning",
            "status": status,
            "summary": [],
            "content": content,
        }


class MessageItem(OutputItem):
    """What the model says to the user: a preamble or the answer.

    Args:
        index: its place in the response's output.
        phase: "commentary" for a preamble, "final_answer" for the answer.
    """

    def __init__(self, index: int, phase: str) -> None:
        super().__init__(index, "msg")
        self._phase = phase
        self._logprobs: list[Json] = []

    def open(self) -> list[Json]:
        """See OutputItem."""
        added = self._part_event("response.content_part.added", part=self._part())
        return [*super().open(), added]

    def write(self, text: str, logprobs: list[Json]) -> list[Json]:
        """See OutputItem."""
        self.text += text
        self._logprobs += logprobs
        return [self._part_event("response.output_text.delta", delta=text, logprobs=logprobs)]

    def add_logprobs(self, logprobs: list[Json]) -> None:
        """Logprobs of tokens at the end that made no text of their own."""
        self._logprobs += logprobs

    def close(self, status: str) -> list[Json]:
        """See OutputItem."""
        done = {"text": self.text, "logprobs": self._logprobs}
        return [
            self._part_event("response.output_text.done", **done),
            self._part_event("response.content_part.done", part=self._part()),
            *super().close(status),
        ]

    def item(self, status: str) -> Json:
        """See OutputItem."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "phase": self._phase,
            "content": [] if status == "in_progress" else [self._part()],
        }

    def _part(self) -> Json:
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": list(self._logprobs),
        }


class CallItem(OutputItem):
    """A call of a function that the client runs."""

    def __init__(self, index: int, tool: WireTool) -> None:
        super().__init__(index, "fc")
        self.call_id = new_id("call")
        self._tool = tool

    def write(self, text: str, logprobs: list[Json]) -> list[Json]:
        """See OutputItem."""
        self.text += text
        return [self._event("response.function_call_arguments.delta", delta=text)]

    def close(self, status: str) -> list[Json]:
        """See OutputItem."""
        done = {"name": self._tool.name, "arguments": self.text}
        return [
            self._event("response.function_call_arguments.done", **done),
            *super().close(status),
        ]

    def item(self, status: str) -> Json:
        """See OutputItem."""
        item = {
            "id": self.id,
            "type": "function_call",
            "status": status,
            "call_id": self.call_id,
            "name": self._tool.name,
            "arguments": self.text,
        }
        return item if self._tool.namespace is None else {**item, "namespace": self._tool.namespace}


class CustomCallItem(OutputItem):
    """A call of a custom tool. Input without JSON around it is passed on as it comes."""

    def __init__(self, index: int, tool: WireTool) -> None:
        super().__init__(index, "ctc")
        self.call_id = new_id("call")
        self._tool = tool

    def write(self, text: str, logprobs: list[Json]) -> list[Json]:
        """See OutputItem."""
        self.text += text
        return [] if self._tool.form is None else [self._delta(text)]

    def close(self, status: str) -> list[Json]:
        """See OutputItem."""
        text = self._tool.input_of(self.text)
        return [
            *([self._delta(text)] if self._tool.form is None else ()),
            self._event("response.custom_tool_call_input.done", input=text),
            *super().close(status),
        ]

    def _delta(self, text: str) -> Json:
        return self._event("response.custom_tool_call_input.delta", delta=text)

    def item(self, status: str) -> Json:
        """See OutputItem."""
        item = {
            "id": self.id,
            "type": "custom_tool_call",
            "status": status,
            "call_id": self.call_id,
            "name": self._tool.name,
            "input": "" if status == "in_progress" else self._tool.input_of(self.text),
        }
        return item if self._tool.namespace is None else {**item, "namespace": self._tool.namespace}


class ServedCallItem(OutputItem):
    """A call that the server runs itself; it stays open until the tool has answered."""

    def __init__(self, index: int, recipient: str) -> None:
        super().__init__(index, "mcp")
        self._recipient = recipient
        self._output: str | None = None

    def open(self) -> list[Json]:
        """See OutputItem."""
        return [*super().open(), self._event("response.mcp_call.in_progress")]

    def write(self, text: str, logprobs: list[Json]) -> list[Json]:
        """See OutputItem."""
        self.text += text
        return [self._event("response.mcp_call_arguments.delta", delta=text)]

    def asked(self) -> list[Json]:
        """The event that says that the call is whole."""
        return [self._event("response.mcp_call_arguments.done", arguments=self.text)]

    def answered(self, output: str) -> list[Json]:
        """The events of the tool's answer."""
        self._output = output
        return [self._event("response.mcp_call.completed"), *self.close("completed")]

    def item(self, status: str) -> Json:
        """See OutputItem."""
        return {
            "id": self.id,
            "type": "mcp_call",
            "status": status,
            "server_label": "aperto",
            "name": served_name(self._recipient),
            "arguments": self.text,
            "output": self._output,
            "error": None,
        }
