"""OpenAI's chat messages to a harmony conversation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from aperto.harmony import (
    ANALYSIS,
    COMMENTARY,
    FINAL,
    Conversation,
    DeveloperContent,
    FunctionTool,
    Message,
    ResponseFormat,
    Role,
    SystemContent,
)
from aperto.harmony.messages import call, tool_result
from aperto.server.convert import FUNCTIONS
from aperto.server.files import (
    AUDIO_NOTE,
    AUDIO_WARNING,
    IMAGE_NOTE,
    IMAGE_WARNING,
    attached_file,
)
from aperto.server.recall import Recall
from aperto.server.wire_chat import CallSpec, ChatMessage

_NOT_IN_NAME = re.compile(r"[^\w.\-]", re.ASCII)


def recipient_of(name: str) -> str:
    """Recipient of a client's function; characters that no header may hold become "_"."""
    return FUNCTIONS + (_NOT_IN_NAME.sub("_", name) or "_")


def content_text(content: str | Sequence[Mapping[str, Any]] | None, warnings: list[str]) -> str:
    """Text of a message's content; what is no text becomes an honest note to the model."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(filter(None, (part_text(part, warnings) for part in content)))


def part_text(part: Mapping[str, Any], warnings: list[str]) -> str:
    """Text of one part of a content list. Blocks while a PDF is read."""
    kind = part.get("type")
    for key in ("text", "refusal"):
        if isinstance(part.get(key), str):
            return str(part[key])
    if kind in ("image_url", "input_image", "image"):
        warnings.append(f"messages: {IMAGE_WARNING}")
        return IMAGE_NOTE
    if kind in ("input_audio", "audio"):
        warnings.append(f"messages: {AUDIO_WARNING}")
        return AUDIO_NOTE
    if kind in ("file", "input_file"):
        return _file_text(part, warnings)
    warnings.append(f"messages: a content part of type {kind!r} was replaced by a note")
    return f"[Content of type {str(kind)[:40]} was attached here. It cannot be read.]"


def _file_text(part: Mapping[str, Any], warnings: list[str]) -> str:
    given = part.get("file", part)
    given = given if isinstance(given, Mapping) else {}
    reference = next((key for key in ("file_id", "file_url") if given.get(key)), None)
    found = attached_file(given.get("filename"), given.get("file_data"), reference=reference)
    if found.warning:
        warnings.append(f"messages: {found.warning}")
    return found.text


class ConversationBuilder:
    """Collects harmony messages from a client's.

    Args:
        recall: where reasoning is found that the client dropped.
        warnings: gets a line for everything that is not taken as it was sent.
    """

    def __init__(self, recall: Recall, warnings: list[str]) -> None:
        self._recall = recall
        self._warnings = warnings
        self._messages: list[Message] = []
        self._instructions: list[str] = []
        self._names: dict[str, str] = {}

    def build(
        self,
        messages: Sequence[ChatMessage],
        tools: Sequence[FunctionTool] = (),
        response_format: ResponseFormat | None = None,
    ) -> Conversation:
        """The conversation, with what the developer message announces."""
        for message in messages:
            self._add(message)
        developer = DeveloperContent(
            instructions="\n\n".join(self._instructions) or None,
            tools=tuple(tools),
            response_formats=(response_format,) if response_format else (),
        )
        head = [Message(Role.SYSTEM, SystemContent())]
        if developer != DeveloperContent():
            head.append(Message(Role.DEVELOPER, developer))
        return Conversation((*head, *self._messages))

    def _add(self, message: ChatMessage) -> None:
        text = content_text(message.content, self._warnings)
        if message.role in ("system", "developer"):
            self._add_instructions(text)
        elif message.role == "user":
            self._messages.append(Message(Role.USER, text))
        elif message.role == "assistant":
            self._add_assistant(message, text)
        else:
            self._add_result(message, text)

    def _add_instructions(self, text: str) -> None:
        """What comes first becomes one developer message; what comes later keeps its place."""
        if not self._messages:
            self._instructions += [text] if text else []
        else:
            self._messages.append(Message(Role.DEVELOPER, DeveloperContent(text)))

    def _add_assistant(self, message: ChatMessage, text: str) -> None:
        calls = list(message.tool_calls or ())
        if message.function_call is not None:
            calls.append(CallSpec(function=message.function_call))
        reasoning = message.reasoning or message.reasoning_content or self._recalled(calls)
        if reasoning:
            self._messages.append(Message(Role.ASSISTANT, reasoning, channel=ANALYSIS))
        if text:
            channel = COMMENTARY if calls else FINAL
            self._messages.append(Message(Role.ASSISTANT, text, channel=channel))
        for made in calls:
            self._add_call(made)

    def _recalled(self, calls: Sequence[CallSpec]) -> str | None:
        known = (self._recall.recall(made.id) for made in calls if made.id)
        return next(filter(None, known), None)

    def _add_call(self, made: CallSpec) -> None:
        if made.function is None:
            self._warnings.append(f"messages: a call of type {made.type!r} was left out")
            return
        recipient = recipient_of(made.function.name)
        if made.id:
            self._names[made.id] = recipient
        arguments = made.function.arguments
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments or {}, ensure_ascii=False)
        self._messages.append(call(recipient, arguments))

    def _add_result(self, message: ChatMessage, text: str) -> None:
        recipient = self._names.get(message.tool_call_id or "")
        if recipient is None:
            if message.name is None:
                self._warnings.append(
                    f"messages: tool_call_id {message.tool_call_id!r} belongs to no earlier call"
                )
            recipient = recipient_of(message.name or "tool")
        self._messages.append(tool_result(recipient, text))
