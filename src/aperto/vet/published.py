"""Published figures of this and other models, each with its source and harness."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from aperto.errors import UsageError

Unit = Literal["share", "elo"]


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """One published number."""

    model: str
    effort: str | None
    """Reasoning effort, where it has one and it is stated."""
    suite: str
    tools: str | None
    """`none` or `tools`; None where the suite leaves no choice."""
    value: float
    """A share in 0..1, or Elo."""
    unit: Unit
    num_items: int | None
    """Number of questions, where known."""
    source: str
    harness: str
    note: str = ""

    @property
    def name(self) -> str:
        """Model and effort in words."""
        return f"{self.model} ({self.effort})" if self.effort else self.model


def published() -> tuple[Figure, ...]:
    """The figures that come with the package."""
    return _bundled()


def figures_of(
    suite: str, *, effort: str | None = None, figures: Iterable[Figure] | None = None
) -> tuple[Figure, ...]:
    """Figures of one suite, best first; with `effort`, those of that effort or of none."""
    found = [
        figure
        for figure in (published() if figures is None else figures)
        if figure.suite == suite and (effort is None or figure.effort in (effort, None))
    ]
    return tuple(sorted(found, key=lambda figure: (-figure.value, figure.name)))


def read_figures(path: str | Path) -> tuple[Figure, ...]:
    """Figures of a file of the same form as the one in the package.

    Raises UsageError that names the table that does not fit.
    """
    return _figures(Path(path).read_text(encoding="utf-8"), str(path))


@functools.cache
def _bundled() -> tuple[Figure, ...]:
    file = resources.files("aperto.vet") / "data" / "published.toml"
    return _figures(file.read_text(encoding="utf-8"), file.name)


def _figures(text: str, where: str) -> tuple[Figure, ...]:
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{where} is not TOML: {error}") from error
    found: list[Figure] = []
    for number, table in enumerate(content.get("tables", ()), start=1):
        try:
            found.extend(_of_table(table, content["sources"][table["source"]]))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{where}, table {number} ({table.get('suite')!r}): {error!r}; "
                "expected source, suite, values, and where known tools, unit, n, note"
            ) from error
    return tuple(found)


def _of_table(table: dict[str, Any], source: dict[str, str]) -> list[Figure]:
    unknown = set(table) - {"source", "suite", "tools", "unit", "n", "note", "values"}
    if unknown:
        raise ValueError(f"unknown keys {sorted(unknown)}")
    is_elo = table.get("unit") == "elo"
    return [
        Figure(
            model=key.partition("/")[0],
            effort=key.partition("/")[2] or None,
            suite=table["suite"],
            tools=table.get("tools"),
            value=float(value) if is_elo else float(value) / 100,
            unit="elo" if is_elo else "share",
            num_items=table.get("n"),
            source=source["title"],
            harness=source["harness"],
            note=table.get("note", ""),
        )
        for key, value in table["values"].items()
    ]
