"""Servers for tests: with a model that says what the test has written, or with nano."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from tests.fakes import FakeModel, Script

from aperto.config import EngineConfig
from aperto.engine import Engine
from aperto.local_model import LocalModel
from aperto.server import ServerSettings, Services, create_app
from aperto.server.pool import ModelInfo, ModelPool
from aperto.tokenizer import HARMONY_SPECIAL, Tokenizer

BYTES = Tokenizer(
    {bytes([i]): i for i in range(256)}, {n: 256 + i for i, n in enumerate(HARMONY_SPECIAL)}
)
FINAL = "<|channel|>final<|message|>"
THINKS = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
ANSWER = f"{THINKS}{FINAL}Yes, seven.<|return|>"
USER = [{"role": "user", "content": "Hello"}]
CHAT = "/v1/chat/completions"


def scripted(text: str, context: int = 4096, **config: Any) -> LocalModel:
    """A model that says a text, special tokens included."""
    model = FakeModel(vocab_size=BYTES.vocab_size, max_context=context)
    settings = EngineConfig(**{"context_tokens": context, **config})
    return LocalModel("scripted", Engine(model, settings, sampler=Script(BYTES, text)), BYTES)


def describe(name: str, source: str) -> ModelInfo:
    return ModelInfo(name, 1700000000, 4096, 1000, "aperto-test")


def services_of(model: LocalModel, folder: Path, **settings: Any) -> Services:
    """Services around one model that is there already."""
    chosen = ServerSettings(models=("scripted",), state_dir=folder, **settings)
    return Services.create(chosen, ModelPool(chosen, lambda source: model, describe))


@contextlib.asynccontextmanager
async def client_of(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app in this process; the services are closed in the end."""
    app = create_app(services)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client
    finally:
        await services.close()


def ask(
    text: str, folder: Path, body: dict[str, Any], path: str = CHAT, **settings: Any
) -> httpx.Response:
    """The response of a server whose model says a text."""

    async def run() -> httpx.Response:
        async with client_of(services_of(scripted(text), folder, **settings)) as client:
            return await client.post(path, json=body)

    return asyncio.run(run())


def chunks_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The data objects of a stream, which must end with [DONE]."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@contextlib.contextmanager
def listening(services: Services, **options: Any) -> Iterator[str]:
    """A real server in a thread; gives its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(services), log_config=None, lifespan="on", **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
