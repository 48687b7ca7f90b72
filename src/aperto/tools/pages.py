"""Pages as the browser shows them: numbered lines of text with numbered links."""

from __future__ import annotations

import dataclasses
import html.parser
import re
import textwrap
from collections.abc import Iterable
from urllib.parse import urljoin, urlsplit

LINE_WIDTH = 80
"""Characters of a line; longer ones are wrapped, as they were in the model's training."""
MAX_TEXT_CHARS = 2_000_000
"""Characters of a page that are kept."""
_TITLE_CHARS = 200
_BRACKETS = str.maketrans({"【": "〖", "】": "〗"})
_BLANKS = re.compile(r"[ \t\r\f\v\n]+")
_EMPTY_LINES = re.compile(r"\n{3,}")
_HIDDEN = frozenset({"script", "style", "noscript", "template", "svg", "iframe", "object"})
_HEADINGS = {f"h{level}": "#" * level for level in range(1, 7)}
_LISTED_BLOCKS = """
address article aside blockquote body dd div dl dt fieldset figure footer form header li main nav ol
p pre section table title tr ul
"""
_BLOCKS = frozenset(_LISTED_BLOCKS.split()) | frozenset(_HEADINGS)


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """Where a link of a page leads."""

    url: str
    """Address, absolute."""
    line: int | None = None
    """Line at which to show the page, from 0."""
    terms: tuple[str, ...] = ()
    """Words that were searched for; the page is shown where they first occur."""


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """Something the browser shows."""

    url: str
    """Address; empty for search results."""
    title: str
    """Title in one line."""
    lines: tuple[str, ...]
    """Text, wrapped."""
    links: tuple[Link, ...] = ()
    """Links by their ids, the numbers in the text."""
    source: str = ""
    """The text as it came."""


def page(url: str, title: str, text: str, links: Iterable[Link] = (), source: str = "") -> Page:
    """A page of text, whose links the text already names."""
    text = text[:MAX_TEXT_CHARS]
    one_line = _BLANKS.sub(" ", title).strip()[:_TITLE_CHARS]
    return Page(url, one_line or url, _wrapped(text), tuple(links), source or text)


def plain_page(url: str, title: str, text: str) -> Page:
    """A page of text without links; what looks like one in it is defused."""
    return page(url, title.translate(_BRACKETS), defused(text), source=text)


def html_page(url: str, source: str) -> Page:
    """A page from HTML: visible text, headings and lists marked, links numbered."""
    reader = _Reader(url)
    reader.feed(source)
    reader.close()
    title = reader.title or url
    return page(url, title.translate(_BRACKETS), reader.text(), reader.links, source)


def link_mark(link_id: int, text: str, url: str) -> str:
    """How a link stands in a text: ``【3†text†domain】``."""
    domain = urlsplit(url).netloc
    parts = [str(link_id), _BLANKS.sub(" ", defused(text)).replace("†", "+").strip() or url]
    return f"【{'†'.join([*parts, domain] if domain else parts)}】"


def defused(text: str) -> str:
    """The text without the brackets that only the browser's own marks have."""
    return text.translate(_BRACKETS)


def _wrapped(text: str) -> tuple[str, ...]:
    lines: list[str] = []
    for line in text.splitlines():
        lines += textwrap.wrap(
            line, LINE_WIDTH, replace_whitespace=False, drop_whitespace=False, tabsize=4
        ) or [""]
    return tuple(lines) or ("",)


class _Reader(html.parser.HTMLParser):
    """Collects the visible text of an HTML page."""

    def __init__(self, url: str) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[Link] = []
        self.title = ""
        self._base = url
        self._parts: list[str] = []
        self._hidden = ""
        self._depth = 0
        self._in_title = False
        self._in_pre = 0
        self._anchor: tuple[str, int] | None = None

    def text(self) -> str:
        """Everything that was collected."""
        text = "".join(self._parts)
        lines = [line if line.strip() else "" for line in text.split("\n")]
        return _EMPTY_LINES.sub("\n\n", "\n".join(line.rstrip() for line in lines)).strip("\n")

    def parse_marked_section(self, i: int, report: bool = True) -> int:
        """Read what follows ``<![``; where the library's assertions fail, as a comment."""
        try:
            return super().parse_marked_section(i, report)
        except AssertionError:
            return self.parse_bogus_comment(i)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin an element."""
        if self._hidden:
            self._depth += tag == self._hidden
            return
        values = {name: value or "" for name, value in attrs}
        if tag in _HIDDEN:
            self._hidden, self._depth = tag, 1
        elif tag == "title" and not self.title:
            self._in_title = True
        elif tag == "base" and values.get("href"):
            self._base = _joined(self._base, values["href"])
        elif tag == "a":
            self._end_anchor()
            self._begin_anchor(values.get("href", ""))
        elif tag == "img" and values.get("alt"):
            self._parts.append(f"[Image: {defused(values['alt'])}]")
        else:
            self._begin_block(tag)

    def handle_endtag(self, tag: str) -> None:
        """End an element."""
        if self._hidden:
            self._depth -= tag == self._hidden
            self._hidden = self._hidden if self._depth else ""
        elif tag == "title":
            self._in_title = False
        elif tag == "a":
            self._end_anchor()
        elif tag == "pre":
            self._in_pre = max(0, self._in_pre - 1)
            self._parts.append("\n")
        elif tag in ("td", "th"):
            self._parts.append(" | ")
        elif tag in _BLOCKS:
            self._parts.append("\n\n" if tag in _HEADINGS or tag == "p" else "\n")

    def handle_data(self, data: str) -> None:
        """Take text."""
        if self._hidden:
            return
        if self._in_title:
            self.title += data
        else:
            text = data if self._in_pre else _BLANKS.sub(" ", data)
            if text == " " and self._parts and self._parts[-1].endswith(("\n", " ")):
                return
            self._parts.append(defused(text))

    def close(self) -> None:
        """End of the page."""
        super().close()
        self._end_anchor()

    def _begin_block(self, tag: str) -> None:
        if tag == "br":
            self._parts.append("\n")
        elif tag == "hr":
            self._parts.append("\n---\n")
        elif tag in _HEADINGS:
            self._parts.append(f"\n\n{_HEADINGS[tag]} ")
        elif tag == "li":
            self._parts.append("\n- ")
        elif tag in _BLOCKS:
            self._in_pre += tag == "pre"
            self._parts.append("\n")

    def _begin_anchor(self, href: str) -> None:
        url = _joined(self._base, href.strip())
        if href.strip() and not href.startswith("#") and urlsplit(url).scheme in ("http", "https"):
            self._anchor = (url, len(self._parts))

    def _end_anchor(self) -> None:
        if self._anchor is None:
            return
        (url, begin), self._anchor = self._anchor, None
        text = "".join(self._parts[begin:])
        del self._parts[begin:]
        if text.strip():
            self._parts.append(link_mark(len(self.links), text, url))
            self.links.append(Link(url))


def _joined(base: str, href: str) -> str:
    try:
        joined = urljoin(base, href)
        urlsplit(joined)
    except ValueError:  # such as an unclosed bracket in the host
        return ""
    return joined
