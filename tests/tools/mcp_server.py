"""An MCP server for the tests, over standard input and output or streamable HTTP."""

from __future__ import annotations

import os
import sys
import time

from mcp.server import MCPServer

server = MCPServer("test")


@server.tool()
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


@server.tool()
def fail(why: str) -> str:
    """Fail."""
    raise ValueError(why)


@server.tool()
def wait(seconds: float) -> str:
    """Wait."""
    time.sleep(seconds)
    return "waited"


@server.tool()
def flood() -> str:
    """Say much."""
    return "x" * 1_000_000


@server.tool(name="odd name!")
def odd() -> str:
    """Say what the environment holds."""
    return os.environ.get("GREETING", "nothing")


@server.tool()
def leave() -> str:
    """End the server."""
    os._exit(3)


if __name__ == "__main__":
    if "--broken" in sys.argv:
        sys.exit("the server's own complaint")
    server.run("stdio")
