"""The web page at `/`: files of `web/`, served with strict headers and cached by their hash."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import re
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

from fastapi import APIRouter, Request, Response

router = APIRouter(include_in_schema=False)

MEDIA_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "woff2": "font/woff2",
}
"""Types of what is served, by suffix; other files (licences) are not served."""

SECURITY_HEADERS: Final = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "font-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""What keeps model output inside the page: no outside host, no inline script, no HTML strings."""

_METHODS = ["GET", "HEAD"]
_BUILD = re.compile(r"[0-9a-f]{16}/")
_COMPRESSED = ("css", "html", "js", "svg")
_FOREVER = "public, max-age=31536000, immutable"
_CHECK_FIRST = "no-cache"


@dataclasses.dataclass(frozen=True, slots=True)
class Asset:
    """One served file, held in memory."""

    body: bytes
    """Its bytes as they are."""
    zipped: bytes | None
    """The same through gzip; None where that saves nothing."""
    media_type: str
    """Its Content-Type."""
    etag: str
    """Its quoted hash."""


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """All that is served."""

    build: str
    """Hash over all files; their URLs carry it, so that browsers may keep them forever."""
    assets: dict[str, Asset]
    """Files by their path below `web/`."""


@functools.cache
def site() -> Site:
    """The files of the page, read once."""
    files = dict(_walk(resources.files("aperto.server") / "web", ""))
    build = _build(files)
    files["index.html"] = files["index.html"].replace(b'="web/', f'="web/{build}/'.encode())
    return Site(build, {path: _asset(path, body) for path, body in files.items()})


@router.api_route("/", methods=_METHODS)
def page(request: Request) -> Response:
    """The page itself."""
    return _respond(request, site().assets["index.html"], _CHECK_FIRST)


@router.api_route("/web/{path:path}", methods=_METHODS)
def asset(path: str, request: Request) -> Response:
    """A file of the page; below the hash of this build it never changes."""
    prefix = _BUILD.match(path)
    name = path[prefix.end() :] if prefix else path
    found = site().assets.get(name)
    if found is None or name == "index.html":
        return Response("Not found\n", 404, SECURITY_HEADERS, "text/plain; charset=utf-8")
    is_current = prefix is not None and prefix.group() == f"{site().build}/"
    return _respond(request, found, _FOREVER if is_current else _CHECK_FIRST)


def _walk(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    files: list[tuple[str, bytes]] = []
    for entry in folder.iterdir():
        path = f"{prefix}{entry.name}"
        if entry.is_dir():
            files += _walk(entry, f"{path}/")
        elif _suffix(path) in MEDIA_TYPES:
            files.append((path, entry.read_bytes()))
    return files


def _build(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for path, body in sorted(files.items()):
        digest.update(f"{path}\0{len(body)}\0".encode() + body)
    return digest.hexdigest()[:16]


def _asset(path: str, body: bytes) -> Asset:
    suffix = _suffix(path)
    zipped = gzip.compress(body, mtime=0) if suffix in _COMPRESSED else None
    return Asset(
        body=body,
        zipped=zipped if zipped is not None and len(zipped) < len(body) else None,
        media_type=MEDIA_TYPES[suffix],
        etag=f'W/"{hashlib.sha256(body).hexdigest()[:32]}"',
    )


def _suffix(path: str) -> str:
    return path.rpartition(".")[2]


def _respond(request: Request, found: Asset, caching: str) -> Response:
    headers = {
        **SECURITY_HEADERS,
        "Cache-Control": caching,
        "ETag": found.etag,
        "Vary": "Accept-Encoding",
    }
    if found.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    body = found.body
    if found.zipped is not None and "gzip" in request.headers.get("accept-encoding", ""):
        body, headers["Content-Encoding"] = found.zipped, "gzip"
    return Response(body, 200, headers, found.media_type)
