"""Token ids to events, one token at a time.

Whatever a model emits is read: slips are mended and reported, none of them raises.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable
from typing import Literal

from aperto.harmony.header import CONSTRAIN, Header, Repair, RepairKind, Segment, read_header
from aperto.harmony.messages import Message, Role
from aperto.tokenizer import Tokenizer, Utf8Stream

MAX_HEADER_TOKENS = 128
"""Header length in tokens after which ``<|message|>`` counts as forgotten."""
_SPOKEN_WORDS = 3


@dataclasses.dataclass(frozen=True, slots=True)
class MessageStart:
    """A message's header is complete."""

    channel: str | None
    """``analysis``, ``commentary`` or ``final``; None only for other roles than the assistant."""
    recipient: str | None
    """Whom a call goes to, ``functions.get_weather``."""
    content_type: str | None
    """What a call announces, ``<|constrain|>json``."""
    role: Role = Role.ASSISTANT
    """Who speaks; anything but the assistant was made up by the model."""


@dataclasses.dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of the current message."""

    channel: str | None
    """The message's channel."""
    text: str
    """Whole characters only."""


@dataclasses.dataclass(frozen=True, slots=True)
class MessageEnd:
    """A message is complete."""

    message: Message
    """The message, ready to be added to the conversation."""


@dataclasses.dataclass(frozen=True, slots=True)
class TurnEnd:
    """The model has nothing more to say in this turn."""

    reason: Literal["return", "call", "end_of_stream"]
    """Answered, waits for a tool, or cut off."""


Event = MessageStart | TextDelta | MessageEnd | Repair | TurnEnd


class _State(enum.Enum):
    BETWEEN = enum.auto()
    HEADER = enum.auto()
    CONTENT = enum.auto()


