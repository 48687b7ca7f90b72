"""Write src/aperto/data/registered/SUITE.txt: hashes of what the shipped suites ask.

    python scripts/registered_suites.py

Publishers' data comes from the packages that `aperto.vet.sources` pins and is fetched where it is
missing; nano's held-out questions and the look-alikes of harm are our own. Suites that are drawn
anew from a seed at every run have no file. Questions are hashed, never stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from aperto import registry
from aperto.vet.sources import fetch, locate
from aperto.vet.suites import overrefusal
from aperto.vet.tasks.bridge import questions
from aperto.vet.tasks.catalogue import SUITES

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "src" / "aperto" / "data" / "registered"
FROM_PACKAGES = ("humaneval", "bfcl_simple", "ifbench", "snowball")
OURS = ("nano_heldout", "overrefusal")
_CLOSED = ("small_talk", "commands", "hierarchy", "tool_unused")
"""Held-out files with greetings and questions about aperto, which anybody's data may have."""


def prompts(suite: str) -> tuple[str, ...]:
    """What a suite asks, each question once.

    Raises DataUnavailableError where the data is not on this machine.
    """
    if suite == "nano_heldout":
        return tuple(dict.fromkeys(_nano()))
    if suite == "overrefusal":
        return _shortest(questions(overrefusal.generate()))
    found = SUITES[suite]
    assert found.source is not None
    return _shortest(questions(found.load(locate(found.source))))


def note(suite: str) -> str:
    """Where the questions are from."""
    if suite in OURS:
        return "aperto's own"
    source = SUITES[suite].source
    assert source is not None
    return locate(source).source.title


def write(suite: str, folder: Path = FOLDER) -> Path:
    """Write the file of a suite."""
    return registry.register(suite, prompts(suite), folder=folder, note=note(suite))


def _shortest(texts: Iterable[str]) -> tuple[str, ...]:
    """Without texts of which a paragraph is registered: what holds the text holds that too."""
    every = dict.fromkeys(texts)
    return tuple(
        text
        for text in every
        if not any(part != text and part in every for part in text.split("\n\n"))
    )


def _nano() -> Iterable[str]:
    """What users ask in nano's held-out files."""
    for file in sorted((ROOT / "recipes" / "nano" / "heldout").glob("*.jsonl")):
        if file.stem in _CLOSED:
            continue
        for line in file.read_text(encoding="utf-8").splitlines():
            messages = json.loads(line)["messages"]
            yield from (m["content"] for m in messages if m["role"] == "user")


def main() -> None:
    """Write all of them."""
    for suite in FROM_PACKAGES:
        source = SUITES[suite].source
        assert source is not None
        fetch(source)
    for suite in (*FROM_PACKAGES, *OURS):
        path = write(suite)
        print(f"{path.name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
