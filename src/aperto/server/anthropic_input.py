"""Anthropic's messages as a harmony conversation, with the reasoning that their blocks carry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from aperto.errors import UsageError
from aperto.harmony import (
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
from aperto.harmony.messages import analysis, call, developer, system, tool_result, user
from aperto.server.chat_messages import recipient_of
from aperto.server.errors import ApiError
from aperto.server.files import IMAGE_NOTE, IMAGE_WARNING, FileText, attached_file
from aperto.server.recall import Recall
from aperto.server.seal import Sealer
from aperto.server.wire_anthropic import Json, MessageSpec

SIGNED = "aperto."
"""Begins the signatures of this server's thinking blocks; the sealed reasoning follows."""
# Claude Code begins its instructions with a line that differs in every request; with it, no
# prompt would ever be found in the cache.
_VARYING = "x-anthropic-billing-header"


class MessagesReader:
    """Collects harmony messages from Anthropic's. May block while a PDF is read.

    Args:
        sealer: opens the signatures of thinking blocks.
        recall: reasoning of calls whose thinking block was not sent back.
        warnings: gets a line for everything that is not taken as it was sent.
    """

    def __init__(self, sealer: Sealer | None, recall: Recall, warnings: list[str]) -> None:
        self._sealer, self._recall, self._warnings = sealer, recall, warnings
        self._messages: list[Message] = []
        self._names: dict[str, str] = {}

    def conversation(
        self,
        messages: Sequence[MessageSpec],
        instructions: str | Sequence[Json] | None,
        tools: Sequence[FunctionTool] = (),
        response_format: ResponseFormat | None = None,
    ) -> Conversation:
        """The conversation that the model goes on from. Raises ApiError 400 for a signature of
        this server that was changed."""
        head = DeveloperContent(
            self._instructions(instructions) or None,
            tools=tuple(tools),
            response_formats=(response_format,) if response_format else (),
        )
        self._messages = [system(SystemContent())]
        if head != DeveloperContent():
            self._messages.append(developer(head))
        for message in messages:
            self._read(message)
        if messages[-1].role == "assistant" and self._messages[-1].channel == FINAL:
            self._warn(
                "messages: the last one is the assistant's; the model answers after it and does "
                "not continue its text"
            )
        return Conversation(tuple(self._messages))

    def _instructions(self, given: str | Sequence[Json] | None) -> str:
        texts = [given or ""] if isinstance(given, str | None) else map(self._text_of, given)
        kept = [text for text in texts if text and not text.startswith(_VARYING)]
        return "\n\n".join(kept)

    def _read(self, message: MessageSpec) -> None:
        content = message.content
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if message.role == "assistant":
            self._read_assistant(blocks)
        elif message.role == "system":
            self._messages.append(developer(self._instructions(blocks)))
        else:
            self._read_user(blocks)

    def _read_user(self, blocks: Sequence[Json]) -> None:
        texts: list[str] = []
        for block in blocks:
            if block.get("type") == "tool_result":
                self._add_user(texts)
                texts = []
                self._add_result(block)
            else:
                texts.append(self._text_of(block))
        self._add_user(texts)

    def _add_user(self, texts: Sequence[str]) -> None:
        text = "\n\n".join(filter(None, texts))
        if text:
            self._messages.append(user(text))

    def _add_result(self, block: Json) -> None:
        call_id = str(block.get("tool_use_id"))
        if call_id not in self._names:
            self._warn(f"messages: tool_use_id {call_id[:80]!r} belongs to no earlier tool_use")
        content = block.get("content")
        if isinstance(content, list):
            text = "\n\n".join(filter(None, (self._text_of(part) for part in content)))
        else:
            text = str(content or "")
        if block.get("is_error") is True:
            text = f"[The call failed.]\n{text}"
        self._messages.append(tool_result(self._names.get(call_id, recipient_of("tool")), text))

    def _read_assistant(self, blocks: Sequence[Json]) -> None:
        kinds = [block.get("type") for block in blocks]
        last_call = max((i for i, kind in enumerate(kinds) if kind == "tool_use"), default=-1)
        if last_call >= 0 and "thinking" not in kinds and "redacted_thinking" not in kinds:
            self._add_thought(self._recalled(blocks))
        for index, block in enumerate(blocks):
            kind = kinds[index]
            if kind in ("thinking", "redacted_thinking"):
                self._add_thought(self._reasoning(block))
            elif kind == "tool_use":
                self._add_call(block)
            elif text := self._text_of(block):
                self._add_text(text, COMMENTARY if index < last_call else FINAL)

    def _add_text(self, text: str, channel: str) -> None:
        """A text; texts of one channel that follow each other are one message."""
        last = self._messages[-1]
        if last.role is Role.ASSISTANT and last.channel == channel and last.recipient is None:
            text = f"{self._messages.pop().text}\n\n{text}"
        self._messages.append(Message(Role.ASSISTANT, text, channel=channel))

    def _add_thought(self, text: str | None) -> None:
        if text:
            self._messages.append(analysis(text))

    def _add_call(self, block: Json) -> None:
        recipient = recipient_of(str(block.get("name") or ""))
        self._names[str(block.get("id"))] = recipient
        self._messages.append(call(recipient, json.dumps(block.get("input") or {})))

    def _recalled(self, blocks: Sequence[Json]) -> str | None:
        calls = [block for block in blocks if block.get("type") == "tool_use"]
        known = (self._recall.recall(str(block.get("id"))) for block in calls)
        return next(filter(None, known), None)

    def _reasoning(self, block: Json) -> str:
        """What a thinking block stands for: what is sealed in it, or else its text."""
        sealed = block.get("signature") or block.get("data")
        if isinstance(sealed, str) and sealed.startswith(SIGNED) and self._sealer is not None:
            try:
                return self._sealer.unseal(sealed.removeprefix(SIGNED), "reasoning")
            except UsageError:
                raise ApiError(
                    400,
                    "the signature of a thinking block was changed, or comes from another server; "
                    "send the block back as it was received, or leave it out",
                    code="invalid_signature",
                    param="messages",
                ) from None
        text = block.get("thinking")
        if not text:
            self._warn("messages: a thinking block of another server has no text; it was left out")
        return str(text or "")

    def _text_of(self, block: Any) -> str:
        """Text of a block; what is no text becomes an honest note to the model."""
        if not isinstance(block, dict):
            return str(block) if isinstance(block, str) else ""
        kind = block.get("type")
        if kind == "text":
            return str(block.get("text") or "")
        if kind == "image":
            self._warn(f"messages: {IMAGE_WARNING}")
            return IMAGE_NOTE
        if kind == "document":
            return self._document(block)
        if kind == "search_result":
            title = f"{block.get('title') or ''} ({block.get('source') or ''})"
            return f"Search result {title}:\n{self._joined(block.get('content'))}"
        self._warn(f"messages: a block of type {str(kind)[:80]!r} was left out")
        return ""

    def _document(self, block: Json) -> str:
        source = block.get("source")
        source = source if isinstance(source, dict) else {}
        kind, title = source.get("type"), block.get("title")
        name = title if isinstance(title, str) else "document"
        if kind in ("text", "content"):
            given = source.get("data") if kind == "text" else source.get("content")
            found = FileText(f"File {name}:\n{self._joined(given)}")
        else:
            reference = None if kind == "base64" else f"source type {str(kind)[:80]!r}"
            found = attached_file(name, source.get("data"), reference=reference)
        if found.warning:
            self._warn(f"messages: {found.warning}")
        context = block.get("context")
        return f"{context}\n\n{found.text}" if isinstance(context, str) and context else found.text

    def _joined(self, content: Any) -> str:
        if isinstance(content, list):
            return "\n\n".join(filter(None, map(self._text_of, content)))
        return str(content or "")

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)
