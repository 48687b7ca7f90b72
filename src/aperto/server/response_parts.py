"""Content parts of the Responses API as text for a model that reads text alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aperto.server.files import (
    AUDIO_NOTE,
    AUDIO_WARNING,
    IMAGE_NOTE,
    IMAGE_WARNING,
    FileText,
    attached_file,
)

_TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


def part_text(part: object) -> tuple[str, str | None]:
    """Text of a content part, and a warning where the model cannot take it in as it is.

    Blocks while a PDF is read.
    """
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
        return IMAGE_NOTE, IMAGE_WARNING
    if kind == "input_audio":
        return AUDIO_NOTE, AUDIO_WARNING
    if kind == "input_file":
        file = _file(part)
        return file.text, file.warning
    return "", f"content parts of type {kind!r} cannot be shown to the model and are left out"


def _file(part: Mapping[str, Any]) -> FileText:
    reference = next((key for key in ("file_id", "file_url") if part.get(key)), None)
    return attached_file(part.get("filename"), part.get("file_data"), reference=reference)
