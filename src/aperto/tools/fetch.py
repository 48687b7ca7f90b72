"""Fetches pages for a model that names the address: never from a private network.

The address that was checked is the one connected to, at each redirect, so that a name server cannot
answer differently the second time.
"""

from __future__ import annotations

import dataclasses
import io
import ipaddress
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aperto.tools.pages import Page, html_page, plain_page
from aperto.tools.tool import ToolFailureError

if TYPE_CHECKING:
    import httpx

_REDIRECTS = 5
_MAX_PDF_PAGES = 500
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_AGENT = "aperto-browser"
_HTML_TYPES = ("text/html", "application/xhtml+xml")
_TEXT_TYPES = ("application/json", "application/xml", "application/javascript", "")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """What fetching a page may take."""

    allow_private: bool = False
    """Whether addresses of this machine and of private networks may be opened."""
    max_bytes: int = 4 << 20
    """Size of a page, unpacked."""
    timeout_s: float = 20.0
    """Seconds for the whole page, redirects included."""


def fetch(url: str, limits: FetchLimits | None = None) -> Page:
    """The page at an http or https address.

    Raises ToolFailureError, with a text for the model, where it cannot be had.
    """
    import httpx

    limits = limits or FetchLimits()
    deadline = time.monotonic() + limits.timeout_s
    try:
        with httpx.Client(trust_env=False, timeout=limits.timeout_s) as client:
            for _ in range(_REDIRECTS + 1):
                with _response(client, url, limits) as response:
                    location = response.headers.get("location")
                    if response.is_redirect and location:
                        url = str(httpx.URL(url).join(location))
                        continue
                    if response.status_code >= 400:
                        raise ToolFailureError(f"{_short(url)}: status {response.status_code}")
                    return _page(url, response, _body(response, limits, deadline))
    except (httpx.HTTPError, httpx.InvalidURL, zlib.error) as error:
        raise ToolFailureError(f"{_short(url)}: {error or type(error).__name__}") from None
    raise ToolFailureError(f"{_short(url)}: more than {_REDIRECTS} redirects")


@contextmanager
def _response(client: httpx.Client, url: str, limits: FetchLimits) -> Iterator[httpx.Response]:
    import httpx

    target = httpx.URL(url)
    if target.scheme not in ("http", "https") or not target.host:
        raise ToolFailureError(f"{_short(url)}: only http and https addresses can be opened")
    port = target.port or (443 if target.scheme == "https" else 80)
    address = checked_address(target.host, port, limits)
    request = client.build_request(
        "GET",
        target.copy_with(host=address, userinfo=b""),
        headers={
            "host": target.netloc.decode("ascii"),
            "user-agent": _AGENT,
            "accept": "text/html, text/plain, application/pdf;q=0.9, */*;q=0.5",
            "accept-encoding": "gzip",
        },
        extensions={"sni_hostname": target.raw_host.decode("ascii")},
    )
    response = client.send(request, stream=True, follow_redirects=False)
    try:
        yield response
    finally:
        response.close()


def checked_address(host: str, port: int, limits: FetchLimits) -> str:
    """An address of `host` that may be connected to. Raises ToolFailureError for none."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ToolFailureError(f"{_short(host)}: no such host ({error})") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not limits.allow_private:
        private = [address for address in addresses if not is_public(address)]
        if private:
            raise ToolFailureError(
                f"{_short(host)} is in a private network ({private[0]}), which may not be opened"
            )
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, also one wrapped in another."""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


def _body(response: httpx.Response, limits: FetchLimits, deadline: float) -> bytes:
    """The unpacked body, within the limits whatever the server sends."""
    packed = response.headers.get("content-encoding", "identity").lower()
    if packed not in ("identity", "gzip", "deflate"):
        raise ToolFailureError(f"the page is packed as {packed!r}, which was not asked for")
    unpacker = None if packed == "identity" else zlib.decompressobj(zlib.MAX_WBITS | 32)
    body = bytearray()
    for piece in response.iter_raw():
        room = limits.max_bytes + 1 - len(body)
        body += unpacker.decompress(piece, room) if unpacker else piece
        if len(body) > limits.max_bytes:
            raise ToolFailureError(f"the page is larger than {limits.max_bytes} bytes")
        if time.monotonic() > deadline:
            raise ToolFailureError(f"the page took longer than {limits.timeout_s:g} s")
    return bytes(body)


def _page(url: str, response: httpx.Response, body: bytes) -> Page:
    kind = response.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "application/pdf" or body.startswith(b"%PDF-"):
        return plain_page(url, urlsplit(url).path.rsplit("/", 1)[-1], pdf_text(body))
    if not (kind.startswith("text/") or kind in (*_HTML_TYPES, *_TEXT_TYPES)):
        raise ToolFailureError(f"{_short(url)}: is {kind}; only text and PDF can be read")
    text = _decoded(body, response.charset_encoding)
    if kind in _HTML_TYPES or text.lstrip()[:15].lower().startswith(("<!doctype html", "<html")):
        return html_page(url, text)
    return plain_page(url, url, text)


def _decoded(body: bytes, charset: str | None) -> str:
    try:
        return body.decode(charset or "utf-8", "replace")
    except LookupError:
        return body.decode("utf-8", "replace")


def pdf_text(data: bytes) -> str:
    """Text of a PDF file, page by page. Raises ToolFailureError where there is none."""
    try:
        import pypdf
        from pypdf.errors import PyPdfError
    except ImportError:
        raise ToolFailureError(
            "this is a PDF file; reading it needs: pip install 'aperto[tools]'"
        ) from None
    try:
        pages = pypdf.PdfReader(io.BytesIO(data)).pages[:_MAX_PDF_PAGES]
        texts = [f"## Page {n}\n\n{sheet.extract_text()}" for n, sheet in enumerate(pages, 1)]
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ToolFailureError(f"the PDF file cannot be read: {error}") from None
    return "\n\n".join(texts)


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "…"
