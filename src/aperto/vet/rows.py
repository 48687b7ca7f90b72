"""Rows: one graded answer each, as JSON lines that any harness can write."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic

from aperto.errors import EvidenceError, UsageError
from aperto.vet.stats.interval import FloatArray

Effort = Literal["none", "low", "medium", "high"]


class Row(pydantic.BaseModel):
    """One answer and its grade. Truncated, failed and unparsable answers are rows too."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    suite: str = pydantic.Field(min_length=1)
    """Suite, and after a slash its family: `hierarchy/phrase`."""
    item: str = pydantic.Field(min_length=1)
    """Question; the same in every arm."""
    cluster: str = pydantic.Field(min_length=1)
    """What related questions share (base prompt, passage); else the item itself."""
    epoch: int = pydantic.Field(ge=0)
    """Which repeat of the question."""
    arm: str = pydantic.Field(min_length=1)
    """Whose answer: base, adapted, base-again, base-requantised, worst-case."""
    effort: Effort = "medium"
    """Reasoning effort asked for."""
    score: float
    """The grade; what it means is the suite's: correct, unsafe, ..."""
    label: str | None = None
    """The grade in a word or the answer extracted; None where none could be."""
    truncated: bool = False
    """Whether the answer ended at its token limit."""
    error: str | None = None
    """Why there is no answer, where there is none."""
    judge: str | None = None
    """Who graded; None for exact grading."""
    analysis_score: float | None = None
    """The same grade of the reasoning, where it is graded; never part of a verdict."""
    output_tokens: int | None = pydantic.Field(default=None, ge=0)
    """Tokens of the whole turn, reasoning included."""
    repairs: int = pydantic.Field(default=0, ge=0)
    """Slips of format mended by the parser."""
    answer_sha256: str | None = None
    """Hash of the final text; texts themselves are not kept."""

    @pydantic.field_validator("score", "analysis_score")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        if value is not None and not math.isfinite(value):
            raise ValueError("expected a finite number")
        return value

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """What no two rows may share."""
        return (self.suite, self.arm, self.effort, self.item, self.epoch)


def read_rows(path: str | Path) -> tuple[Row, ...]:
    """Rows of a JSON-lines file; blank lines are skipped.

    Raises EvidenceError for a line that is no row, and for two rows of one answer.
    """
    rows = []
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                rows.append(_row(line, f"{path}, line {number}"))
    check_unique(rows)
    return tuple(rows)


def write_rows(path: str | Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines; fields that have their default are left out."""
    with Path(path).open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(_line(row) + "\n")


def rows_hash(rows: Iterable[Row]) -> str:
    """SHA-256 of rows, whatever their order; hex."""
    lines = sorted(_line(row) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_unique(rows: Iterable[Row]) -> None:
    """Check that no answer was counted twice.

    Raises EvidenceError that names the first one that was.
    """
    key, number = next(iter(Counter(row.key for row in rows).most_common(1)), (None, 0))
    if key is not None and number > 1:
        suite, arm, effort, item, epoch = key
        raise EvidenceError(
            f"{number} rows for item {item!r}, epoch {epoch} of suite {suite!r}, arm {arm!r}, "
            f"effort {effort!r}; expected one. Remove the rows of the run that was repeated"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class ItemScores:
    """Scores of one arm by item: means over repeats, in the order of `items`."""

    items: tuple[str, ...]
    clusters: tuple[str, ...]
    means: FloatArray
    """Mean score over repeats, [items]."""
    repeats: tuple[int, ...]
    """Number of answers to each item."""

    @property
    def is_binary(self) -> bool:
        """Whether every item has one answer of score 0 or 1."""
        single = all(number == 1 for number in self.repeats)
        return single and bool(np.isin(self.means, (0.0, 1.0)).all())

    @property
    def is_clustered(self) -> bool:
        """Whether items share clusters."""
        return len(set(self.clusters)) < len(self.items)


def item_scores(rows: Iterable[Row]) -> ItemScores:
    """Mean score by item; the rows are those of one suite, arm and effort.

    Raises UsageError where there are no rows, or an item lies in two clusters.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    clusters: dict[str, str] = {}
    for row in rows:
        scores[row.item].append(row.score)
        if clusters.setdefault(row.item, row.cluster) != row.cluster:
            raise UsageError(
                f"item {row.item!r} of suite {row.suite!r} lies in the clusters "
                f"{clusters[row.item]!r} and {row.cluster!r}; expected one"
            )
    if not scores:
        raise UsageError("there are no rows; expected those of one suite, arm and effort")
    items = tuple(sorted(scores))
    means = np.array([math.fsum(scores[item]) / len(scores[item]) for item in items])
    return ItemScores(
        items,
        tuple(clusters[item] for item in items),
        means,
        tuple(len(scores[item]) for item in items),
    )


def by_stratum(rows: Iterable[Row]) -> dict[tuple[str, str, str], tuple[Row, ...]]:
    """Rows by (suite, arm, effort)."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.suite, row.arm, row.effort].append(row)
    return {key: tuple(group) for key, group in groups.items()}


def share(rows: Sequence[Row], attribute: Literal["truncated", "error", "repairs"]) -> float:
    """Share of rows that were truncated, failed, or had slips of format mended."""
    return sum(bool(getattr(row, attribute)) for row in rows) / len(rows)


def _line(row: Row) -> str:
    return json.dumps(row.model_dump(exclude_defaults=True), sort_keys=True, ensure_ascii=False)


def _row(line: str, where: str) -> Row:
    try:
        return Row.model_validate_json(line)
    except pydantic.ValidationError as error:
        found = error.errors()[0]
        field = ".".join(str(part) for part in found["loc"]) or "the line"
        raise EvidenceError(f"{where}: {field}: {found['msg']}; expected a row") from error
