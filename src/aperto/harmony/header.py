"""The header of one message as a model wrote it: read where valid, mended where not."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Sequence

from aperto.harmony.messages import ANALYSIS, COMMENTARY, FINAL, Role

CHANNELS = (ANALYSIS, COMMENTARY, FINAL)
"""The channels gpt-oss knows."""
CONSTRAIN = "<|constrain|>"
"""Marker before the content type of a constrained message."""


class RepairKind(enum.StrEnum):
    """What was wrong with a model's output."""

    MISSING_START = "missing_start"
    """A message began without ``<|start|>``."""
    MISSING_MESSAGE = "missing_message"
    """A header was not closed by ``<|message|>``; what followed it became the content."""
    MISSING_END = "missing_end"
    """A message was not closed."""
    MISSING_CHANNEL = "missing_channel"
    """An assistant's message had no channel."""
    UNKNOWN_CHANNEL = "unknown_channel"
    """The channel's name is not one gpt-oss knows."""
    REPEATED_CHANNEL = "repeated_channel"
    """A header named its channel twice; the last one counts."""
    ROLE = "role"
    """A header's role was missing, unknown, or not the assistant's."""
    RECIPIENT = "recipient"
    """A recipient was misspelt, misplaced, repeated or run together with other text."""
    CONTENT_TYPE = "content_type"
    """A content type was empty, or stood unmarked in a message that calls nothing."""
    STRAY_TEXT = "stray_text"
    """Text in a header that has no place there; it is not part of the message."""
    STRAY_TOKEN = "stray_token"
    """A special token where it means nothing; it was skipped."""
    UNKNOWN_TOKEN = "unknown_token"
    """A token id outside the vocabulary; it was skipped."""
    INVALID_UTF8 = "invalid_utf8"
    """Bytes that are not text, in hexadecimal; a replacement character stands for them."""
    WRONG_END = "wrong_end"
    """A message was closed by a token that does not fit what it is."""


@dataclasses.dataclass(frozen=True, slots=True)
class Repair:
    """One thing that was mended."""

    kind: RepairKind
    """What was wrong."""
    detail: str
    """The text, token or bytes it was about."""


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """A part of a header: the special token that opens it and the text up to the next one."""

    marker: str
    """``<|channel|>``, ``<|constrain|>``, or empty for the part before any of them."""
    text: str
    """The text behind the marker."""


@dataclasses.dataclass(slots=True)
class Header:
    """What a header says."""

    role: Role = Role.ASSISTANT
    """Who speaks."""
    name: str | None = None
    """The speaker's name, where it has one."""
    channel: str | None = None
    """One of CHANNELS for an assistant's message."""
    recipient: str | None = None
    """Whom a call goes to."""
    content_type: str | None = None
    """What a call announces, ``<|constrain|>json``."""
    body: str = ""
    """Content that stood in the header because ``<|message|>`` was missing."""
    repairs: list[Repair] = dataclasses.field(default_factory=list)
    """What was mended."""


_ROLES = frozenset(role.value for role in Role)
_TARGET = r"to=\s*[\w.\-/:]+"
_TYPES = ("json", "code", "text")
_LEADS = {
    "": re.compile(rf"\s*(?:assistant\b)?(?:\s*{_TARGET})?"),
    "<|channel|>": re.compile(
        rf"\s*(?:{'|'.join(CHANNELS)})?(?:\s*{_TARGET}(?:\s+(?:{'|'.join(_TYPES)})\b)?)?"
    ),
    CONSTRAIN: re.compile(r"\s*[A-Za-z_]*"),
}
_MARKED = re.compile(r"<\|(\w+)\|>(\w*)")
_TRAILING = ".,;:'\"`"
_TOOL_NAME = re.compile(r"[A-Za-z_][\w-]*(?:\.[\w-]+)+|python")


def read_header(
    segments: Sequence[Segment], role: Role | None, closed: bool, generating: bool = True
) -> Header:
    """Read a header; never raises.

    Args:
        segments: the header's parts in order.
        role: the speaker where the prompt has already named it, else None.
        closed: whether ``<|message|>`` followed.
        generating: whether a model is speaking as the assistant, so that any other role is wrong.
    """
    reader = _Reader(role, generating)
    segments = list(segments) or [Segment("", "")]
    if not closed:
        last = segments.pop()
        cut = _LEADS[last.marker].match(last.text)
        end = cut.end() if cut else 0
        segments.append(Segment(last.marker, last.text[:end]))
        reader.header.body = last.text[end:]
        reader.repair(RepairKind.MISSING_MESSAGE, last.text)
    for segment in segments:
        reader.segment(segment)
    return reader.finish()


