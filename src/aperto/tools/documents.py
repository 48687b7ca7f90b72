"""A folder of documents as the browser's source: full-text search without any network."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from aperto.errors import ConfigError
from aperto.tools.fetch import pdf_text
from aperto.tools.pages import Page, html_page, plain_page
from aperto.tools.search import Hit
from aperto.tools.tool import ToolFailureError

SUFFIXES = (".txt", ".md", ".rst", ".html", ".htm", ".pdf")
"""Kinds of files that are read."""
MAX_FILE_BYTES = 8 << 20
"""Larger files are left out."""
MAX_FILES = 20_000
"""Files that are searched; more are left out."""
_WORDS = re.compile(r"\w+", re.UNICODE)
_SNIPPET_WORDS = 30


class Documents:
    """Searches and opens the documents below a folder; links and paths never leave it.

    The index lies in memory and follows changes: before each search, files whose time or size
    differ are read again.

    Raises:
        ConfigError: the folder does not exist.
    """

    source = "documents"
    """What is announced to the model."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder; expected one with documents to search")
        self._root = folder.resolve()
        self._lock = threading.Lock()
        self._stamps: dict[str, tuple[int, int]] = {}
        self._index = sqlite3.connect(":memory:", check_same_thread=False)
        self._index.execute(
            "CREATE VIRTUAL TABLE documents USING fts5(path, title, body, "
            "tokenize = 'unicode61 remove_diacritics 2')"
        )

    def search(self, query: str, topn: int) -> list[Hit]:
        """Documents with the words of `query`, those with more and rarer ones first."""
        words = tuple(dict.fromkeys(word.lower() for word in _WORDS.findall(query)))
        if not words:
            return []
        with self._lock:
            self._refresh()
            rows = self._index.execute(
                "SELECT path, title, snippet(documents, 2, '', '', ' … ', ?) FROM documents "
                "WHERE documents MATCH ? ORDER BY bm25(documents, 4, 4, 1), path LIMIT ?",
                (_SNIPPET_WORDS, " OR ".join(f'"{word}"' for word in words), topn),
            ).fetchall()
        return [Hit(title, path, " ".join(summary.split()), words) for path, title, summary in rows]

    def fetch(self, url: str) -> Page:
        """The document at a path relative to the folder. Raises ToolFailureError."""
        path = self._root / url.removeprefix("file://").lstrip("/")
        inside = self._inside(path)
        if inside is None or not inside.is_file():
            raise ToolFailureError(
                f"there is no document {url[:200]!r}; open the results of a search"
            )
        if inside.suffix.lower() not in SUFFIXES:
            raise ToolFailureError(f"{url[:200]!r} is no document ({', '.join(SUFFIXES)})")
        return self._read(inside)

    def close(self) -> None:
        """Give the index up."""
        with self._lock:
            self._index.close()

    def _inside(self, path: Path) -> Path | None:
        """The file behind `path` where it lies in the folder, links followed."""
        try:
            resolved = path.resolve()
        except (OSError, ValueError, RuntimeError):
            return None
        return resolved if resolved.is_relative_to(self._root) else None

    def _read(self, path: Path) -> Page:
        name = str(path.relative_to(self._root))
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ToolFailureError(f"{name} is larger than {MAX_FILE_BYTES} bytes")
            data = path.read_bytes()
        except OSError as error:
            raise ToolFailureError(f"{name} cannot be read: {error.strerror}") from None
        kind = path.suffix.lower()
        if kind == ".pdf":
            return plain_page(name, path.name, pdf_text(data))
        text = data.decode("utf-8", "replace")
        if kind in (".html", ".htm"):
            return html_page(name, text)
        return plain_page(name, _title(text) or path.name, text)

    def _files(self) -> Iterator[Path]:
        """Documents of the folder: no hidden ones, none that a link leads out to."""
        count = 0
        for path in sorted(self._root.rglob("*")):
            parts = path.relative_to(self._root).parts
            if path.suffix.lower() not in SUFFIXES or any(p.startswith(".") for p in parts):
                continue
            inside = self._inside(path)
            if inside is not None and inside == path and inside.is_file():
                count += 1
                if count > MAX_FILES:
                    return
                yield path

    def _refresh(self) -> None:
        found: dict[str, tuple[int, int]] = {}
        for path in self._files():
            stat = path.stat()
            found[str(path.relative_to(self._root))] = (stat.st_mtime_ns, stat.st_size)
        changed = [name for name, stamp in found.items() if self._stamps.get(name) != stamp]
        for name in [*(set(self._stamps) - set(found)), *changed]:
            self._index.execute("DELETE FROM documents WHERE path = ?", (name,))
        for name in changed:
            self._add(name)
        self._stamps = found

    def _add(self, name: str) -> None:
        try:
            document = self._read(self._root / name)
        except ToolFailureError as error:  # found by its name, and opening it says why
            row = (name, name, str(error))
        else:
            row = (name, document.title, "\n".join(document.lines))
        self._index.execute("INSERT INTO documents VALUES (?, ?, ?)", row)


def _title(text: str) -> str:
    """The first heading or line of a text."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return first.lstrip("#= ").strip()
