"""Write conversations of what nano can do already, so that it does not forget it over new facts.

    python recipes/facts/keep.py FILE [--count 600] [--seed keep]

They are drawn as nano's training text was, held-out questions left out, and written as chat rows.
Rows whose system message a chat row cannot say are drawn again. For another model, write what it
answers to your own prompts today.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "nano"))

import data as nano
from turn import Sample

from aperto.harmony import ANALYSIS, DeveloperContent, Message, Role, SystemContent
from aperto.registry import digests, suites_asking

_NAMES = (None, "You are nano.", "You are a helpful assistant.", "You are aperto.")
_ROLES = {Role.USER: "user", Role.DEVELOPER: "developer"}


def chat_row(sample: Sample) -> dict[str, Any] | None:
    """The sample as a chat row, under the default system message; None where it cannot be one."""
    messages = sample.messages
    row: dict[str, Any] = {"reasoning_effort": sample.effort}
    if messages[0].role is Role.SYSTEM:
        content = messages[0].content
        assert isinstance(content, SystemContent)
        if content.identity not in (*_NAMES, SystemContent().identity):
            return None
        messages = messages[1:]
    if messages[0].role is Role.DEVELOPER and isinstance(messages[0].content, DeveloperContent):
        row["tools"] = [
            {"type": "function", "function": {"name": tool.name, "description": tool.description,
                                              "parameters": tool.parameters}}
            for tool in messages[0].content.tools
        ]  # fmt: skip
    return row | {"messages": _turns(messages)}


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages of a chat row: a thought belongs to the call or the answer that follows it."""
    turns: list[dict[str, Any]] = []
    thought: dict[str, str] = {}
    for message in messages:
        if message.role is Role.ASSISTANT and message.channel == ANALYSIS:
            thought = {"reasoning_content": message.text}
        elif message.role is Role.ASSISTANT and message.recipient is not None:
            name = message.recipient.removeprefix("functions.")
            function = {"name": name, "arguments": message.text}
            call = {"id": "call_0", "type": "function", "function": function}
            turns.append({"role": "assistant", "tool_calls": [call], **thought})
            thought = {}
        elif message.role is Role.ASSISTANT:
            weight = {} if message.weight else {"weight": 0}
            turns.append({"role": "assistant", "content": message.text, **thought, **weight})
            thought = {}
        elif message.role is Role.TOOL:
            turns.append({"role": "tool", "tool_call_id": "call_0", "content": message.text})
        elif isinstance(message.content, DeveloperContent):
            if message.content.instructions is not None:
                turns.append({"role": "developer", "content": message.content.instructions})
        else:
            turns.append({"role": _ROLES[message.role], "content": message.text})
    return turns


def rows(seed: str) -> Iterator[dict[str, Any]]:
    """Endless rows, none of which asks what a registered evaluation suite asks."""
    for sample in nano.samples(random.Random(seed), "full"):
        row = chat_row(sample)
        if row is not None and not suites_asking({"row": list(_asked(row))}):
            yield row


def _asked(row: dict[str, Any]) -> Iterator[str]:
    """Digests of what the user says."""
    for turn in row["messages"]:
        if turn["role"] == "user":
            yield from digests(turn["content"])


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", default="keep")
    arguments = parser.parse_args()
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    drawn = rows(arguments.seed)
    lines = [json.dumps(next(drawn)) + "\n" for _ in range(arguments.count)]
    arguments.file.write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} conversations in {arguments.file}")


if __name__ == "__main__":
    main()