class _Reader:
    """Sorts the words of a header into role, channel, recipient, content type and the rest."""

    def __init__(self, role: Role | None, generating: bool) -> None:
        self.header = Header(role=role or Role.ASSISTANT)
        self._role_given = role is not None
        self._generating = generating
        self._speaker: str | None = None
        self._bare: list[str] = []
        self._guessed = False

    def repair(self, kind: RepairKind, detail: str) -> None:
        """Note what was mended."""
        self.header.repairs.append(Repair(kind, detail))

    def segment(self, segment: Segment) -> None:
        """Take in one part of the header."""
        words = segment.text.split()
        if segment.marker == "<|channel|>":
            words = self._channel(words)
        elif segment.marker == CONSTRAIN:
            words = self._constrained(words)
        else:
            words = self._role_words(words)
        self._rest(words)

    def finish(self) -> Header:
        """Settle what only the whole header tells."""
        self._settle_speaker()
        self._settle_bare()
        header = self.header
        if header.role is Role.ASSISTANT:
            if header.channel is not None and header.channel not in CHANNELS:
                # It was left alone while another role seemed to speak.
                self.repair(RepairKind.UNKNOWN_CHANNEL, header.channel)
                header.channel, self._guessed = ANALYSIS, True
            if self._guessed and header.recipient:
                header.channel = COMMENTARY
            if header.channel is None:
                header.channel = COMMENTARY if header.recipient else FINAL
                self.repair(RepairKind.MISSING_CHANNEL, f"taken as {header.channel}")
        elif self._generating:
            self.repair(RepairKind.ROLE, header.role.value)
        return header

    def _role_words(self, words: list[str]) -> list[str]:
        if self._role_given:
            return words[1:] if words[:1] == [self.header.role.value] else words
        if words:
            self._speaker = words[0]
        return words[1:]

    def _channel(self, words: list[str]) -> list[str]:
        if self.header.channel is not None:
            self.repair(RepairKind.REPEATED_CHANNEL, self.header.channel)
        if not words:
            return words
        name, *words = words
        if name in CHANNELS:
            self.header.channel = name
            return words
        if self._role_given is False and self._speaker not in (None, Role.ASSISTANT.value):
            self.header.channel = name
            return words
        lowered = name.lower()
        known = next((channel for channel in CHANNELS if lowered.startswith(channel)), None)
        self.repair(RepairKind.UNKNOWN_CHANNEL, name)
        if known is None:
            # Hidden rather than shown: it may be reasoning.
            self.header.channel, self._guessed = ANALYSIS, True
            return words
        self.header.channel = known
        rest = name[len(known) :]
        return [rest, *words] if rest else words

    def _constrained(self, words: list[str]) -> list[str]:
        if not words:
            self.repair(RepairKind.CONTENT_TYPE, CONSTRAIN)
            return words
        self.header.content_type = CONSTRAIN + words[0]
        return words[1:]

    def _rest(self, words: list[str]) -> None:
        position = 0
        while position < len(words):
            word = words[position]
            position += 1
            if word == "to=" and position < len(words):
                word += words[position]
                position += 1
            word = self._unmark(word)
            if word.startswith("to="):
                self._recipient(word[3:])
            elif word:
                self._bare.append(word)

    def _unmark(self, word: str) -> str:
        """Cut off markers that were spelt out as text, such as ``…<|channel|>commentary``."""
        at = word.find("<|")
        if at < 0:
            return word
        self.repair(RepairKind.RECIPIENT, word)
        for marker, value in _MARKED.findall(word[at:]):
            if marker == "channel" and value in CHANNELS and self.header.channel is None:
                self.header.channel = value
            elif marker == "constrain" and value and self.header.content_type is None:
                self.header.content_type = CONSTRAIN + value
        return word[:at]

    def _recipient(self, name: str) -> None:
        cleaned = name.rstrip(_TRAILING).lstrip("'\"`")
        if cleaned != name or not cleaned or self.header.recipient not in (None, cleaned):
            self.repair(RepairKind.RECIPIENT, f"to={name}")
        if cleaned and self.header.recipient is None:
            self.header.recipient = cleaned

    def _settle_speaker(self) -> None:
        if self._role_given:
            return
        word, header = self._speaker, self.header
        role, _, name = (word or "").partition(":")
        if role in _ROLES:
            header.role, header.name = Role(role), name or None
        elif word and (header.recipient == Role.ASSISTANT or not self._generating):
            header.role, header.name = Role.TOOL, word
        elif word and word.startswith(Role.ASSISTANT):
            self.repair(RepairKind.ROLE, word)
            self._after_assistant(word.removeprefix(Role.ASSISTANT))
        elif word and header.recipient is None and _TOOL_NAME.match(word):
            self.repair(RepairKind.RECIPIENT, word)
            self._recipient(self._unmark(word))
        else:
            self.repair(RepairKind.ROLE, word or "")

    def _after_assistant(self, rest: str) -> None:
        """What was run together with the role: a channel or a recipient."""
        if rest in CHANNELS and self.header.channel is None:
            self.header.channel = rest
        else:
            self._rest([rest])

    def _settle_bare(self) -> None:
        """Words without a mark: a content type, a recipient without ``to=``, or stray."""
        header, words = self.header, self._bare
        if words and header.content_type is None:
            typed = [w for w in words if w in _TYPES] or (words if header.recipient else [])
            if typed:
                header.content_type = typed[-1]
                words.remove(typed[-1])
        for word in words:
            if word in CHANNELS and header.channel is None:
                self.repair(RepairKind.MISSING_CHANNEL, word)
                header.channel = word
            elif header.recipient is None and _TOOL_NAME.fullmatch(word.strip(_TRAILING)):
                self.repair(RepairKind.RECIPIENT, word)
                header.recipient = word.strip(_TRAILING)
            else:
                self.repair(RepairKind.STRAY_TEXT, word)
        if header.content_type in _TYPES and header.recipient is None:
            self.repair(RepairKind.CONTENT_TYPE, header.content_type or "")
