"""Load a server at random and see that nothing leaks, sticks or changes an answer.

    python bench/soak.py [--model nano] [--minutes 30] [--clients 12] [--seed 0]

First every question of a fixed set is asked alone, with logprobs. Then clients ask them at random,
streaming and not, drop connections, cancel, and send what is malformed, unknown or too large.
Exits with 1 where an answer's tokens or logprobs differ from those it had alone, a request gets
stuck or a status 5xx, or pages, threads or memory are left over once all is quiet.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import dataclasses
import hashlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from rich.progress import Progress
from served import Served, Usage, served

STUCK_S = 180
QUESTIONS = (
    "What is 17 * 23?", "What is 4321 - 1234?", "Hello", "How do I list my models?",
    "Which is larger, 431 or 413?", "Repeat: red green blue", "Spell the word 'apple'",
    "How do I bake a loaf of rye bread?", "divide 846 by 7", "What is the capital of mistral?",
)  # fmt: skip
SETTLED_MIB = 64
"""Growth of memory between the middle and the end of a run that the allocator alone explains."""


@dataclasses.dataclass
class Tally:
    """What happened."""

    done: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    wrong: list[str] = dataclasses.field(default_factory=list)

    def check(self, holds: bool, what: str) -> None:
        """Note a failure."""
        if not holds:
            self.wrong.append(what)


def question(number: int) -> dict[str, Any]:
    """A chat request whose answer is fixed by its seed."""
    text = QUESTIONS[number % len(QUESTIONS)]
    messages = [{"role": "user", "content": text}]
    if number % 3 == 0:
        messages.insert(0, {"role": "system", "content": "Answer shortly. " * (1 + number % 7)})
    effort = ("low", "medium", "high")[number % 3]
    body = {"messages": messages, "seed": number, "logprobs": True, "reasoning_effort": effort}
    return {**body, "max_completion_tokens": 40 + 20 * (number % 10)}


def fingerprint(choice: dict[str, Any]) -> str:
    """Hash of an answer: its texts, its tokens and their logprobs to the last bit."""
    message = choice["message"]
    parts = [message["reasoning"] or "", message["content"] or "", choice["finish_reason"]]
    parts += [(t["token"], t["logprob"]) for t in (choice["logprobs"] or {}).get("content") or ()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Soak:
    """The clients, what they may do, and the answers that are right."""

    def __init__(self, client: httpx.AsyncClient, seed: int) -> None:
        self.client, self.tally, self.rng = client, Tally(), random.Random(seed)
        self.right: dict[int, str] = {}

    async def learn(self, count: int) -> None:
        """Ask every question alone."""
        for number in range(count):
            answer = await self.client.post("/v1/chat/completions", json=question(number))
            answer.raise_for_status()
            self.right[number] = fingerprint(answer.json()["choices"][0])

    async def client_loop(self, until: float) -> None:
        """Do one thing after the other."""
        kinds: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self.ask, 40), (self.ask_streaming, 25), (self.drop, 15), (self.give_up, 8),
            (self.malformed, 6), (self.unknown_model, 2), (self.too_long, 3), (self.oversize, 1),
        ]  # fmt: skip
        actions, weights = zip(*kinds, strict=True)
        while time.monotonic() < until:
            action = self.rng.choices(actions, weights)[0]
            name = action.__name__
            try:
                await asyncio.wait_for(action(), STUCK_S)
                self.tally.done[name] += 1
            except TimeoutError:
                self.tally.wrong.append(f"{name}: stuck for {STUCK_S} s")
            except httpx.TransportError as error:
                self.tally.wrong.append(f"{name}: {error!r}")

    async def ask(self) -> None:
        """Ask without streaming."""
        number = self.rng.choice(list(self.right))
        answer = await self.client.post("/v1/chat/completions", json=question(number))
        if answer.status_code == 429:
            return
        self.tally.check(answer.status_code == 200, f"ask {number}: {answer.text[:300]}")
        if answer.status_code == 200:
            same = fingerprint(answer.json()["choices"][0]) == self.right[number]
            self.tally.check(same, f"question {number} was answered in other bits")

    async def ask_streaming(self) -> None:
        """Ask, and put the pieces together."""
        number = self.rng.choice(list(self.right))
        body = {**question(number), "stream": True}
        joined: dict[str, Any] = {"message": {"reasoning": "", "content": ""}, "logprobs": {}}
        tokens: list[dict[str, Any]] = []
        async with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code == 429:
                return
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                for choice in json.loads(line[6:])["choices"]:
                    for field in ("reasoning", "content"):
                        joined["message"][field] += choice["delta"].get(field) or ""
                    tokens += (choice.get("logprobs") or {}).get("content") or ()
                    joined["finish_reason"] = choice["finish_reason"]
        joined["logprobs"]["content"] = tokens
        same = fingerprint(joined) == self.right[number]
        self.tally.check(same, f"question {number} was streamed in other bits")

    async def drop(self) -> None:
        """Close the connection after some pieces."""
        body = {**question(self.rng.choice(list(self.right))), "stream": True}
        left = self.rng.randrange(12)
        async with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            async for _ in response.aiter_lines():
                left -= 1
                if left < 0:
                    return

    async def give_up(self) -> None:
        """Cancel before there is an answer."""
        body = question(self.rng.choice(list(self.right)))
        task = asyncio.create_task(self.client.post("/v1/chat/completions", json=body))
        await asyncio.sleep(self.rng.random() * 0.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def malformed(self) -> None:
        """Send a body that is no request."""
        body = self.rng.choice(
            (b"{", b"[]", b'{"messages": 1}', b'{"messages": []}', b"\xff\xfe", b"null",
             b'{"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}',
             b'{"messages": [{"role": "king", "content": "x"}]}')
        )  # fmt: skip
        await self.refused({"content": body}, 400, 415, 422)

    async def unknown_model(self) -> None:
        """Ask for a model that is not there."""
        await self.refused({"json": {**question(0), "model": "no-such-model"}}, 404)

    async def too_long(self) -> None:
        """Send more text than the context holds."""
        messages = [{"role": "user", "content": "word " * 200_000}]
        await self.refused({"json": {"messages": messages}}, 400)

    async def oversize(self) -> None:
        """Send more bytes than the server reads."""
        await self.refused({"content": b"x" * (65 << 20)}, 400, 413)

    async def refused(self, given: dict[str, Any], *expected: int) -> None:
        """Send what must be turned away with one of these statuses."""
        headers = {"content-type": "application/json"}
        answer = await self.client.post("/v1/chat/completions", headers=headers, **given)
        held = answer.status_code in (*expected, 429)
        self.tally.check(held, f"status {answer.status_code} where {expected} was due")


async def load(server: Served, arguments: argparse.Namespace) -> tuple[Tally, list[Usage]]:
    """The whole run; usage is read in the middle and at the end."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=None, limits=limits) as client:
        soak = Soak(client, arguments.seed)
        await soak.learn(arguments.questions)
        seconds = arguments.minutes * 60
        until = time.monotonic() + seconds
        clients = [soak.client_loop(until) for _ in range(arguments.clients)]
        usages: list[Usage] = []

        async def watch() -> None:
            with Progress(transient=True) as progress:
                task = progress.add_task("load", total=seconds)
                while time.monotonic() < until:
                    await asyncio.sleep(1)
                    progress.update(task, completed=seconds - (until - time.monotonic()))
                    if not usages and until - time.monotonic() < seconds / 2:
                        usages.append(server.usage())

        await asyncio.gather(watch(), *clients)
        await asyncio.sleep(3)  # dropped requests end before the engine's next step
        usages.append(server.usage())
        return soak.tally, usages


