"""MCP servers of our own, over stdio and streamable HTTP."""

from __future__ import annotations

import builtins
import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aperto.errors import ConfigError, MissingExtraError, ResourceError
from aperto.harmony.messages import call
from aperto.tools import close_tools, open_tools
from aperto.tools.mcp import MAX_RESULT_CHARS, McpServer, McpTool, _unique_names
from aperto.tools.mcp_servers import read_servers

pytest.importorskip("mcp")
SCRIPT = str(Path(__file__).with_name("mcp_server.py"))
STDIO = McpServer(name="own", command=sys.executable, args=(SCRIPT,), env={"GREETING": "hello"})


def ask(tool: McpTool, name: str, **arguments: object) -> str:
    (result,) = tool.run(call(f"functions.{name}", json.dumps(arguments)))
    assert (result.role, result.name) == ("tool", f"functions.{name}")
    return result.text


@contextlib.contextmanager
def http_server() -> Iterator[str]:
    """The address of the test server over streamable HTTP."""
    import uvicorn
    from tests.tools.mcp_server import server

    config = uvicorn.Config(server.streamable_http_app(), port=0, log_level="error")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.02)
    port = running.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        running.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def stdio_tool() -> Iterator[McpTool]:
    tool = McpTool(STDIO, call_timeout_s=5.0)
    yield tool
    tool.close()


def test_tools_of_a_command_become_functions(stdio_tool: McpTool) -> None:
    by_name = {function.name: function for function in stdio_tool.functions}
    assert set(by_name) == {"add", "fail", "wait", "flood", "odd_name_", "leave"}
    assert by_name["add"].description == "Add two numbers."
    parameters = by_name["add"].parameters
    assert parameters is not None
    assert parameters["required"] == ["a", "b"]
    assert stdio_tool.accepts("functions.add")
    assert not stdio_tool.accepts("functions.subtract")


def test_calls_are_answered(stdio_tool: McpTool) -> None:
    assert ask(stdio_tool, "add", a=40, b=2) == "42"
    assert ask(stdio_tool, "odd_name_") == "hello"


def test_failures_are_told_to_the_model(stdio_tool: McpTool) -> None:
    assert ask(stdio_tool, "fail", why="no bread").startswith("Error: ")
    assert ask(stdio_tool, "add", a="x").startswith("Error: ")
    (result,) = stdio_tool.run(call("functions.add", "[1, 2]"))
    assert "expected an object" in result.text


def test_a_flood_is_cut(stdio_tool: McpTool) -> None:
    text = ask(stdio_tool, "flood")
    assert len(text) < MAX_RESULT_CHARS + 100
    assert "characters left out" in text


def test_a_slow_call_ends_and_the_next_one_works() -> None:
    tool = McpTool(STDIO, call_timeout_s=0.5)
    assert "no answer within 0.5 s" in ask(tool, "wait", seconds=2.0)
    tool.close()


def test_a_server_that_dies_is_told_and_closing_still_works() -> None:
    tool = McpTool(STDIO, call_timeout_s=5.0)
    assert ask(tool, "leave").startswith("Error: ")
    assert ask(tool, "add", a=1, b=2).startswith("Error: ")
    tool.close()


def test_streamable_http() -> None:
    with http_server() as url:
        (tool,) = open_tools([f"mcp:{url}"])
        assert isinstance(tool, McpTool)
        assert ask(tool, "add", a=1, b=2) == "3"
        tool.close()


def test_several_servers_from_a_file(tmp_path: Path) -> None:
    entry = {"command": sys.executable, "args": [SCRIPT]}
    servers = {"one": entry, "two": entry, "off": entry | {"disabled": True}}
    path = tmp_path / "servers.json"
    path.write_text(json.dumps({"mcpServers": servers}))
    tools = open_tools([f"mcp:{path}"])
    try:
        first, second = tools
        assert "add" in {function.name for function in first.functions}
        assert "two_add" in {function.name for function in second.functions}
        assert isinstance(second, McpTool)
        assert ask(second, "two_add", a=2, b=2) == "4"
    finally:
        close_tools(tools)


@pytest.mark.parametrize(
    ("server", "message"),
    [
        (McpServer(name="none", command="/does/not/exist"), "cannot be used"),
        (McpServer(name="bad", command=sys.executable, args=(SCRIPT, "--broken")), "own complaint"),
        (McpServer(name="gone", url="http://127.0.0.1:9/mcp"), "cannot be used"),
    ],
)
def test_a_server_that_cannot_be_used_is_named(server: McpServer, message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        McpTool(server)


def test_without_the_package_the_install_line_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name == "mcp":
            raise ImportError(name)
        return real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'aperto\[tools\]'"):
        McpTool(STDIO)


def test_toml_as_codex_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        '[mcp_servers.docs]\ncommand = "npx"\nargs = ["-y", "docs"]\nenv = {A = "b"}\n'
        '[mcp_servers.web]\nurl = "https://a.test/mcp"\nhttp_headers = {Authorization = "x"}\n'
        '[mcp_servers.off]\ncommand = "x"\nenabled = false\n'
    )
    docs, web = read_servers(path)
    assert (docs.command, docs.args, docs.env) == ("npx", ("-y", "docs"), {"A": "b"})
    assert (web.url, web.headers) == ("https://a.test/mcp", {"Authorization": "x"})


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"mcpServers": {}}',
        '{"mcpServers": {"a": 3}}',
        '{"mcpServers": {"a": {}}}',
        '{"mcpServers": {"a": {"command": "x", "url": "y"}}}',
        '{"mcpServers": {"a": {"command": "x", "args": "y"}}}',
        '{"mcpServers": {"a": {"command": "x", "env": {"A": 1}}}}',
        '{"mcpServers": {"a": {"url": "http://x", "type": "sse"}}}',
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "servers.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"servers\.json"):
        read_servers(path)


def test_names_are_unique_and_of_plain_letters() -> None:
    names = _unique_names("s", ["a b", "a_b", "x" * 100, "x" * 99, "", "taken"], {"taken"})
    assert list(names.values()) == ["a b", "a_b", "x" * 100, "x" * 99, "", "taken"]
    assert all(0 < len(name) <= 64 and name.replace("_", "a").isalnum() for name in names)
    assert "taken" not in names
