"""Lists of MCP servers in the files that other clients use, JSON or TOML."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aperto.errors import ConfigError
from aperto.tools.mcp import McpServer

_TABLES = ("mcpServers", "mcp_servers", "servers")
SUFFIXES = (".json", ".toml")
"""Kinds of files that are read."""


def read_servers(path: Path) -> list[McpServer]:
    """The servers of a file, without those that are switched off.

    The table is ``mcpServers`` or ``servers`` in JSON, ``mcp_servers`` in TOML.

    Raises:
        ConfigError: it cannot be read, or holds no servers.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not {path.suffix[1:].upper()}: {error}") from error
    table = _table(path, data)
    return [_server(path, name, entry) for name, entry in table.items() if not _is_off(entry)]


def _table(path: Path, data: Any) -> Mapping[str, Any]:
    if isinstance(data, Mapping):
        found = next((data[name] for name in _TABLES if name in data), None)
        if isinstance(found, Mapping) and found:
            return found
    raise ConfigError(f"{path} lists no MCP servers; expected a table {' or '.join(_TABLES)}")


def _is_off(entry: Any) -> bool:
    return isinstance(entry, Mapping) and (
        entry.get("disabled") is True or entry.get("enabled") is False
    )


def _server(path: Path, name: str, entry: Any) -> McpServer:
    where = f"{path}: server {name!r}"
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where} is {entry!r}; expected a table")
    command, url = entry.get("command", ""), entry.get("url", entry.get("httpUrl", ""))
    if not isinstance(command, str) or not isinstance(url, str) or bool(command) == bool(url):
        raise ConfigError(f"{where} has command {command!r} and url {url!r}; expected one of them")
    if entry.get("type") == "sse":
        raise ConfigError(f"{where} has type 'sse'; expected stdio or streamable HTTP ('http')")
    args = entry.get("args", [])
    if not isinstance(args, list) or not all(isinstance(arg, str) for arg in args):
        raise ConfigError(f"{where} has args {args!r}; expected a list of strings")
    cwd = entry.get("cwd")
    return McpServer(
        name=name,
        command=command,
        args=tuple(args),
        env=_strings(where, "env", entry.get("env", {})),
        cwd=Path(cwd).expanduser() if isinstance(cwd, str) else None,
        url=url,
        headers=_strings(where, "headers", entry.get("headers", entry.get("http_headers", {}))),
    )


def _strings(where: str, field: str, value: Any) -> Mapping[str, str]:
    if isinstance(value, Mapping) and all(isinstance(text, str) for text in value.values()):
        return dict(value)
    raise ConfigError(f"{where} has {field} of another kind; expected a table of strings")
