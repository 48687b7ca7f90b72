"""Tasks for reward-driven tuning: a prompt, and whatever the reward function needs to know.

{"messages": [{"role": "user", "content": "Name a bread."}], "wanted": "rye"}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aperto.adapt.chat_rows import ChatReader
from aperto.adapt.raw_rows import Problems, RawRow, data_files, read_rows
from aperto.errors import DataError
from aperto.harmony import Conversation, Effort, Role
from aperto.registry import digests

_CHAT = ("messages", "tools", "functions", "reasoning_effort", "response_format")


@dataclasses.dataclass(frozen=True, slots=True)
class RewardTask:
    """One prompt that is answered several times, each answer rewarded."""

    conversation: Conversation
    """What is asked."""
    fields: Mapping[str, Any]
    """The whole row, for the reward function."""
    source: str
    """Where it comes from, "file:line"."""
    digests: tuple[str, ...]
    """What it asks, as `registry.digest` writes it."""


def read_tasks(path: str | Path, *, effort: Effort = Effort.MEDIUM) -> tuple[RewardTask, ...]:
    """Read a file or a folder of files of tasks; files named eval or test are left out.

    `effort` is that of rows that name none. Raises DataError listing every bad row.
    """
    problems = Problems()
    chat = ChatReader(problems, effort)
    files, _ = data_files(Path(path))
    rows = (row for file in files for row in read_rows(file, problems))
    found = [task for row in rows if (task := _task(row, chat, problems)) is not None]
    problems.check(str(path))
    if not found:
        raise DataError(f"{path}: no task; expected at least one row")
    return tuple(found)


def _task(row: RawRow, chat: ChatReader, problems: Problems) -> RewardTask | None:
    asked = {name: value for name, value in row.fields.items() if name in _CHAT}
    conversation = chat.conversation(RawRow(row.source, asked), must_end=False)
    if conversation is None:
        return None
    if conversation.messages[-1].role is Role.ASSISTANT:
        problems.add(
            row.source,
            "messages",
            "the assistant speaks last",
            "a user's or a tool's message there",
            "remove its answer; the model gives its own",
        )
        return None
    marks = dict.fromkeys(d for m in conversation if m.role is Role.USER for d in digests(m.text))
    return RewardTask(conversation, row.fields, row.source, tuple(marks))
