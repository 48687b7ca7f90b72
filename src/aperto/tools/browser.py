"""The built-in `browser`: search, open and find, shown as gpt-oss was trained to read it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from aperto.harmony.builtin import BROWSER
from aperto.harmony.messages import FunctionTool, Message, ToolNamespace
from aperto.tools.pages import Link, Page, defused, link_mark, page
from aperto.tools.search import Backend, Hit
from aperto.tools.tool import ToolFailureError, answer, arguments_of

VIEW_CHARS = 4096
"""Characters shown at once, about a thousand tokens."""
MAX_RESULTS = 20
"""Search results of one call."""
MAX_PAGES = 500
"""Pages that one conversation may open."""
_MATCHES = 50
_MATCH_LINES = 4
_URL_CHARS = 300


class BrowserTool:
    """Searches and reads pages; each display is a page with a number, its cursor.

    Args:
        backend: where searches go and pages come from.
    """

    name = "browser"
    """Its name in specifications and the namespace of its calls."""
    functions: tuple[FunctionTool, ...] = ()
    """None: it is announced as a namespace."""

    def __init__(self, backend: Backend) -> None:
        self.namespace: ToolNamespace | None = _announcement(backend.source)
        """How the system message announces it."""
        self._backend = backend
        self._pages: list[Page] = []
        self._lock = threading.Lock()

    def accepts(self, recipient: str) -> bool:
        """Calls of ``browser.search``, ``browser.open``, ``browser.find``."""
        return recipient.split(".")[0] == self.name

    def run(self, call: Message) -> tuple[Message, ...]:
        """Answer a call with a display of a page, or with what went wrong."""
        function = (call.recipient or "").partition(".")[2]
        with self._lock:
            try:
                text = self._run(function, arguments_of(call))
            except ToolFailureError as error:
                text = f"Error: {defused(str(error))}"
        return answer(call, text)

    def close(self) -> None:
        """Let go of the pages and of the backend."""
        with self._lock:
            self._pages.clear()
            self._backend.close()

    def _run(self, function: str, arguments: Mapping[str, Any]) -> str:
        if function == "search":
            return self._search(arguments)
        if function == "open":
            return self._open(arguments)
        if function == "find":
            return self._find(arguments)
        raise ToolFailureError(
            f"browser has no function {function!r}; expected search, open or find"
        )

    def _search(self, arguments: Mapping[str, Any]) -> str:
        query = _text(arguments, "query")
        topn = _whole(arguments, "topn", 10)
        hits = self._backend.search(query, min(max(topn, 1), MAX_RESULTS))
        return self._show_new(_results(query, hits))

    def _open(self, arguments: Mapping[str, Any]) -> str:
        target = arguments.get("id", -1)
        loc = _whole(arguments, "loc", -1)
        num_lines = _whole(arguments, "num_lines", -1)
        if isinstance(target, str) and not target.strip().lstrip("-").isdigit():
            opened, line = self._backend.fetch(target.strip()), 0
        elif (link_id := _whole(arguments, "id", -1)) >= 0:
            opened, line = self._follow(self._page(arguments), link_id)
        else:
            opened, line = self._page(arguments), 0
        if arguments.get("view_source") is True:
            opened = dataclasses.replace(opened, lines=tuple(defused(opened.source).splitlines()))
        return self._show_new(opened, loc if loc >= 0 else line, num_lines)

    def _follow(self, current: Page, link_id: int) -> tuple[Page, int]:
        """The page a link leads to, and the line where it is shown."""
        if link_id >= len(current.links):
            raise ToolFailureError(
                f"there is no link {link_id} on this page; it has {len(current.links)}"
            )
        link = current.links[link_id]
        known = next((seen for seen in self._pages if seen.url == link.url and link.url), None)
        opened = known or self._backend.fetch(link.url)
        return opened, _line_of(opened, link)

    def _find(self, arguments: Mapping[str, Any]) -> str:
        pattern = _text(arguments, "pattern")
        return self._show_new(_matches(pattern, self._page(arguments)))

    def _page(self, arguments: Mapping[str, Any]) -> Page:
        cursor = _whole(arguments, "cursor", -1)
        if not self._pages:
            raise ToolFailureError("no page is open yet; search first, or open an address")
        if cursor >= len(self._pages):
            raise ToolFailureError(f"cursor is {cursor}; expected 0 to {len(self._pages) - 1}")
        return self._pages[cursor] if cursor >= 0 else self._pages[-1]

    def _show_new(self, opened: Page, loc: int = 0, num_lines: int = -1) -> str:
        if len(self._pages) >= MAX_PAGES:
            raise ToolFailureError(f"{MAX_PAGES} pages are open, which is the limit")
        if loc >= len(opened.lines):
            raise ToolFailureError(
                f"loc is {loc}; the page has the lines 0 to {len(opened.lines) - 1}"
            )
        self._pages.append(opened)
        return _display(len(self._pages) - 1, opened, loc, num_lines)


def _announcement(source: str) -> ToolNamespace:
    text = (BROWSER.description or "").replace(
        "sources=web (default: web)", f"sources={source} (default: {source})"
    )
    return dataclasses.replace(BROWSER, description=text)


def _results(query: str, hits: list[Hit]) -> Page:
    blocks = [
        f"{link_mark(index, hit.title, hit.url)}\n{defused(hit.summary)}"
        for index, hit in enumerate(hits)
    ]
    links = [Link(hit.url, terms=hit.terms) for hit in hits]
    return page("", defused(query), "\n\n".join(blocks) or "No results.", links)


def _matches(pattern: str, searched: Page) -> Page:
    blocks: list[str] = []
    links: list[Link] = []
    line = 0
    while line < len(searched.lines) and len(links) < _MATCHES:
        if pattern.lower() in searched.lines[line].lower():
            shown = "\n".join(map(defused, searched.lines[line : line + _MATCH_LINES]))
            blocks.append(f"# 【{len(links)}†match at L{line}】\n{shown}")
            links.append(Link(searched.url, line=line))
            line += _MATCH_LINES
        else:
            line += 1
    title = f"Find results for text: `{defused(pattern)}` in `{searched.title}`"
    text = "\n\n".join(blocks) or f"No matches for `{defused(pattern)}`."
    return page(searched.url and f"{searched.url}#find", title, text, links)


def _line_of(opened: Page, link: Link) -> int:
    """The line a link asks for: a number, or where the words searched for stand closest."""
    if link.line is not None:
        return min(link.line, len(opened.lines) - 1)
    counts = [sum(term in line.lower() for term in link.terms) for line in opened.lines]
    best = max(counts, default=0)
    return max(0, counts.index(best) - 2) if best else 0


def _display(cursor: int, shown: Page, loc: int, num_lines: int) -> str:
    end = _end(shown, loc, num_lines)
    address = f" ({defused(unquote(shown.url))[:_URL_CHARS]})" if shown.url else ""
    numbered = (f"L{loc + i}: {line}" for i, line in enumerate(shown.lines[loc:end]))
    return (
        f"[{cursor}] {shown.title}{address}\n"
        f"**viewing lines [{loc} - {end - 1}] of {len(shown.lines) - 1}**\n\n" + "\n".join(numbered)
    )


def _end(shown: Page, loc: int, num_lines: int) -> int:
    """The line after the last one that is shown; always at least one is."""
    wanted = len(shown.lines) if num_lines <= 0 else min(loc + num_lines, len(shown.lines))
    limit = VIEW_CHARS if num_lines <= 0 else 4 * VIEW_CHARS
    size, end = 0, loc
    while end < wanted and (end == loc or size <= limit):
        size += len(shown.lines[end]) + 7
        end += 1
    return end


def _text(arguments: Mapping[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ToolFailureError(f"{name} is {value!r}; expected text")
    return value


def _whole(arguments: Mapping[str, Any], name: str, default: int) -> int:
    """A whole number; models write 3 as 3.0 or "3" at times."""
    value = arguments.get(name)
    if value is None:
        return default
    try:
        if isinstance(value, bool) or float(value) != int(float(value)):
            raise ValueError
        return int(float(value))
    except (TypeError, ValueError, OverflowError):
        raise ToolFailureError(f"{name} is {value!r}; expected a whole number") from None
