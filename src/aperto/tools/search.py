"""Where the browser's searches go: services on the web, each behind its own key or address."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from aperto.tools.fetch import FetchLimits, fetch
from aperto.tools.pages import Page
from aperto.tools.tool import ToolFailureError

_TIMEOUT_S = 20.0
_SUMMARY_CHARS = 500
_TAGS = re.compile(r"<[^>]*>")


@dataclasses.dataclass(frozen=True, slots=True)
class Hit:
    """One search result."""

    title: str
    """Its title."""
    url: str
    """Its address."""
    summary: str = ""
    """What it is about, or where the words occur."""
    terms: tuple[str, ...] = ()
    """The words searched for, where the page shall be shown at their first occurrence."""


class Backend(Protocol):
    """Finds and fetches pages. Failures are raised as ToolFailureError."""

    source: str
    """What is announced to the model: ``web`` or ``documents``."""

    def search(self, query: str, topn: int) -> list[Hit]:
        """At most `topn` results, best first."""

    def fetch(self, url: str) -> Page:
        """The page at an address."""

    def close(self) -> None:
        """Let go of what it holds."""


class WebBackend:
    """A search service; pages are fetched from where they lie, not through the service.

    Args:
        limits: what fetching a page may take.
    """

    source = "web"
    """What is announced to the model."""

    def __init__(self, limits: FetchLimits | None = None) -> None:
        self._limits = limits or FetchLimits()

    def search(self, query: str, topn: int) -> list[Hit]:
        """At most `topn` results, best first. Raises ToolFailureError."""
        return self._search(query, topn)[:topn]

    def fetch(self, url: str) -> Page:
        """The page at an address. Raises ToolFailureError."""
        return fetch(url, self._limits)

    def close(self) -> None:
        """Nothing is held."""

    def _search(self, query: str, topn: int) -> list[Hit]:
        raise NotImplementedError


class Searxng(WebBackend):
    """An instance of SearXNG that answers in JSON (``formats: [html, json]`` in its settings)."""

    def __init__(self, url: str, limits: FetchLimits | None = None) -> None:
        super().__init__(limits)
        self._url = url.rstrip("/")

    def _search(self, query: str, topn: int) -> list[Hit]:
        data = _request("GET", f"{self._url}/search", params={"q": query, "format": "json"})
        return _hits(data.get("results"), "content")


class Exa(WebBackend):
    """The search of exa.ai."""

    def __init__(
        self, key: str, limits: FetchLimits | None = None, url: str = "https://api.exa.ai"
    ) -> None:
        super().__init__(limits)
        self._key, self._url = key, url

    def _search(self, query: str, topn: int) -> list[Hit]:
        body = {"query": query, "numResults": topn, "contents": {"summary": True}}
        headers = {"x-api-key": self._key}
        data = _request("POST", f"{self._url}/search", json=body, headers=headers)
        return _hits(data.get("results"), "summary", "text")


class You(WebBackend):
    """The search of you.com."""

    def __init__(
        self, key: str, limits: FetchLimits | None = None, url: str = "https://api.ydc-index.io"
    ) -> None:
        super().__init__(limits)
        self._key, self._url = key, url

    def _search(self, query: str, topn: int) -> list[Hit]:
        params = {"query": query, "count": str(topn)}
        headers = {"x-api-key": self._key}
        data = _request("GET", f"{self._url}/v1/search", params=params, headers=headers)
        results = data.get("results")
        groups = results if isinstance(results, Mapping) else {}
        found = [entry for name in ("web", "news") for entry in _list(groups.get(name))]
        return _hits(found, "snippets", "description")


def _request(method: str, url: str, **options: Any) -> Mapping[str, Any]:
    import httpx

    try:
        response = httpx.request(method, url, timeout=_TIMEOUT_S, **options)
        response.raise_for_status()
        data = response.json()
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        raise ToolFailureError(f"the search service answered with status {status}") from None
    except (httpx.HTTPError, ValueError) as error:
        raise ToolFailureError(f"the search service failed: {type(error).__name__}") from None
    if not isinstance(data, Mapping):
        raise ToolFailureError("the search service answered with something else than results")
    return data


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _hits(entries: Any, *summary_fields: str) -> list[Hit]:
    found = []
    for entry in _list(entries):
        if isinstance(entry, Mapping) and isinstance(entry.get("url"), str):
            summary = next(filter(None, (_text(entry.get(field)) for field in summary_fields)), "")
            title = _text(entry.get("title")) or entry["url"]
            found.append(Hit(title, entry["url"], summary[:_SUMMARY_CHARS]))
    return found


def _text(value: Any) -> str:
    if isinstance(value, Iterable) and not isinstance(value, str | Mapping):
        return " … ".join(filter(None, map(_text, value)))
    return " ".join(_TAGS.sub("", value).split()) if isinstance(value, str) else ""
