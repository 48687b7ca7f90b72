"""Tools from short specifications, as the command line and settings name them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from aperto.config import service_key
from aperto.errors import UsageError
from aperto.tools.apply_patch import ApplyPatchTool
from aperto.tools.browser import BrowserTool
from aperto.tools.documents import Documents
from aperto.tools.fetch import FetchLimits
from aperto.tools.mcp import McpServer, McpTool
from aperto.tools.mcp_servers import SUFFIXES, read_servers
from aperto.tools.python import PythonTool
from aperto.tools.search import Backend, Exa, Searxng, You
from aperto.tools.tool import Tool

FORMS = (
    "python[:FOLDER]",
    "browser:FOLDER",
    "browser:searxng=URL",
    "browser:exa",
    "browser:you",
    "apply_patch:FOLDER",
    "mcp:COMMAND …",
    "mcp:URL",
    "mcp:FILE.json or .toml",
)
"""What a specification may look like."""
_KEYS = {"exa": "EXA_API_KEY", "you": "YDC_API_KEY"}


def open_tools(
    specs: Iterable[str], *, allow_unsandboxed: bool = False, allow_private: bool = False
) -> list[Tool]:
    """The tools that specifications name, in their order; close each when it is done with.

    Args:
        specs: what to open, see `FORMS`.
        allow_unsandboxed: whether python may run with the user's rights where there is no sandbox.
        allow_private: whether the browser may open addresses of private networks.

    Raises:
        UsageError: a specification is of no known form, or a tool is named twice.
        ConfigError: a folder or file it names is not there or not right.
        MissingExtraError: a package it needs is not installed.
        ResourceError: it cannot be had on this machine.
    """
    opened: list[Tool] = []
    try:
        for spec in specs:
            _open_one(spec, opened, allow_unsandboxed, FetchLimits(allow_private=allow_private))
    except BaseException:
        close_tools(opened)
        raise
    return opened


def close_tools(tools: Iterable[Tool]) -> None:
    """Close all of them."""
    for tool in tools:
        tool.close()


def _open_one(
    spec: str, opened: list[Tool], allow_unsandboxed: bool, fetch_limits: FetchLimits
) -> None:
    kind, _, rest = spec.strip().partition(":")
    rest = rest.strip()
    if kind == "mcp" and rest:
        for server in _servers(rest):
            taken = {function.name for tool in opened for function in tool.functions}
            opened.append(McpTool(server, taken=taken))
        return
    makers: dict[str, Callable[[], Tool]] = {
        "python": lambda: PythonTool(
            data=_folder(rest) if rest else None, allow_unsandboxed=allow_unsandboxed
        ),
        "browser": lambda: BrowserTool(_backend(rest, fetch_limits)),
        "apply_patch": lambda: ApplyPatchTool(_folder(rest)),
    }
    if kind not in makers or (not rest and kind != "python"):
        raise UsageError(f"tool is {spec!r}; expected one of {', '.join(FORMS)}")
    if any(tool.name == kind for tool in opened):
        raise UsageError(f"the tool {kind} is given twice; expected it once")
    opened.append(makers[kind]())


def _folder(text: str) -> Path:
    return Path(text).expanduser()


def _backend(text: str, limits: FetchLimits) -> Backend:
    if text.startswith("searxng="):
        return Searxng(text.removeprefix("searxng="), limits)
    if text not in _KEYS:
        return Documents(_folder(text))
    key = service_key(_KEYS[text])
    if key is None:
        raise UsageError(f"browser:{text} needs a key; set {_KEYS[text]} in the environment")
    return Exa(key, limits) if text == "exa" else You(key, limits)


def _servers(text: str) -> Sequence[McpServer]:
    if text.startswith(("http://", "https://")):
        return [McpServer(name=text.split("/")[2].split(":")[0], url=text)]
    if Path(text).suffix in SUFFIXES and Path(text).expanduser().is_file():
        return read_servers(Path(text).expanduser())
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"mcp command is {text!r}: {error}") from None
    return [McpServer(name=Path(words[0]).stem, command=words[0], args=tuple(words[1:]))]
