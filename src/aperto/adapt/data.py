"""Data to learn from: chat, prompt and completion, and plain text, to tokens and their weights.

Everything is read and checked before anything is trained: an error lists every bad row. What is
not as a reader may think, such as columns without an effect or texts that were cut, is in `notes`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aperto.adapt.chat_rows import ChatReader
from aperto.adapt.packing import PADDING, Example, Row, pack
from aperto.adapt.raw_rows import (
    Problems,
    RawRow,
    data_files,
    held_out_note,
    read_rows,
    shown,
)
from aperto.adapt.turns import said_as_seen
from aperto.errors import DataError
from aperto.harmony import Conversation, Effort, Role, render_for_training
from aperto.registry import digests
from aperto.tokenizer import Tokenizer

__all__ = [
    "PADDING",
    "Dataset",
    "Example",
    "Row",
    "TooLong",
    "examples_of",
    "pack",
    "read_dataset",
    "read_examples",
]

TooLong = Literal["error", "cut", "drop"]
"""What to do with conversations of more than `max_tokens`: refuse, cut their end, leave out."""


@dataclasses.dataclass(frozen=True, slots=True)
class Dataset:
    """Examples to learn from, and those held out to see how well it goes."""

    train: tuple[Example, ...]
    """What is learnt."""
    held_out: tuple[Example, ...] = ()
    """What is only evaluated."""
    notes: tuple[str, ...] = ()
    """What was read in another way than may be thought, a line each; to be shown."""


def read_dataset(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    max_tokens: int | None = None,
    effort: Effort = Effort.MEDIUM,
    too_long: TooLong = "error",
    held_out: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """Read a file or a folder of files.

    Args:
        path: JSONL, text, Parquet or Arrow; or a folder of them, whose files named eval,
            validation, dev or test are held out (see `data_files`), which `notes` say.
        tokenizer: the model's.
        max_tokens: longest example; longer plain text is cut into several.
        effort: reasoning effort of conversations that name none.
        too_long: what happens to conversations that are longer.
        held_out: share of the rows to hold out where no files are; which ones depends on their
            contents and `seed` alone, and equal rows are on one side.
        seed: draws the held-out rows.

    Raises:
        DataError: rows that cannot be used, all of them, with what to do.
    """
    if not 0 <= held_out < 1:
        raise DataError(f"held_out is {held_out}; expected a share from 0 up to, not with, 1")
    learnt_files, held_out_files = data_files(Path(path))
    reader = _Reader(tokenizer, max_tokens, effort, too_long)
    train = reader.read(learnt_files)
    aside = reader.read(held_out_files)
    reader.finish(str(path), train)
    if not held_out_files and held_out:
        train, aside = _split(train, held_out, seed)
    notes = (*held_out_note(held_out_files), *reader.notes)
    return Dataset(tuple(train), tuple(aside), notes)


def read_examples(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    max_tokens: int | None = None,
    effort: Effort = Effort.MEDIUM,
    too_long: TooLong = "error",
) -> list[Example]:
    """The examples of `read_dataset` that are not held out."""
    options: dict[str, Any] = {"max_tokens": max_tokens, "effort": effort, "too_long": too_long}
    return list(read_dataset(path, tokenizer, **options).train)


def examples_of(
    conversation: Conversation, tokenizer: Tokenizer, source: str = ""
) -> list[Example]:
    """The examples of one conversation: what the assistant says, each part as it was prompted.

    See `turns.said_as_seen` for when there are several.
    """
    found = []
    for part in said_as_seen(conversation):
        ids, weights = render_for_training(part, tokenizer)
        asked = [m.text for m in part if m.role is Role.USER]
        found.append(_example(ids, weights, source, _digests(asked)))
    return [example for example in found if example.num_learnt]


class _Reader:
    """Turns rows into examples; collects problems and what is to be said."""

    def __init__(
        self, tokenizer: Tokenizer, max_tokens: int | None, effort: Effort, too_long: TooLong
    ) -> None:
        if max_tokens is not None and max_tokens < 2:
            raise DataError(f"max_tokens is {max_tokens}; expected 2 or more")
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._too_long = too_long
        self._problems = Problems()
        self._chat = ChatReader(self._problems, effort)
        self._long: Counter[str] = Counter()
        self._longest = 0
        self.notes: list[str] = []

    def read(self, files: Iterable[Path]) -> list[Example]:
        return [
            example
            for file in files
            for row in read_rows(file, self._problems)
            for example in self._examples(row)
        ]

    def finish(self, what: str, examples: Sequence[Example]) -> None:
        """Raise what is wrong, say what is not as it may be thought."""
        self._problems.check(what)
        if not examples:
            raise DataError(f"{what}: no example to learn from; expected at least one row")
        if self._long:
            done = ", ".join(f"{count} were {word}" for word, count in sorted(self._long.items()))
            self.notes.append(
                f"examples of more than {self._max_tokens} tokens (the longest has "
                f"{self._longest}): {done}"
            )
        for field, count in sorted(self._chat.unused.items()):
            self.notes.append(f"{field}: has a value in {count} rows and no effect")

    def _examples(self, row: RawRow) -> list[Example]:
        fields = row.fields
        if "messages" in fields:
            return self._conversation(row)
        if "prompt" in fields and "completion" in fields:
            messages = _from_completion(fields["prompt"], fields["completion"])
            if messages is not None:
                rest = {k: v for k, v in fields.items() if k not in ("prompt", "completion")}
                return self._conversation(RawRow(row.source, {**rest, "messages": messages}))
        elif isinstance(fields.get("text"), str):
            return list(self._text(row.source, fields["text"]))
        self._unknown(row)
        return []

    def _unknown(self, row: RawRow) -> None:
        found, advice = (
            f"the columns {', '.join(map(repr, row.fields)) or 'of an empty row'}",
            ("rename the columns, or convert the rows (docs/data.md)"),
        )
        if "preferred_output" in row.fields:
            found = "a pair of preferred and not preferred outputs"
            advice = "learn from pairs with aperto prefer"
        elif "prompt" in row.fields and "completion" in row.fields:
            found = f"prompt {shown(row.fields['prompt'])}"
            advice = "write both as text, or both as arrays of messages"
        expected = "'messages', 'prompt' and 'completion', or 'text'"
        self._problems.add(row.source, "", found, expected, advice)

    def _conversation(self, row: RawRow) -> list[Example]:
        conversation = self._chat.conversation(row)
        if conversation is None:
            return []
        found = examples_of(conversation, self._tokenizer, row.source)
        fitted = [self._fitted(example) for example in found]
        return [example for example in fitted if example is not None]

    def _fitted(self, example: Example) -> Example | None:
        limit = self._max_tokens
        if limit is None or len(example) <= limit:
            return example
        self._longest = max(self._longest, len(example))
        if self._too_long == "error":
            self._problems.add(
                example.source,
                "",
                f"{len(example)} tokens",
                f"at most {limit}",
                "train with longer rows, or ask for long examples to be cut or dropped",
            )
            return None
        cut = Example(
            example.token_ids[:limit], example.weights[:limit], example.source, example.digests
        )
        kept = self._too_long == "cut" and cut.num_learnt > 0
        self._long["cut" if kept else "dropped"] += 1
        return cut if kept else None

    def _text(self, source: str, text: str) -> Iterator[Example]:
        """A document and its end, in pieces that share one token, so that each but it is learnt."""
        ids = self._tokenizer.encode(text)
        if not ids:
            self._problems.add(source, "text", "no text", "some text", "remove the row")
            return
        ids.append(self._tokenizer.special_id("<|endoftext|>"))
        marks = _digests([text])
        step = len(ids) if self._max_tokens is None else self._max_tokens
        for start in range(0, len(ids) - 1, max(step - 1, 1)):
            part = ids[start : start + step]
            yield _example(part, [0.0] + [1.0] * (len(part) - 1), source, marks)


def _from_completion(prompt: Any, completion: Any) -> list[Any] | None:
    """A prompt and its completion as messages of which the completion alone is learnt."""
    if isinstance(prompt, str) and isinstance(completion, str):
        return [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": completion},
        ]
    if isinstance(prompt, list) and isinstance(completion, list):
        return [*map(_not_learnt, prompt), *completion]
    return None


def _not_learnt(message: Any) -> Any:
    if isinstance(message, dict) and message.get("role") == "assistant":
        return {**message, "weight": 0}
    return message


def _example(
    ids: Sequence[int], weights: Sequence[float], source: str, marks: tuple[str, ...]
) -> Example:
    return Example(np.asarray(ids, np.int32), np.asarray(weights, np.float32), source, marks)


def _digests(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(mark for text in texts for mark in digests(text)))


def _split(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Rows to learn from and rows held out; a row, and rows equal to it, are on one side."""
    rows: dict[str, list[Example]] = {}
    for example in examples:
        rows.setdefault(example.source, []).append(example)
    alike: dict[bytes, list[str]] = {}
    for source, members in rows.items():
        alike.setdefault(_place(members, seed), []).append(source)
    wanted, aside = round(share * len(rows)), set[str]()
    for place in sorted(alike):
        if len(aside) + len(alike[place]) <= wanted:
            aside.update(alike[place])
    train = [example for example in examples if example.source not in aside]
    return train, [example for example in examples if example.source in aside]


def _place(members: Sequence[Example], seed: int) -> bytes:
    """Where a row stands in the draw: a hash of its contents and the seed."""
    found = hashlib.sha256(str(seed).encode())
    for example in members:
        found.update(example.token_ids.astype("<i4").tobytes())
        found.update(example.weights.astype("<f4").tobytes())
    return found.digest()
