"""Files that come with a message, as text; and what a model that reads only text is told."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import importlib.util
import json
import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

IMAGE_NOTE = "[An image was attached here. You cannot see images; say so where it matters.]"
"""What the model reads in place of an image."""
AUDIO_NOTE = "[A sound recording was attached here. You cannot hear it; say so where it matters.]"
"""What the model reads in place of a recording."""
IMAGE_WARNING = "the model cannot see images; it is told that one was attached"
"""What the client is told of an image."""
AUDIO_WARNING = "the model cannot hear audio; it is told that it was attached"
"""What the client is told of a recording."""

_MAX_FILE_BYTES = 32 << 20
_MAX_PAGES = 500
_MAX_CHARS = 4_000_000
_MAX_MEMORY_BYTES = 1 << 30
_MAX_SECONDS = 30.0
_MAX_KEPT_CHARS = 16_000_000
_PDF_READER = Path(__file__).with_name("pdf_text.py")
_readers = threading.BoundedSemaphore(2)


@dataclasses.dataclass(frozen=True, slots=True)
class FileText:
    """A file as the model reads it."""

    text: str
    """Its content under its name, or a note that it cannot be read."""
    warning: str | None = None
    """What the client is told where not all of it could be read."""


class _Kept:
    """Texts of PDFs that were read, the least recently used forgotten first: clients that keep
    no state send a file again with every turn."""

    def __init__(self) -> None:
        self._texts: OrderedDict[bytes, FileText] = OrderedDict()
        self._num_chars = 0
        self._lock = threading.Lock()

    def get(self, key: bytes) -> FileText | None:
        with self._lock:
            if key in self._texts:
                self._texts.move_to_end(key)
            return self._texts.get(key)

    def put(self, key: bytes, found: FileText) -> None:
        with self._lock:
            if key in self._texts:
                return
            self._texts[key] = found
            self._num_chars += len(found.text)
            while self._num_chars > _MAX_KEPT_CHARS:
                self._num_chars -= len(self._texts.popitem(last=False)[1].text)


_kept = _Kept()


def attached_file(
    name: object, encoded: object = None, *, reference: str | None = None
) -> FileText:
    """Text of a file that came as base64 or as a data URL. Blocks while a PDF is read.

    Args:
        name: what the file is called.
        encoded: its bytes, as base64 or a data URL with base64.
        reference: how else it was given, such as "file_id", where there are no bytes.
    """
    name = _plain(name)
    if not isinstance(encoded, str) or not encoded:
        problem = (
            f"given by {reference}, which this server does not fetch" if reference else "empty"
        )
        return _unread(name, f"it is {problem}; send its bytes as base64")
    data = decoded(encoded)
    if data is None:
        return _unread(name, "its data is no base64")
    return file_text(name, data)


def decoded(encoded: str) -> bytes | None:
    """Bytes of base64 or of a data URL with base64; None where it is neither."""
    if encoded.startswith("data:"):
        encoded = encoded.partition(",")[2]
    try:
        return base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        return None


def file_text(name: str, data: bytes) -> FileText:
    """Text of a file: a PDF's pages, or what decodes as text. Blocks while a PDF is read."""
    name = _plain(name)
    if len(data) > _MAX_FILE_BYTES:
        return _unread(name, f"it has {len(data)} bytes; at most {_MAX_FILE_BYTES} are read")
    if b"%PDF-" in data[:1024]:
        return _pdf_text(name, data)
    text = _decoded_text(data)
    return _unread(name, "it holds no text") if text is None else FileText(_titled(name, text))


def _decoded_text(data: bytes) -> str | None:
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _pdf_text(name: str, data: bytes) -> FileText:
    key = hashlib.sha256(name.encode("utf-8", "replace") + b"\0" + data).digest()
    found = _kept.get(key)
    if found is None:
        found = _read_pdf(name, data)
        _kept.put(key, found)
    return found


def _read_pdf(name: str, data: bytes) -> FileText:
    if importlib.util.find_spec("pypdf") is None:
        return _unread(name, "reading PDF needs pypdf; run: pip install 'aperto[tools]'")
    with _readers:
        output = _run_reader(data)
    lines = [json.loads(line) for line in output.splitlines(keepends=True) if line.endswith("\n")]
    errors = [line["error"] for line in lines if isinstance(line, dict)]
    pages = [line for line in lines[1:] if isinstance(line, str)]
    if not any(page.strip() for page in pages):
        why = errors[0] if errors else "it has no text, as scanned pages have none"
        return _unread(name, why if lines else "reading it took too long or too much memory")
    text = "\n\n".join(f"[Page {i}]\n{page.strip()}" for i, page in enumerate(pages, 1))
    num_pages = int(lines[0])
    if len(pages) == num_pages:
        return FileText(_titled(name, text))
    cut = f"only the first {len(pages)} of {num_pages} pages could be read"
    return FileText(_titled(name, f"{text}\n\n[Of this file {cut}.]"), f"the file {name!r}: {cut}")


def _run_reader(data: bytes) -> str:
    """What the reader of PDF wrote until it ended or was stopped."""
    limits = (_MAX_PAGES, _MAX_CHARS, _MAX_MEMORY_BYTES)
    command = [sys.executable, "-I", str(_PDF_READER), *map(str, limits)]
    try:
        done = subprocess.run(
            command, input=data, capture_output=True, timeout=_MAX_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as late:
        return (late.stdout or b"").decode()
    return done.stdout.decode()


def _plain(name: object) -> str:
    """A name in one line of a message."""
    text = " ".join(name.split()) if isinstance(name, str) else ""
    return text[:200] or "attachment"


def _titled(name: str, text: str) -> str:
    return f"File {name}:\n{text}"


def _unread(name: str, why: str) -> FileText:
    note = f"[The file {name} was attached here. It cannot be read; say so where it matters.]"
    return FileText(note, f"the file {name!r} could not be read: {why}")
