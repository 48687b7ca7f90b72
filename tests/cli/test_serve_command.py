"""`aperto serve`: its options, what it says, and how it ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from aperto.cli.serve import _prompt_folder, greeting, is_loopback, seconds_of, size_of
from aperto.errors import UsageError
from aperto.server import ServerSettings


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("64M", 64 << 20), ("1.5GiB", 3 << 29), ("2 kb", 2048)],
)
def test_sizes(text, size):
    assert size_of(text, "--x") == size


@pytest.mark.parametrize(("text", "time"), [("5", 5), ("30s", 30), ("1.5m", 90), ("2h", 7200)])
def test_times(text, time):
    assert seconds_of(text, "--x") == time


@pytest.mark.parametrize("text", ["", "G", "-1", "1x", "1e3"])
def test_what_is_no_size_and_no_time(text):
    for read in (size_of, seconds_of):
        with pytest.raises(UsageError, match="--x is"):
            read(text, "--x")


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.2", False),
        ("host.example", False),
    ],
)
def test_loopback(host, is_local):
    assert is_loopback(host) is is_local


def told(**fields):
    has_tls = fields.pop("has_tls", False)
    return "\n".join(greeting(ServerSettings(**fields), ["nano"], has_tls=has_tls))


def test_the_greeting_says_what_is_exposed():
    local = told()
    assert "http://127.0.0.1:8000/v1" in local and "this machine only, without a key" in local
    assert "warning" not in local and "nano" in local
    assert "everybody who reaches" in told(host="0.0.0.0")
    assert "unencrypted" in told(host="0.0.0.0", api_keys=("k",))
    assert "warning" not in told(host="0.0.0.0", api_keys=("k",), has_tls=True)
    assert "https://[::]:8000/" in told(host="::", has_tls=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tls-cert", "x"], "belong together"),
        (["--tls-cert", "/no/x", "--tls-key", "/no/y"], "cannot be used"),
        (["--api-key-file", "/no/file"], "cannot be read"),
        (["--memory-cap", "much"], "--memory-cap is 'much'"),
        (["--host", "203.0.113.7"], "cannot listen at"),
        (["--prompt-cache-size", "much"], "--prompt-cache-size is 'much'"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(aperto, arguments, message):
    result = aperto("serve", "nano", *arguments)
    assert result.exit_code == 2 and message in result.output


def test_adapters_have_a_name_and_a_folder(aperto):
    for wrong in (["law"], ["=law"], ["law="], ["law=a", "law=b"], ["a/b=c"]):
        options = [part for option in wrong for part in ("--adapter", option)]
        result = aperto("serve", "nano", *options)
        assert result.exit_code == 2 and "adapter" in result.stderr


def test_where_prompts_are_saved(tmp_path, monkeypatch):
    assert _prompt_folder("off", tmp_path) is None
    assert _prompt_folder("on", tmp_path) == tmp_path / "prompts"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _prompt_folder("~/mine", Path("/cache")) == tmp_path / "mine"


def test_a_port_that_is_taken(aperto):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = aperto("serve", "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 2 and "choose another" in result.output


@pytest.fixture
def server(tmp_path):
    """A server in a process of its own, and its address."""
    keys = tmp_path / "keys"
    keys.write_text("secret\n", encoding="utf-8")
    program = [sys.executable, "-c", "from aperto.cli.main import main; main()"]
    options = ["--port", "0", "--api-key-file", str(keys), "--context", "4096"]
    command = [*program, "serve", "nano", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        while not lines or "Ctrl-C" not in lines[-1]:
            lines.append(process.stderr.readline())
            assert lines[-1], f"it ended with {process.wait()}"
        address = re.search(r"http://\S+(?=/v1)", "".join(lines))
        assert address is not None and "with a key" in "".join(lines)
        yield process, address[0]
        process.kill()


GREETING = {
    "messages": [{"role": "user", "content": "Hello"}],
    "stream": True,
    "reasoning_effort": "none",
}
KEY = {"Authorization": "Bearer secret"}


def stream_of(address, pairs=150):
    body = GREETING | {"response_format": {"type": "regex", "pattern": f"(ab){{{pairs}}}"}}
    return httpx.stream(
        "POST", f"{address}/v1/chat/completions", json=body, headers=KEY, timeout=60
    )


def test_ctrl_c_finishes_what_runs(server):
    process, address = server
    with stream_of(address) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        process.send_signal(signal.SIGINT)
        rest = "".join(lines)
    assert rest.endswith("data: [DONE]") and '"finish_reason":"stop"' in rest
    assert process.wait(30) == 0


def test_a_second_ctrl_c_cuts(server):
    process, address = server
    with stream_of(address, pairs=1900) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        process.send_signal(signal.SIGINT)
        for _ in range(20):
            next(lines)
        process.send_signal(signal.SIGINT)
        rest: list[str] = []
        with pytest.raises(httpx.RemoteProtocolError):
            rest.extend(lines)
    assert not any("[DONE]" in line for line in rest)
    assert process.wait(30) == 0
