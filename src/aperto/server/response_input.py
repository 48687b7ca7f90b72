"""Input items of the Responses API as a harmony conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from aperto.errors import UsageError
from aperto.harmony import (
    ANALYSIS,
    COMMENTARY,
    Conversation,
    DeveloperContent,
    Message,
    ResponseFormat,
    Role,
    SystemContent,
)
from aperto.harmony.messages import analysis, call, developer, final, system, tool_result, user
from aperto.harmony.render import FUNCTIONS
from aperto.server.errors import ApiError
from aperto.server.recall import Recall
from aperto.server.response_parts import part_text
from aperto.server.response_tools import ToolTable, served_recipient
from aperto.server.seal import Sealer
from aperto.server.wire_responses import Json, new_id

_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "compaction": "cmp",
}
_CALLS = ("function_call", "custom_tool_call")
_OUTPUTS = ("function_call_output", "custom_tool_call_output")


class FindItem(Protocol):
    """Looks up a stored item."""

    def __call__(self, item_id: str, /) -> Json | None:
        """The item of an id; None where it is not known."""


def own_items(given: str | Sequence[Mapping[str, Any]] | None, find: FindItem) -> list[Json]:
    """A request's input as items that each have a type, an id and a list as content.

    Raises ApiError (400) for an item without a type, or a reference to one that is not stored.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}] if given else []
    return [_own_item(dict(item), index, find) for index, item in enumerate(given or ())]


def _own_item(item: Json, index: int, find: FindItem) -> Json:
    kind = item.get("type") or ("message" if "role" in item else None)
    if kind == "item_reference" or (kind is None and isinstance(item.get("id"), str)):
        return _referenced(item, index, find)
    if not isinstance(kind, str):
        raise ApiError(
            400,
            f"input[{index}] has the fields {sorted(item)}; expected a type, or a role and content",
            code="invalid_value",
            param=f"input[{index}]",
        )
    item = {**item, "type": kind}
    if not isinstance(item.get("id"), str) or not item["id"]:
        item["id"] = new_id(_PREFIXES.get(kind, "item"))
    if kind == "message" and isinstance(item.get("content"), str):
        part = "output_text" if item.get("role") == "assistant" else "input_text"
        extra: Json = {"annotations": []} if part == "output_text" else {}
        item["content"] = [{"type": part, "text": item["content"], **extra}]
    if kind in ("message", *_CALLS, *_OUTPUTS) and not item.get("status"):
        item["status"] = "completed"
    return item


def _referenced(item: Json, index: int, find: FindItem) -> Json:
    found = find(str(item.get("id")))
    if found is None:
        raise ApiError(
            404,
            f"input[{index}] refers to the item {item.get('id')!r}, which is not stored; "
            "send the item itself",
            code="item_not_found",
            param=f"input[{index}].id",
        )
    return found


