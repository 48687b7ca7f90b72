"""Tools of MCP servers: each server's tools become functions of the model.

The client of the `mcp` package is asynchronous; it lives in a thread of its own with an event loop,
and calls are handed over to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import tempfile
import threading
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from aperto.errors import MissingExtraError, ResourceError
from aperto.harmony.messages import FunctionTool, Message, ToolNamespace
from aperto.tools.tool import ToolFailureError, answer, arguments_of, clipped

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal
    from mcp import ClientSession

MAX_RESULT_CHARS = 40_000
"""Characters of a result that are kept."""
_CONNECT_S = 30.0
_CALL_S = 120.0
_MAX_LISTS = 100
_NAME_CHARS = 64
_FUNCTIONS = "functions."
_ODD = re.compile(r"[^a-zA-Z0-9_-]+")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class McpServer:
    """How a server is reached: by a command to start, or by an address."""

    name: str
    """Name among the servers."""
    command: str = ""
    """Program that speaks MCP on its standard input and output."""
    args: tuple[str, ...] = ()
    """Its arguments."""
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Environment variables added to the few that are passed on."""
    cwd: Path | None = None
    """Folder to start it in."""
    url: str = ""
    """Address of a server that speaks streamable HTTP."""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Headers of each request to it, such as an authorization."""


class McpTool:
    """The tools of one MCP server.

    Args:
        server: how it is reached.
        taken: names of functions that others have; those of this server get its name before them.
        call_timeout_s: seconds one call may take.

    Raises:
        MissingExtraError: the `mcp` package is not installed.
        ResourceError: the server cannot be started or reached.
    """

    namespace: ToolNamespace | None = None
    """None: its tools are announced as functions."""

    def __init__(
        self,
        server: McpServer,
        *,
        taken: Collection[str] = (),
        call_timeout_s: float = _CALL_S,
    ) -> None:
        self.name = f"mcp:{server.name}"
        """Its name in specifications."""
        self._server = server
        self._call_timeout_s = call_timeout_s
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()
        try:
            self._portal, self._session, listed = self._connect()
        except BaseException:
            self._stack.close()
            raise
        self._names = _unique_names(server.name, [str(entry["name"]) for entry in listed], taken)
        self.functions: tuple[FunctionTool, ...] = tuple(
            FunctionTool(name, str(entry.get("description") or ""), entry.get("inputSchema"))
            for name, entry in zip(self._names, listed, strict=True)
        )
        """The server's tools as the developer message announces them."""

    def accepts(self, recipient: str) -> bool:
        """Calls of the server's tools, ``functions.NAME``."""
        return recipient.removeprefix(_FUNCTIONS) in self._names

    def run(self, call: Message) -> tuple[Message, ...]:
        """Have the server answer a call."""
        name = self._names.get((call.recipient or "").removeprefix(_FUNCTIONS), "")
        with self._lock:
            try:
                text = self._call(name, arguments_of(call))
            except ToolFailureError as error:
                text = f"Error: {error}"
        return answer(call, clipped(text, MAX_RESULT_CHARS))

    def close(self) -> None:
        """End the connection, and the server where it was started here."""
        with self._lock, contextlib.suppress(Exception):  # a server may go before it is told to
            self._stack.close()

    def _connect(self) -> tuple[BlockingPortal, ClientSession, list[Mapping[str, Any]]]:
        try:
            from anyio.from_thread import start_blocking_portal
            from mcp import ClientSession  # noqa: F401
        except ImportError:
            raise MissingExtraError("mcp", "tools") from None
        portal = self._stack.enter_context(start_blocking_portal("asyncio"))
        file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        log = self._stack.enter_context(file)
        opened = _opened(self._server, log)
        try:
            session = self._stack.enter_context(portal.wrap_async_context_manager(opened))
            return portal, session, portal.call(_list_tools, session)
        except Exception as error:
            raise ResourceError(self._why_not(error, log)) from error

    def _why_not(self, error: Exception, log: IO[str]) -> str:
        server = self._server
        reached = server.url or " ".join((server.command, *server.args))
        log.seek(0)
        said = log.read(1 << 16).strip().splitlines()
        reason = _innermost(error)
        cause = said[-1] if said else str(reason) or type(reason).__name__
        return (
            f"the MCP server {server.name!r} ({reached}) cannot be used: {cause}; expected a "
            "command that speaks MCP on standard input and output, or a streamable HTTP address"
        )

    def _call(self, name: str, arguments: Mapping[str, Any]) -> str:
        try:
            result = self._portal.call(
                _call_tool, self._session, name, dict(arguments), self._call_timeout_s
            )
        except TimeoutError:
            raise ToolFailureError(f"no answer within {self._call_timeout_s:g} s") from None
        except Exception as error:  # whatever a foreign server causes is told to the model
            reason = _innermost(error)
            raise ToolFailureError(str(reason) or type(reason).__name__) from None
        text = _result_text(result)
        if result.get("isError"):
            raise ToolFailureError(text)
        return text or "(no output)"


