"""Text of a PDF on standard input, as a program of its own that can be limited and stopped.

Takes the most pages, the most characters and the most bytes of memory as arguments. Writes one
JSON value a line: the number of pages, then the text of each page, or an object with an `error`.
"""

from __future__ import annotations

import io
import json
import resource
import sys
from typing import Any

from pypdf import PdfReader


def main() -> None:
    """Read the PDF and write its pages."""
    max_pages, max_chars, max_bytes = (int(text) for text in sys.argv[1:4])
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    try:
        _write_pages(sys.stdin.buffer.read(), max_pages, max_chars)
    except Exception as error:  # a damaged file can fail in any way; the reader is told which
        _write({"error": f"{type(error).__name__}: {error}"[:200]})


def _write_pages(data: bytes, max_pages: int, max_chars: int) -> None:
    reader = PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        _write({"error": "it is protected by a password"})
        return
    _write(len(reader.pages))
    num_chars = 0
    for page in reader.pages[:max_pages]:
        text = page.extract_text()
        num_chars += len(text)
        if num_chars > max_chars:
            return
        _write(text)


def _write(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()  # what was read so far counts even if this program is stopped


if __name__ == "__main__":
    main()