class InputReader:
    """Reads items into messages.

    Args:
        table: the request's tools, by which calls find their names.
        unseal: opens the reasoning and summaries that clients carry.
        recall: reasoning of tool calls whose client did not send it back.
    """

    def __init__(self, table: ToolTable, unseal: Sealer | None, recall: Recall) -> None:
        self.warnings: list[str] = []
        """One line for each kind of thing that the model does not get to see."""
        self._table, self._sealer, self._recall = table, unseal, recall
        self._callers: dict[str, str] = {}
        self._has_reasoning = False

    def conversation(
        self,
        items: Sequence[Json],
        instructions: str | Sequence[Mapping[str, Any]] | None,
        formats: tuple[ResponseFormat, ...] = (),
    ) -> Conversation:
        """The conversation that the model goes on from.

        Instructions and system or developer messages at the very start become one developer
        message with the tools. Raises ApiError (400) for sealed text that cannot be opened.
        """
        head, rest = self._head(items, instructions)
        content = DeveloperContent(
            "\n\n".join(head) or None, tools=self._table.functions, response_formats=formats
        )
        messages = [system(SystemContent())]
        if content != DeveloperContent():
            messages.append(developer(content))
        for index, item in enumerate(rest):
            messages += self._messages(item, rest[index + 1 :])
        return Conversation(tuple(messages))

    def _head(
        self, items: Sequence[Json], instructions: str | Sequence[Mapping[str, Any]] | None
    ) -> tuple[list[str], Sequence[Json]]:
        if isinstance(instructions, str) or instructions is None:
            texts = [instructions] if instructions else []
        else:
            texts = [self._text(entry.get("content")) for entry in instructions]
        count = 0
        while count < len(items) and items[count].get("role") in ("system", "developer"):
            texts.append(self._text(items[count].get("content")))
            count += 1
        return [text for text in texts if text], items[count:]

    def _messages(self, item: Json, later: Sequence[Json]) -> list[Message]:
        kind = item["type"]
        reader = _READERS.get(kind)
        if reader is None:
            self._warn(
                f"input: items of type {kind!r} cannot be shown to the model and are left out"
            )
            return []
        return reader(self, item, later)

    def _message(self, item: Json, later: Sequence[Json]) -> list[Message]:
        text, role = self._text(item.get("content")), item.get("role")
        if role == "assistant":
            is_preamble = item.get("phase") == "commentary" or (
                item.get("phase") is None and _next_kind(later) in _CALLS
            )
            return [
                Message(Role.ASSISTANT, text, channel=COMMENTARY) if is_preamble else final(text)
            ]
        self._has_reasoning = False
        if role in ("system", "developer"):
            return [developer(text)]
        if role != "user":
            self._warn(f"input: a message of role {role!r} is read as the user's")
        return [user(text)]

    def _reasoning(self, item: Json, later: Sequence[Json]) -> list[Message]:
        sealed = item.get("encrypted_content")
        if isinstance(sealed, str) and sealed:
            text = self._unsealed(sealed, "reasoning")
        else:
            text = self._text(item.get("content")) or self._text(item.get("summary"))
        self._has_reasoning = self._has_reasoning or bool(text)
        return [analysis(text)] if text else []

    def _compaction(self, item: Json, later: Sequence[Json]) -> list[Message]:
        text = self._unsealed(str(item.get("encrypted_content")), "compaction")
        return [final(f"Summary of our conversation so far:\n\n{text}")]

    def _call(self, item: Json, later: Sequence[Json]) -> list[Message]:
        call_id, name = str(item.get("call_id")), str(item.get("name") or "unknown")
        recipient = self._table.recipient(name, item.get("namespace"))
        self._callers[call_id] = recipient
        if item["type"] == "custom_tool_call":
            asked = self._table.of(recipient).call_of(str(item.get("input") or ""))
        else:
            asked = call(recipient, str(item.get("arguments") or "{}"))
        recalled = None if self._has_reasoning else self._recall.recall(call_id)
        if recalled:
            self._has_reasoning = True
            return [analysis(recalled), asked]
        return [asked]

    def _output(self, item: Json, later: Sequence[Json]) -> list[Message]:
        self._has_reasoning = False
        call_id, output = str(item.get("call_id")), item.get("output")
        text = output if isinstance(output, str) else self._text(output)
        recipient = self._callers.get(call_id)
        if recipient is None:
            recipient = self._table.recipient(str(item.get("name") or "unknown"))
            self._warn(
                f"input: the output of the call {call_id!r} has no call before it; send the call "
                "too, or previous_response_id"
            )
        return [tool_result(recipient, text)]

    def _served_call(self, item: Json, later: Sequence[Json]) -> list[Message]:
        """A call that this server ran itself, with what came of it."""
        self._has_reasoning = False
        recipient = served_recipient(str(item.get("name") or "unknown"))
        channel = COMMENTARY if recipient.startswith(f"{FUNCTIONS}.") else ANALYSIS
        asked = Message(
            Role.ASSISTANT, str(item.get("arguments") or ""), channel=channel, recipient=recipient
        )
        answer = item.get("output") or item.get("error") or ""
        return [asked, tool_result(recipient, str(answer), channel)]

    def _text(self, content: object) -> str:
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            return ""
        texts = []
        for part in content:
            text, warning = part_text(part)
            texts.append(text)
            if warning:
                self._warn(f"input: {warning}")
        return "\n\n".join(filter(None, texts))

    def _unsealed(self, sealed: str, purpose: Any) -> str:
        try:
            if self._sealer is None:
                raise UsageError("encrypted_content cannot be read: this server has no key")
            return self._sealer.unseal(sealed, purpose)
        except UsageError as error:
            raise ApiError(
                400, str(error), code="invalid_encrypted_content", param="input"
            ) from error

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)


def _next_kind(later: Sequence[Json]) -> str | None:
    return next((item["type"] for item in later if item["type"] != "reasoning"), None)


_READERS: dict[str, Callable[[InputReader, Json, Sequence[Json]], list[Message]]] = {
    "message": InputReader._message,
    "reasoning": InputReader._reasoning,
    "compaction": InputReader._compaction,
    "compaction_summary": InputReader._compaction,
    "mcp_call": InputReader._served_call,
    **dict.fromkeys(_CALLS, InputReader._call),
    **dict.fromkeys(_OUTPUTS, InputReader._output),
}