@contextlib.asynccontextmanager
async def _opened(server: McpServer, log: IO[str]) -> AsyncIterator[ClientSession]:
    """A session that has shaken hands."""
    import anyio
    from mcp import ClientSession

    async with contextlib.AsyncExitStack() as stack:
        streams = await _streams(server, log, stack)
        session = await stack.enter_async_context(ClientSession(*streams[:2]))
        with anyio.fail_after(_CONNECT_S):
            await session.initialize()
        yield session


async def _streams(
    server: McpServer, log: IO[str], stack: contextlib.AsyncExitStack
) -> Sequence[Any]:
    if server.url:
        from mcp.client import streamable_http as http

        client = http.create_mcp_http_client(  # type: ignore[attr-defined]
            headers=dict(server.headers)
        )
        await stack.enter_async_context(client)
        opened = http.streamable_http_client(server.url, http_client=client)
        return await stack.enter_async_context(opened)
    from mcp import StdioServerParameters, stdio_client

    parameters = StdioServerParameters(
        command=server.command,
        args=list(server.args),
        env=dict(server.env) or None,
        cwd=server.cwd,
    )
    return await stack.enter_async_context(stdio_client(parameters, errlog=log))  # type: ignore[arg-type]


async def _list_tools(session: ClientSession) -> list[Mapping[str, Any]]:
    import anyio
    from mcp.types import PaginatedRequestParams

    found: list[Mapping[str, Any]] = []
    cursor = None
    with anyio.fail_after(_CONNECT_S):
        for _ in range(_MAX_LISTS):
            listed = await session.list_tools(params=PaginatedRequestParams(cursor=cursor))
            page = listed.model_dump(by_alias=True, mode="json")
            found += page["tools"]
            cursor = page.get("nextCursor")
            if not cursor:
                break
    return found


async def _call_tool(
    session: ClientSession, name: str, arguments: dict[str, Any], timeout_s: float
) -> Mapping[str, Any]:
    import anyio

    with anyio.fail_after(timeout_s):
        result = await session.call_tool(name, arguments)
    return result.model_dump(by_alias=True, mode="json")


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _unique_names(server: str, names: Sequence[str], taken: Collection[str]) -> dict[str, str]:
    """Names of functions and, for each, the server's own name."""
    found: dict[str, str] = {}
    for name in names:
        plain = _ODD.sub("_", name)[:_NAME_CHARS] or "tool"
        if plain in taken or plain in found:
            plain = _ODD.sub("_", f"{server}_{plain}")[:_NAME_CHARS]
        while plain in taken or plain in found:
            plain = plain[: _NAME_CHARS - 1] + "_"
            if plain in found and len(plain) == _NAME_CHARS:
                plain = f"tool_{len(found)}"
        found[plain] = name
    return found


def _result_text(result: Mapping[str, Any]) -> str:
    """A result as text; what is no text is named."""
    parts = [_block_text(block) for block in result.get("content") or ()]
    structured = result.get("structuredContent")
    if not parts and structured is not None:
        return json.dumps(structured, ensure_ascii=False)
    return "\n".join(parts)


def _block_text(block: Mapping[str, Any]) -> str:
    kind = block.get("type")
    if kind == "text":
        return str(block.get("text", ""))
    if kind == "resource_link":
        return f"[{block.get('name', 'resource')}: {block.get('uri')}]"
    if kind == "resource":
        resource = block.get("resource") or {}
        return str(resource.get("text") or f"[{resource.get('mimeType')}: {resource.get('uri')}]")
    return f"[{kind} of type {block.get('mimeType')}, which cannot be shown]"
