"""Content parts of the Responses API as text for a model that reads text alone."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

_IMAGE_NOTE = "[An image was attached here. You cannot see images; say so where it matters.]"
_AUDIO_NOTE = "[A sound recording was attached here. You cannot hear it; say so where it matters.]"
_TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


def part_text(part: object) -> tuple[str, str | None]:
    """Text of a content part, and a warning where the model cannot take it in as it is."""
    if isinstance(part, str):
        return part, None
    if not isinstance(part, Mapping):
        return "", f"a content part is {type(part).__name__}; expected an object"
    kind = part.get("type")
    if kind in _TEXT_PARTS:
        return str(part.get("text") or ""), None
    if kind == "refusal":
        return str(part.get("refusal") or ""), None
    if kind == "input_image":
        return _IMAGE_NOTE, "images cannot be seen by the model; it is told that one was attached"
    if kind == "input_audio":
        return _AUDIO_NOTE, "audio cannot be heard by the model; it is told that it was attached"
    if kind == "input_file":
        return _file_text(part)
    return "", f"content parts of type {kind!r} cannot be shown to the model and are left out"


def _file_text(part: Mapping[str, Any]) -> tuple[str, str | None]:
    name = str(part.get("filename") or "attachment")
    data = _file_bytes(part.get("file_data"))
    if data is None:
        where = "file_id" if part.get("file_id") else "file_url" if part.get("file_url") else None
        problem = f"given by {where}, which this server does not fetch" if where else "without data"
        return _file_note(name), f"the file {name!r} is {problem}; send its bytes as file_data"
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return _file_note(name), f"the file {name!r} holds no text that can be read"
    return f"File {name}:\n{text}", None


def _file_note(name: str) -> str:
    return (
        f"[The file {name} was attached here. Its content cannot be read; say so where it matters.]"
    )


def _file_bytes(data: object) -> bytes | None:
    if not isinstance(data, str) or not data:
        return None
    encoded = data.partition(",")[2] if data.startswith("data:") else data
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
