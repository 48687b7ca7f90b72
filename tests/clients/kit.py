"""Servers for clients: with a script instead of a model, or with nano; and programs run on them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.server.kit import listening
from tests.server.responses_kit import ScriptedChat, scripted_services

from aperto.server import ServerSettings, Services

PROGRAMS = Path(__file__).parent / "programs"
CONTEXT_TOKENS = 40_000  # Codex tells some 4000 tokens of itself and its tools
_NOWHERE = "http://127.0.0.1:9"  # the discard port, where nothing listens


def thinks(text: str) -> str:
    """Reasoning, and the beginning of what comes after it."""
    return f"<|channel|>analysis<|message|>{text}<|end|><|start|>assistant"


def says(text: str) -> str:
    """An answer."""
    return f"<|channel|>final<|message|>{text}<|return|>"


def calls(name: str, **arguments: Any) -> str:
    """A call as gpt-oss writes it."""
    header = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
    return f"{header}{json.dumps(arguments)}<|call|>"


@contextlib.contextmanager
def replaying(folder: Path, *script: str | Exception) -> Iterator[tuple[str, ScriptedChat]]:
    """A real server whose model "scripted" answers with one text a request, in turn."""
    chat = ScriptedChat(*script, limit_tokens=CONTEXT_TOKENS)
    services = scripted_services(chat, folder / "state")
    with listening(services, ws="websockets-sansio") as url:
        yield url, chat


@contextlib.contextmanager
def nano(folder: Path, **settings: Any) -> Iterator[str]:
    """A real server with nano; gives its address."""
    chosen = ServerSettings(models=("nano",), state_dir=folder, context_tokens=4096, **settings)
    with listening(Services.create(chosen), ws="websockets-sansio") as url:
        yield url


def offline(home: Path, **extra: str) -> dict[str, str]:
    """An environment for a client: its home is a folder, and it reaches this machine alone."""
    home.mkdir(parents=True, exist_ok=True)
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), _NOWHERE)
    here = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
    return {"PATH": os.environ["PATH"], "HOME": str(home), **proxies, **here, **extra}


def run(command: list[str], env: Mapping[str, str], folder: Path, timeout_s: float = 240) -> str:
    """What a client prints; the test fails with its errors where it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    told = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}:\n{told}"
    return done.stdout


def run_program(
    python: Path,
    program: str,
    url: str,
    folder: Path,
    arguments: Sequence[str] = (),
    **env: str,
) -> Any:
    """What a program of `programs` found out, in an environment of its own."""
    command = [str(python), str(PROGRAMS / program), f"{url}/v1", *arguments]
    return json.loads(run(command, offline(folder / "home", **env), folder))
