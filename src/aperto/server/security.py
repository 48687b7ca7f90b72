"""Who may come in and with how much: keys, hosts, origins, sizes."""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aperto.server.errors import ApiError, error_response
from aperto.server.metrics import Metrics
from aperto.server.settings import ServerSettings

_OPEN_PATHS = frozenset({"/", "/health", "/favicon.ico"})
_OPEN_PREFIX = "/web/"
_POLICY_VIOLATION = 1008
_LOCAL_NAMES = frozenset({"localhost", "testserver"})


class Guard:
    """ASGI middleware that turns away requests which may not come in, and counts all.

    Args:
        app: the application behind it.
        settings: keys, limits and allowed origins.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._keys = [key.encode() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it with an error."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send, refusal)
            return
        with self._metrics.open_requests.track_inprogress():
            await self._http(scope, receive, self._counting(scope, send), refusal)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        if self._settings.check_host and not _is_local(headers.get("host", "")):
            return ApiError(
                403,
                f"the Host header is {headers.get('host', '')!r}; expected this machine's name or "
                "address; to be reached by other names, start the server with --host or a key",
                code="host_not_allowed",
            )
        if scope["type"] == "websocket" and not self._may_open(headers):
            return ApiError(403, "web pages of other origins may not connect", code="bad_origin")
        path = scope["path"]
        is_open = path in _OPEN_PATHS or path.startswith(_OPEN_PREFIX)
        if not self._keys or is_open or self._has_key(headers):
            return None
        return ApiError(
            401,
            "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Every key is compared, so that the time tells nothing about which one was near.
        matches = [hmac.compare_digest(given.encode(), key) for key in self._keys]
        return any(matches)

    def _may_open(self, headers: Headers) -> bool:
        """Whether a WebSocket's origin is this server or an allowed one: browsers do not ask."""
        origin = headers.get("origin")
        allowed = self._settings.cors_origins
        if origin is None or "*" in allowed or origin in allowed:
            return True
        return urlsplit(origin).netloc == headers.get("host", "")

    async def _http(
        self, scope: Scope, receive: Receive, send: Send, refusal: ApiError | None
    ) -> None:
        limit = self._settings.max_body_bytes
        length = Headers(scope=scope).get("content-length", "0")
        if refusal is None and length.isdigit() and int(length) > limit:
            refusal = _too_large(limit)
        if refusal is not None:
            await error_response(scope["path"], refusal)(scope, receive, send)
            return
        body = _LimitedBody(scope, receive, send, limit)
        await self._app(scope, body.receive, body.send)

    async def _websocket(
        self, scope: Scope, receive: Receive, send: Send, refusal: ApiError | None
    ) -> None:
        if refusal is None:
            await self._app(scope, receive, send)
            return
        await send(
            {"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": refusal.message[:120]}
        )

    def _counting(self, scope: Scope, send: Send) -> Send:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                path = getattr(route, "path", "other")
                self._metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        return counted


class _LimitedBody:
    """A request whose body may turn out larger than it said; it is then answered with 413."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._limit = limit
        self._num_bytes = 0
        self._is_refused = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._num_bytes += len(message.get("body", b""))
            if self._num_bytes > self._limit:
                await self._refuse()
                return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        if not self._is_refused:
            await self._send(message)

    async def _refuse(self) -> None:
        if self._is_refused:
            return
        self._is_refused = True
        response = error_response(self._scope["path"], _too_large(self._limit))
        await response(self._scope, self._receive, self._send)


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"the body has more than {limit} bytes, the most this server takes; send less or start "
        "the server with a larger --max-body",
        code="request_too_large",
    )


def _is_local(host: str) -> bool:
    """Whether a Host header names this machine or an address, which no foreign name resolves to."""
    name = urlsplit(f"//{host}").hostname or ""
    if name in _LOCAL_NAMES:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
