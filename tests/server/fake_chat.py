"""A server with the real page and a Responses door that replays scripted events."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from aperto.server import page

Chunk = dict[str, Any]
BREAK: Chunk = {"break": True}
"""Ends the stream without its last event, as a crashed server does."""


_ids = itertools.count()


def pieces(text: str, size: int = 4) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def event(kind: str, **fields: Any) -> Chunk:
    return {"type": f"response.{kind}", **fields}


IDLE = event("in_progress", response={})
"""Says that the response is still worked on."""


def item(
    kind: str, deltas: Sequence[Chunk], output: str | None = None, **fields: Any
) -> list[Chunk]:
    """One output item: opened, written, done."""
    made = {"id": f"item_{next(_ids)}", "type": kind, **fields}
    return [
        event("output_item.added", item=made),
        *({**chunk, "item_id": made["id"]} for chunk in deltas),
        event("output_item.done", item=made | {"output": output}),
    ]


def thinking(text: str) -> list[Chunk]:
    return item("reasoning", [event("reasoning_text.delta", delta=part) for part in pieces(text)])


def saying(text: str) -> list[Chunk]:
    parts = [event("output_text.delta", delta=part, logprobs=[]) for part in pieces(text)]
    return item("message", parts, phase="final_answer")


def calling(name: str, arguments: str, output: str) -> list[Chunk]:
    """A call that the server runs."""
    parts = [event("mcp_call_arguments.delta", delta=part) for part in pieces(arguments)]
    return item("mcp_call", parts, output, name=name)


def drawn(*tokens: tuple[str, float]) -> list[Chunk]:
    """Text with logprobs: each token with its probability and two others."""
    parts = []
    for text, probability in tokens:
        rest = (1 - probability) / 2
        top = [(text, probability), (" maybe", rest), ("\n", rest / 2)]
        entry = token(text, probability) | {
            "top_logprobs": [token(t, max(p, 1e-6)) for t, p in top]
        }
        parts.append(event("output_text.delta", delta=text, logprobs=[entry]))
    return item("message", parts)


def token(text: str, probability: float) -> dict[str, Any]:
    return {"token": text, "logprob": math.log(probability), "bytes": list(text.encode())}


def prefill(done: int, total: int) -> Chunk:
    return IDLE | {"prefill": {"done_tokens": done, "total_tokens": total}}


def ending(output: int = 42, input: int = 87, **fields: Any) -> list[Chunk]:
    usage = {"input_tokens": input, "output_tokens": output, "total_tokens": input + output}
    return [event("completed", response={"usage": usage, **fields})]


def answer(text: str, reasoning: str = "") -> list[Chunk]:
    return [*(thinking(reasoning) if reasoning else ()), *saying(text), *ending()]


class FakeChat:
    """Answers with the scripts it is given, in turn; the last one again and again.

    A script is a list of events, or a status with an error's body. Keeps the bodies it was sent.
    """

    def __init__(self, delay_s: float = 0.0) -> None:
        self.scripts: list[Sequence[Chunk] | tuple[int, dict[str, Any], dict[str, str]]] = []
        self.asked: list[dict[str, Any]] = []
        self.delay_s = delay_s
        self.key = ""
        self.num_closed = 0
        self.models: list[dict[str, Any]] = [
            {"id": "gpt-oss-20b", "context_window": 131072},
            {"id": "nano", "context_window": 4096},
        ]
        self.tools = ["code_interpreter", "web_search"]
        self.url = ""
        self._gate = threading.Event()
        self._gate.set()

    def will(self, *scripts: Any) -> None:
        self.scripts[:] = scripts

    def hold(self) -> None:
        """Stop sending until `release`."""
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()

    def app(self) -> FastAPI:
        app = FastAPI()
        app.include_router(page.router)

        @app.get("/v1/models")
        def models(request: Request) -> Response:
            return self._refusal(request) or JSONResponse(
                {"data": self.models, "tools": self.tools}
            )

        @app.post("/v1/responses")
        async def chat(request: Request) -> Response:
            if refusal := self._refusal(request):
                return refusal
            self.asked.append(await request.json())
            script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
            if isinstance(script, tuple):
                status, error, headers = script
                return JSONResponse({"error": error}, status, headers)
            return StreamingResponse(self._stream(script), media_type="text/event-stream")

        return app

    def _refusal(self, request: Request) -> Response | None:
        if not self.key or request.headers.get("authorization") == f"Bearer {self.key}":
            return None
        error = {"message": "the API key is missing or wrong", "code": "invalid_api_key"}
        return JSONResponse({"error": error}, 401)

    async def _stream(self, script: Sequence[Chunk]) -> AsyncIterator[bytes]:
        try:
            for chunk in script:
                while not self._gate.is_set():
                    await asyncio.sleep(0.01)
                if chunk is BREAK:
                    return
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                yield f"data: {json.dumps(chunk)}\n\n".encode()
            yield b"data: [DONE]\n\n"
        finally:
            self.num_closed += 1


@contextlib.contextmanager
def running(app: Any) -> Iterator[str]:
    """The URL of an app that is served in a thread."""
    config = uvicorn.Config(app, port=0, log_level="error", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join(20)


def wait_until(condition: Callable[[], Any], timeout_s: float = 20) -> None:
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError(f"still false after {timeout_s:g} s")
