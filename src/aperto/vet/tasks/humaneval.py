"""HumanEval: functions to be written, run against their tests in the sandbox alone."""

from __future__ import annotations

import contextlib
import gzip
import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from aperto.errors import ResourceError
from aperto.tools.sandbox import Confinement, Limits, Sandbox, SandboxDiedError, probe
from aperto.vet.suites.item import Answer, Grade, Item, Turn
from aperto.vet.tasks.extract import python_code

TIME_LIMIT_S = 10.0
PROMPT_ID = "aperto/humaneval/1"
PROMPT = (
    "Complete this Python function. Give the whole function, with its imports, in one "
    "```python block.\n\n```python\n{prompt}```"
)
_LIMITS = Limits(memory_bytes=1 << 30, processes=16, output_bytes=4_000)


def load(path: Path) -> tuple[Item, ...]:
    """Problems of the publisher's file (JSON lines, gzipped)."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return tuple(_item(json.loads(line)) for line in lines if line.strip())


def grade(item: Item, answer: Answer) -> Grade:
    """1 where the function passes its tests in the sandbox."""
    code = python_code(answer.final, item.expected["entry_point"])
    if code is None:
        return Grade(0.0, "no code")
    label = run(code, item.expected)
    return Grade(float(label == "passed"), label)


def run(code: str, problem: Mapping[str, str]) -> str:
    """How code of the model fares: passed, failed, time, memory or died.

    Raises ResourceError where no sandbox works: code of a model runs nowhere else.
    """
    found = probe()
    if found.confinement is None:
        raise ResourceError(
            f"HumanEval runs code of the model in a sandbox alone, and there is none: {found}. "
            "Install bubblewrap"
        )
    return _run(program(code, problem), problem, found.confinement)


def program(code: str, problem: Mapping[str, str]) -> str:
    """The prompt, for its imports and helpers, and the code after it.

    A body alone continues the prompt; a whole function replaces the prompt's empty one.
    """
    return problem["prompt"] + ("" if code.startswith((" ", "\t")) else "\n") + code + "\n"


def _run(text: str, problem: Mapping[str, str], confinement: Confinement) -> str:
    # The answer cannot print what it has not seen: the word is told after its code has run.
    word = secrets.token_hex(16)
    test = f"{problem['test']}\ncheck({problem['entry_point']})\nprint({word!r})\n"
    try:
        with contextlib.closing(Sandbox(confinement, _LIMITS)) as sandbox:
            first = sandbox.run(text, TIME_LIMIT_S)
            if first.state != "ok":
                return "time" if first.state == "interrupted" else first.state
            result = sandbox.run(test, TIME_LIMIT_S)
    except (SandboxDiedError, OSError):
        return "died"
    if result.state != "ok":
        return "time" if result.state == "interrupted" else result.state
    return "passed" if result.output.rstrip("\n").endswith(word) else "failed"


def _item(row: dict[str, str]) -> Item:
    return Item(
        suite="humaneval",
        id=row["task_id"],
        cluster=row["task_id"],
        turns=(Turn("user", PROMPT.format(prompt=row["prompt"])),),
        expected={key: row[key] for key in ("prompt", "test", "entry_point")},
    )
