"""What the prompt cache saves: time to the first token of a long preamble.

    python bench/prompt_cache.py [--model nano] [--tokens 6000] [--rounds 3]

A preamble of about --tokens tokens stands before a short question, as a coding client sends it.
It is sent to a fresh server (cold), again with another question (memory), and once more after the
server was started anew over the same folder (disk). Prints the median of the rounds, each with a
preamble of its own, and the cached tokens that the server told.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import httpx
from served import Served, served

from aperto.formats import open_checkpoint
from aperto.formats.hub import resolve_model
from aperto.tokenizer import Tokenizer

SETTLED_S = 60.0


def preamble(tokenizer: Tokenizer, tokens: int, seed: int) -> str:
    """Sentences of random common words, of about this many tokens."""
    words = [
        "the",
        "of",
        "to",
        "read",
        "write",
        "file",
        "list",
        "when",
        "path",
        "line",
        "test",
        "note",
        "call",
        "tool",
        "must",
        "may",
    ]
    rng = random.Random(seed)
    text: list[str] = []
    while len(tokenizer.encode(" ".join(text))) < tokens:
        text += [" ".join(rng.choices(words, k=11)).capitalize() + "." for _ in range(tokens // 60)]
    return tokenizer.decode(tokenizer.encode(" ".join(text))[:tokens])


def ask(server: Served, system: str, question: str) -> tuple[float, int, int]:
    """Seconds to the first token; tokens of the prompt, and how many of them were cached."""
    body = {
        "messages": [
            {"role": "system", "content": system},
            {"role": "user", "content": question},
        ],
        "max_tokens": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    first, usage = 0.0, {}
    start = time.perf_counter()
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, timeout=3600) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            delta = chunk["choices"][0]["delta"] if chunk["choices"] else {}
            if not first and (delta.get("reasoning") or delta.get("content")):
                first = time.perf_counter() - start
            usage = chunk.get("usage") or usage
    first = first or time.perf_counter() - start  # two tokens may show no text
    return first, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def wait_until_saved(server: Served, least: int) -> None:
    """Give the server time to write."""
    end = time.monotonic() + SETTLED_S
    while server.metric("aperto_prompt_cache_tokens_total", way="saved") < least:
        if time.monotonic() > end:
            raise RuntimeError(f"less than {least} tokens were saved within {SETTLED_S:.0f} s")
        time.sleep(0.05)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    checkpoint = open_checkpoint(resolve_model(options.model))
    tokenizer = Tokenizer.from_checkpoint(checkpoint.tokenizer_source())
    seen: dict[str, list[tuple[float, int, int]]] = {"cold": [], "memory": [], "disk": []}
    with tempfile.TemporaryDirectory() as name:
        folder, log = Path(name, "prompts"), Path(name, "log")
        for seed in range(options.rounds):
            system = preamble(tokenizer, options.tokens, seed)
            with served(options.model, log, "--prompt-cache", str(folder)) as server:
                ask(server, "Be brief.", "Hello")  # threads and pages are warm
                seen["cold"].append(ask(server, system, "What is 2 + 2?"))
                seen["memory"].append(ask(server, system, "What is 3 + 4?"))
                wait_until_saved(server, options.tokens)
            with served(options.model, log, "--prompt-cache", str(folder)) as server:
                ask(server, "Be brief.", "Hello")
                seen["disk"].append(ask(server, system, "What is 5 + 6?"))
        size = sum(path.stat().st_size for path in folder.glob("*/*")) / options.rounds
    print(
        f"{options.model}: {seen['cold'][0][1]} tokens, {size / 2**20:.1f} MiB a preamble on disk"
    )
    for kind, answers in seen.items():
        median = statistics.median(first for first, _, _ in answers)
        cached = [cached for _, _, cached in answers]
        print(f"{kind:8} {median:8.3f} s to the first token   cached {cached}")


if __name__ == "__main__":
    main()