class StreamParser:
    """Reads what a model says.

    Args:
        tokenizer: the checkpoint's tokenizer.
        role: the speaker whose header the prompt has opened; None where the ids begin with
            ``<|start|>``, as those of a whole rendered conversation do.
    """

    def __init__(self, tokenizer: Tokenizer, role: Role | None = Role.ASSISTANT) -> None:
        self.messages: list[Message] = []
        """Messages that are complete."""
        self.repairs: list[Repair] = []
        """Everything that was mended so far."""
        self._piece = tokenizer.piece
        self._names = {token_id: name for name, token_id in tokenizer.special.items()}
        self._role = role
        self._generating = role is not None
        self._state = _State.BETWEEN if role is None else _State.HEADER
        self._turn_open = self._generating
        self._segments: list[tuple[str, bytearray]] = []
        self._num_header_tokens = 0
        self._header = Header()
        self._utf8 = Utf8Stream()
        self._text: list[str] = []
        self._events: list[Event] = []

    def feed(self, token: int) -> list[Event]:
        """Take one token, give the events it leads to, often none or one."""
        name = self._names.get(token)
        if name is not None:
            self._special(name)
        elif (piece := self._piece(token)) is None:
            self._repair(RepairKind.UNKNOWN_TOKEN, str(token))
        elif self._state is _State.CONTENT:
            self._content(piece)
        else:
            self._header_text(piece)
        events, self._events = self._events, []
        return events

    def close(self) -> list[Event]:
        """The stream has ended: complete what is open."""
        self._finish_message(None)
        if self._turn_open:
            self._end_turn("end_of_stream")
        events, self._events = self._events, []
        return events

    def _special(self, name: str) -> None:
        if name == "<|start|>":
            if self._state is _State.HEADER and not self._segments:
                self._repair(RepairKind.STRAY_TOKEN, name)
            self._finish_message(None)
            self._open_header()
        elif name == "<|message|>":
            self._message_marker()
        elif name in ("<|channel|>", CONSTRAIN):
            self._header_marker(name)
        elif name in ("<|end|>", "<|return|>", "<|call|>"):
            self._end_marker(name)
        elif name == "<|endoftext|>":
            self._repair(RepairKind.WRONG_END, name)
            self._end_marker("<|return|>")
        else:
            self._repair(RepairKind.STRAY_TOKEN, name)

    def _open_header(self) -> None:
        self._state = _State.HEADER
        self._segments = []
        self._num_header_tokens = 0
        self._turn_open = True

    def _message_marker(self) -> None:
        if self._state is _State.CONTENT:
            self._repair(RepairKind.STRAY_TOKEN, "<|message|>")
            return
        self._need_header("<|message|>")
        self._start_message(closed=True)

    def _header_marker(self, name: str) -> None:
        if self._state is _State.CONTENT:
            if name == CONSTRAIN:
                self._repair(RepairKind.STRAY_TOKEN, name)
                return
            self._finish_message(None)
        elif name == "<|channel|>" and self._has_spoken():
            self._finish_message(None)
        self._need_header(name)
        self._segments.append((name, bytearray()))

    def _has_spoken(self) -> bool:
        """Whether the open header holds content already, its ``<|message|>`` forgotten."""
        if self._state is not _State.HEADER or not self._segments:
            return False
        header = read_header(self._parts(), self._role, False, self._generating)
        return len(header.body.split()) >= _SPOKEN_WORDS

    def _need_header(self, found: str) -> None:
        if self._state is _State.BETWEEN:
            self._repair(RepairKind.MISSING_START, found)
            self._open_header()
            self._role = Role.ASSISTANT

    def _end_marker(self, name: str) -> None:
        if self._state is _State.BETWEEN and name == "<|end|>":
            self._repair(RepairKind.STRAY_TOKEN, name)
            return
        self._finish_message(name)
        if name != "<|end|>":
            self._end_turn(self._turn_reason(name))

    def _turn_reason(self, name: str) -> Literal["return", "call"]:
        said = self.messages[-1] if self.messages else None
        called = said is not None and said.role is Role.ASSISTANT and said.recipient is not None
        if called is not (name == "<|call|>"):
            self._repair(RepairKind.WRONG_END, name)
        return "call" if called else "return"

    def _end_turn(self, reason: Literal["return", "call", "end_of_stream"]) -> None:
        self._turn_open = False
        self._events.append(TurnEnd(reason))

    def _header_text(self, piece: bytes) -> None:
        if self._state is _State.BETWEEN:
            self._repair(RepairKind.MISSING_START, piece.decode("utf-8", "replace"))
            self._open_header()
        if not self._segments:
            self._segments.append(("", bytearray()))
        self._segments[-1][1].extend(piece)
        self._num_header_tokens += 1
        if self._num_header_tokens >= MAX_HEADER_TOKENS:
            self._start_message(closed=False)

    def _start_message(self, closed: bool) -> None:
        self._open_message(self._read_header(closed))

    def _open_message(self, header: Header) -> None:
        for repair in header.repairs:
            self._note(repair)
        self._header = header
        self._state = _State.CONTENT
        self._text = []
        self._events.append(
            MessageStart(header.channel, header.recipient, header.content_type, header.role)
        )
        if header.body:
            self._delta(header.body)

    def _read_header(self, closed: bool) -> Header:
        role, self._role = self._role, None
        return read_header(self._parts(), role, closed, self._generating)

    def _parts(self) -> list[Segment]:
        return [Segment(mark, data.decode("utf-8", "replace")) for mark, data in self._segments]

    def _content(self, piece: bytes) -> None:
        text = self._utf8.feed(piece)
        if self._utf8.invalid:
            self._report_invalid()
        if text:
            self._delta(text)

    def _delta(self, text: str) -> None:
        self._text.append(text)
        self._events.append(TextDelta(self._header.channel, text))

    def _report_invalid(self) -> None:
        for data in self._utf8.invalid:
            self._repair(RepairKind.INVALID_UTF8, data.hex())
        self._utf8.invalid.clear()

    def _finish_message(self, end: str | None) -> None:
        """Close what is open; ``end`` names the token that closes it, None if there was none."""
        if self._state is _State.HEADER:
            self._finish_header(end)
        if self._state is not _State.CONTENT:
            return
        if end is None:
            self._repair(RepairKind.MISSING_END, self._header.channel or "")
        if rest := self._utf8.close():
            self._report_invalid()
            self._delta(rest)
        self._emit_message()
        self._state = _State.BETWEEN

    def _finish_header(self, end: str | None) -> None:
        """End a header without ``<|message|>``; if nothing was said in it, it is dropped."""
        header = self._read_header(closed=False)
        if header.body or header.recipient:
            self._open_message(header)
            return
        self._state = _State.BETWEEN
        if self._segments or end is not None:
            self._repair(RepairKind.MISSING_MESSAGE, " ".join(s.text for s in self._parts()))

    def _emit_message(self) -> None:
        header = self._header
        message = Message(
            role=header.role,
            content="".join(self._text),
            channel=header.channel,
            recipient=header.recipient,
            content_type=header.content_type,
            name=header.name,
        )
        self.messages.append(message)
        self._events.append(MessageEnd(message))

    def _repair(self, kind: RepairKind, detail: str) -> None:
        self._note(Repair(kind, detail))

    def _note(self, repair: Repair) -> None:
        self.repairs.append(repair)
        self._events.append(repair)


def parse(
    ids: Iterable[int], tokenizer: Tokenizer, role: Role | None = Role.ASSISTANT
) -> StreamParser:
    """Read a finished stream; the result holds ``messages`` and ``repairs``."""
    parser = StreamParser(tokenizer, role)
    for token in ids:
        parser.feed(token)
    parser.close()
    return parser
