"""What a server gives to several clients at once, through its own HTTP door.

    python bench/serve.py [--model nano] [--streams 1,4,8,16] [--tokens 128] [--prompt 256]

Every stream continues a text of its own for exactly --tokens tokens (the stop tokens are biased
away). Prints, for each number of streams, the median round: total and per-stream tokens/s, time
to the first token, and fairness (the slowest stream's speed over the fastest's). The rounds of
all numbers alternate. `bench/soak.py` is the load test.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from rich.progress import track
from served import Served, served

from aperto.formats import open_checkpoint
from aperto.formats.hub import resolve_model
from aperto.tokenizer import Tokenizer

NEVER = -100.0
"""Bias that keeps a token from being drawn, the least that the protocol allows."""


@dataclasses.dataclass(frozen=True)
class Stream:
    """One stream as its client saw it."""

    first_s: float
    """From the request to the first token."""
    tokens: int
    decode_s: float
    """From the first token to the last."""

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed."""
        return (self.tokens - 1) / self.decode_s


@dataclasses.dataclass(frozen=True)
class Round:
    """Streams that ran together."""

    streams: list[Stream]
    wall_s: float

    @property
    def total(self) -> float:
        """Tokens a second of all streams, prefill included."""
        return sum(s.tokens for s in self.streams) / self.wall_s

    @property
    def fairness(self) -> float:
        """The slowest stream's speed over the fastest's."""
        speeds = [s.tokens_per_s for s in self.streams]
        return min(speeds) / max(speeds)


class Load:
    """Makes requests whose answers have a known length."""

    def __init__(self, model: str, prompt_tokens: int, tokens: int) -> None:
        source = open_checkpoint(resolve_model(model)).tokenizer_source()
        tokenizer = Tokenizer.from_checkpoint(source)
        self._bias = {str(id): NEVER for id in tokenizer.special.values()}
        self._words = tokenizer.encode("The quick brown fox counts 1 to 20 and says so. ")
        self._prompt_tokens, self._tokens = prompt_tokens, tokens

    def body(self, seed: int) -> dict[str, Any]:
        """A request that shares no prefix with one of another seed."""
        rng = random.Random(seed)
        return {
            "prompt": rng.choices(self._words, k=self._prompt_tokens),
            "max_tokens": self._tokens,
            "seed": seed,
            "logit_bias": self._bias,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


async def one(client: httpx.AsyncClient, body: dict[str, Any]) -> Stream:
    """Run one stream to its end."""
    start, first, last, tokens = time.perf_counter(), 0.0, 0.0, 0
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            piece = json.loads(line[6:])
            if piece.get("usage"):
                tokens = piece["usage"]["completion_tokens"]
            elif any(choice["text"] for choice in piece["choices"]):
                last = time.perf_counter()
                first = first or last
    return Stream(first - start, tokens, last - first)


async def together(url: str, load: Load, count: int, seed: int) -> Round:
    """Run `count` streams at once."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
        bodies = [load.body(seed + i) for i in range(count)]
        start = time.perf_counter()
        streams = await asyncio.gather(*(one(client, body) for body in bodies))
        return Round(list(streams), time.perf_counter() - start)


def measure(server: Served, load: Load, counts: list[int], rounds: int) -> dict[int, list[Round]]:
    """Rounds by number of streams; the first round of all is a warm-up."""
    asyncio.run(together(server.url, load, 1, 0))
    plan = [(r, count) for r in range(rounds) for count in counts]
    found: dict[int, list[Round]] = {count: [] for count in counts}
    for r, count in track(plan, description="serving", transient=True):
        found[count].append(asyncio.run(together(server.url, load, count, 1000 * (r + 1) + count)))
    return found


def row(count: int, rounds: list[Round]) -> str:
    """A line of the table: the median round."""
    middle = sorted(rounds, key=lambda r: r.total)[len(rounds) // 2]
    speeds = [s.tokens_per_s for s in middle.streams]
    firsts = [s.first_s for s in middle.streams]
    return (
        f"| {count} | {middle.total:.1f} | {statistics.median(speeds):.1f} "
        f"| {statistics.median(firsts):.3f} | {max(firsts):.3f} | {middle.fairness:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="nano", help="name or path")
    parser.add_argument("--streams", default="1,4,8,16", help="numbers of streams at once")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    counts = [int(n) for n in arguments.streams.split(",")]
    load = Load(arguments.model, arguments.prompt, arguments.tokens)
    with tempfile.NamedTemporaryFile() as log, served(arguments.model, Path(log.name)) as server:
        found = measure(server, load, counts, arguments.rounds)
    sys.stdout.write(
        "| streams | tokens/s in all | tokens/s a stream | first token, s (median) "
        "| first token, s (worst) | slowest / fastest |\n|---|---|---|---|---|---|\n"
    )
    for count, rounds in found.items():
        sys.stdout.write(row(count, rounds) + "\n")


if __name__ == "__main__":
    main()
