"""Pairs of a preferred and a not preferred answer: rows in OpenAI's preference format, and TRL's.

    {"input": {"messages": [...], "tools": [...]}, "preferred_output": [...],
     "non_preferred_output": [...]}
    {"prompt": [...], "chosen": [...], "rejected": [...]}

The prompt ends where the assistant speaks; what it said before is given, never learnt.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aperto.adapt.chat_rows import ChatReader
from aperto.adapt.packing import Example
from aperto.adapt.raw_rows import Problems, RawRow, data_files, held_out_note, read_rows
from aperto.errors import DataError
from aperto.harmony import Conversation, Effort, Message, Role, render_for_training
from aperto.registry import digests
from aperto.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One prompt with two answers."""

    chosen: Example
    """Prompt and preferred answer; the answer's tokens have weight 1."""
    rejected: Example
    """The same prompt and the other answer."""
    source: str
    """Where it comes from, "file:line"."""
    digests: tuple[str, ...]
    """What it asks, as `registry.digest` writes it."""

    def __len__(self) -> int:
        return max(len(self.chosen), len(self.rejected))


@dataclasses.dataclass(frozen=True, slots=True)
class PairSet:
    """Pairs to learn from, and those held out."""

    train: tuple[Pair, ...]
    """What is learnt."""
    held_out: tuple[Pair, ...] = ()
    """What is only evaluated."""
    notes: tuple[str, ...] = ()
    """What was read in another way than may be thought, a line each; to be shown."""


def read_pairs(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    max_tokens: int | None = None,
    effort: Effort = Effort.MEDIUM,
    held_out: float = 0.0,
    seed: int = 0,
) -> PairSet:
    """Read a file or a folder of files of pairs.

    Args:
        path: JSONL, Parquet or Arrow; or a folder of them, whose files named eval, validation, dev
            or test are held out.
        tokenizer: the model's.
        max_tokens: longest prompt with its answer.
        effort: reasoning effort of prompts that name none.
        held_out: share of the pairs to hold out where no files are, drawn by `seed` and contents.
        seed: draws the held-out pairs.

    Raises:
        DataError: rows that cannot be used, all of them, with what to do.
    """
    if not 0 <= held_out < 1:
        raise DataError(f"held_out is {held_out}; expected a share from 0 up to, not with, 1")
    problems = Problems()
    reader = _PairReader(tokenizer, ChatReader(problems, effort), problems, max_tokens)
    learnt_files, held_out_files = data_files(Path(path))
    train, aside = reader.read(learnt_files), reader.read(held_out_files)
    problems.check(str(path))
    if not train:
        raise DataError(f"{path}: no pair to learn from; expected at least one row")
    if not held_out_files and held_out:
        ordered = sorted(train, key=lambda pair: _place(pair, seed))
        apart = {id(pair) for pair in ordered[: round(held_out * len(train))]}
        aside = [pair for pair in train if id(pair) in apart]
        train = [pair for pair in train if id(pair) not in apart]
    notes = tuple(
        f"{field}: has a value in {count} rows and no effect"
        for field, count in sorted(reader.chat.unused.items())
    )
    return PairSet(tuple(train), tuple(aside), (*held_out_note(held_out_files), *notes))


class _PairReader:
    """Turns rows into pairs."""

    def __init__(
        self, tokenizer: Tokenizer, chat: ChatReader, problems: Problems, max_tokens: int | None
    ) -> None:
        self.chat = chat
        self._tokenizer, self._problems, self._max_tokens = tokenizer, problems, max_tokens

    def read(self, files: Iterable[Path]) -> list[Pair]:
        rows = (row for file in files for row in read_rows(file, self._problems))
        return [pair for row in rows if (pair := self._pair(row)) is not None]

    def _pair(self, row: RawRow) -> Pair | None:
        parts = _parts(row.fields)
        if parts is None:
            self._problems.add(
                row.source,
                "",
                f"the columns {', '.join(map(repr, row.fields)) or 'of an empty row'}",
                "'input', 'preferred_output' and 'non_preferred_output', or 'prompt', 'chosen' "
                "and 'rejected'",
                "rename the columns, or convert the rows (docs/preference.md)",
            )
            return None
        prompt = self.chat.conversation(RawRow(row.source, parts.prompt), must_end=False)
        chosen = self.chat.said(row, parts.chosen, parts.names[0])
        rejected = self.chat.said(row, parts.rejected, parts.names[1])
        if prompt is None or chosen is None or rejected is None:
            return None
        if prompt.messages[-1].role is Role.ASSISTANT:
            self._problems.add(
                row.source,
                "messages",
                "the assistant speaks last in the prompt",
                "a user's or a tool's message there",
                "move its answer into the two outputs",
            )
            return None
        return self._checked(row.source, prompt, chosen, rejected, parts.names)

    def _checked(
        self,
        source: str,
        prompt: Conversation,
        chosen: list[Message],
        rejected: list[Message],
        names: tuple[str, str],
    ) -> Pair | None:
        asked = tuple(
            dict.fromkeys(d for m in prompt if m.role is Role.USER for d in digests(m.text))
        )
        sides = [self._example(prompt, said, source, asked) for said in (chosen, rejected)]
        for side, name in zip(sides, names, strict=True):
            if self._max_tokens is not None and len(side) > self._max_tokens:
                self._problems.add(
                    source,
                    name,
                    f"{len(side)} tokens with the prompt",
                    f"at most {self._max_tokens}",
                    "allow longer rows, or remove this one",
                )
                return None
        if np.array_equal(sides[0].token_ids, sides[1].token_ids):
            self._problems.add(
                source,
                names[1],
                "the same answer twice",
                "two that differ",
                "remove the row; there is nothing to prefer",
            )
            return None
        return Pair(sides[0], sides[1], source, asked)

    def _example(
        self, prompt: Conversation, said: list[Message], source: str, asked: tuple[str, ...]
    ) -> Example:
        given = [dataclasses.replace(m, weight=0.0) for m in prompt]
        answer = [dataclasses.replace(m, weight=1.0) for m in said]
        ids, weights = render_for_training(Conversation((*given, *answer)), self._tokenizer)
        return Example(np.asarray(ids, np.int32), np.asarray(weights, np.float32), source, asked)


@dataclasses.dataclass(frozen=True, slots=True)
class _Parts:
    prompt: Mapping[str, Any]
    chosen: Any
    rejected: Any
    names: tuple[str, str]


def _parts(fields: Mapping[str, Any]) -> _Parts | None:
    """A row's prompt and outputs, whichever of the formats it has."""
    if {"input", "preferred_output", "non_preferred_output"} <= fields.keys():
        prompt = fields["input"]
        if not isinstance(prompt, Mapping):
            return None
        names = ("preferred_output", "non_preferred_output")
        return _Parts(prompt, fields[names[0]], fields[names[1]], names)
    if {"prompt", "chosen", "rejected"} <= fields.keys():
        rest = {k: v for k, v in fields.items() if k not in ("prompt", "chosen", "rejected")}
        prompt = {**rest, "messages": _messages(fields["prompt"], "user")}
        chosen, rejected = (_messages(fields[k], "assistant") for k in ("chosen", "rejected"))
        return _Parts(prompt, chosen, rejected, ("chosen", "rejected"))
    return None


def _messages(value: Any, role: str) -> Any:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _place(pair: Pair, seed: int) -> bytes:
    """Where a pair stands in the draw: a hash of its contents and the seed."""
    found = hashlib.sha256(str(seed).encode())
    for side in (pair.chosen, pair.rejected):
        found.update(side.token_ids.astype("<i4").tobytes())
    return found.digest()