def left_over(server: Served, usages: list[Usage]) -> list[str]:
    """What the server still holds although nobody asks for anything."""
    wrong = []
    for name, labels in (
        ("aperto_running_requests", {}),
        ("aperto_waiting_requests", {}),
        ("aperto_cache_pages", {"state": "held"}),
    ):
        value = server.metric(name, **labels)
        if value:
            wrong.append(f"{name} is {value:.0f} although all is quiet")
    middle, end = usages
    if end.rss_mib > middle.rss_mib + SETTLED_MIB:
        wrong.append(f"memory grew from {middle.rss_mib:.0f} to {end.rss_mib:.0f} MiB")
    if end.threads > middle.threads:
        wrong.append(f"threads grew from {middle.threads} to {end.threads}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="nano", help="name or path")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=12, help="clients at once")
    parser.add_argument("--questions", type=int, default=40, help="different questions")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with served(arguments.model, log) as server:
            tally, usages = asyncio.run(load(server, arguments))
            wrong = tally.wrong + left_over(server, usages)
        if "Traceback" in log.read_text():
            wrong.append("the server's log has a traceback:\n" + log.read_text()[-4000:])
    sys.stdout.write("".join(f"{name}: {n}\n" for name, n in sorted(tally.done.items())))
    for label, usage in zip(("middle", "end"), usages, strict=True):
        sys.stdout.write(
            f"{label}: {usage.rss_mib:.0f} MiB, {usage.threads} threads, {usage.files} files\n"
        )
    sys.stdout.write("".join(f"WRONG {line}\n" for line in wrong) or "nothing wrong\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
