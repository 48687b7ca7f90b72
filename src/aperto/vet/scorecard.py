"""The scorecard: one model's scores with their noise, beside published figures."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aperto.errors import UsageError
from aperto.vet.compare import level
from aperto.vet.published import Figure, figures_of, published
from aperto.vet.reading import Reading, Standing, read_beside
from aperto.vet.rows import Row, by_stratum, check_unique, rows_hash, share
from aperto.vet.stats import Estimate

SCHEMA = "aperto.scorecard/1"
STANDINGS: tuple[Standing, ...] = ("within noise of", "below", "above")
EFFORTS = ("none", "low", "medium", "high")


@dataclasses.dataclass(frozen=True, slots=True)
class Mishaps:
    """Shares of answers that went wrong; all of them stay in the denominator."""

    truncated: float
    failed: float
    unlabelled: float
    """Of which no label could be extracted."""
    repaired: float
    """In which the parser mended slips of format."""


@dataclasses.dataclass(frozen=True, slots=True)
class Tokens:
    """Output tokens of an answer, reasoning included."""

    mean: float
    median: float
    ninetieth: float


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One suite at one effort."""

    suite: str
    effort: str
    score: Estimate
    num_answers: int
    mishaps: Mishaps
    tokens: Tokens | None
    """None where the rows do not tell."""
    beside: tuple[tuple[Figure, Reading], ...]
    """Published figures of the same suite, and what ours says beside them."""

    @property
    def reading(self) -> str:
        """What the score says, in a sentence; the interval where nothing is published."""
        if not self.beside:
            low, high = 100 * self.score.lower, 100 * self.score.upper
            return f"{100 * self.score.value:.1f}, between {low:.1f} and {high:.1f}"
        return "; ".join(text for standing in STANDINGS if (text := self._those(standing)))

    def _those(self, standing: Standing) -> str:
        """The published figures of one standing, nearest first."""
        found = [(f, r) for f, r in self.beside if r.standing == standing]
        found.sort(key=lambda pair: abs(pair[1].difference))
        names = ", ".join(
            f"{figure.name} at {100 * figure.value:.1f} ({100 * reading.difference:+.1f})"
            for figure, reading in found
        )
        return f"{standing} {names}" if names else ""


@dataclasses.dataclass(frozen=True, slots=True)
class Scorecard:
    """All suites of one model."""

    model: str
    lines: tuple[Line, ...]
    not_run: Mapping[str, str]
    """Suites that could not be run, and why; never a score."""
    manifest: Mapping[str, Any]
    """What is needed to reproduce an answer: hashes, package, instruction set, seeds."""
    rows_sha256: str

    def curve(self, suite: str) -> tuple[tuple[str, float, Estimate], ...]:
        """Effort, mean tokens and score of a suite, from little effort to much."""
        return tuple(
            (line.effort, line.tokens.mean, line.score)
            for line in self.lines
            if line.suite == suite and line.tokens is not None
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; `schema` tells readers what to expect."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "rows_sha256": self.rows_sha256,
            "manifest": dict(self.manifest),
            "not_run": dict(self.not_run),
            "lines": [_line_json(line) for line in self.lines],
        }


def make_scorecard(
    rows: Iterable[Row],
    *,
    model: str,
    arm: str,
    manifest: Mapping[str, Any] | None = None,
    not_run: Mapping[str, str] | None = None,
    figures: Sequence[Figure] | None = None,
    tools: str = "none",
    confidence: float = 0.95,
) -> Scorecard:
    """Sum up one arm's rows.

    Args:
        rows: of any arms; those of `arm` are taken.
        model: its name on the card.
        arm: whose card it is.
        manifest: what reproduces an answer.
        not_run: suites that could not be run, and why.
        figures: to compare with; the package's own where not given.
        tools: what the model had at hand, `none` or `tools`; only like is set beside like.
        confidence: of the intervals, two-sided.

    Raises UsageError where there are no rows of that arm, EvidenceError for answers twice.
    """
    own = [row for row in rows if row.arm == arm]
    if not own:
        raise UsageError(f"there are no rows of arm {arm!r}")
    check_unique(own)
    known = published() if figures is None else figures
    strata = by_stratum(own)
    keys = sorted(strata, key=lambda key: (key[0], EFFORTS.index(key[2])))
    return Scorecard(
        model=model,
        lines=tuple(_line(strata[key], known, tools, confidence) for key in keys),
        not_run=dict(not_run or {}),
        manifest=dict(manifest or {}),
        rows_sha256=rows_hash(own),
    )


def mishaps(rows: Sequence[Row]) -> Mishaps:
    """What went wrong in some rows."""
    return Mishaps(
        truncated=share(rows, "truncated"),
        failed=share(rows, "error"),
        unlabelled=sum(row.label is None for row in rows) / len(rows),
        repaired=share(rows, "repairs"),
    )


def tokens_of(rows: Sequence[Row]) -> Tokens | None:
    """Tokens of an answer; None where a row does not tell."""
    counts = sorted(row.output_tokens for row in rows if row.output_tokens is not None)
    if len(counts) < len(rows):
        return None
    place = min(len(counts) - 1, round(0.9 * (len(counts) - 1)))
    return Tokens(statistics.fmean(counts), statistics.median(counts), counts[place])


def markdown(card: Scorecard) -> str:
    """The card in Markdown: scores, what went wrong, and readings beside published figures."""
    heads = "| suite | effort | score | 95 % interval | n | truncated | tokens | beside |"
    rows = [
        f"| {line.suite} | {line.effort} | {100 * line.score.value:.1f} "
        f"| {100 * line.score.lower:.1f} to {100 * line.score.upper:.1f} "
        f"| {line.score.num_items} | {100 * line.mishaps.truncated:.1f} % "
        f"| {'–' if line.tokens is None else format(line.tokens.mean, ',.0f')} | {line.reading} |"
        for line in card.lines
    ]
    missing = [f"- {name}: not run: {why}" for name, why in card.not_run.items()]
    return (
        "\n".join([f"# {card.model}", "", heads, "|---" * 8 + "|", *rows, "", *missing]).rstrip()
        + "\n"
    )


def _line(rows: Sequence[Row], figures: Sequence[Figure], tools: str, confidence: float) -> Line:
    suite, effort = rows[0].suite, rows[0].effort
    score = level(rows, confidence)
    beside = tuple(
        (figure, read_beside(score, figure))
        for figure in figures_of(suite, effort=effort, figures=figures)
        if figure.unit == "share" and figure.tools in (None, tools)
    )
    return Line(suite, effort, score, len(rows), mishaps(rows), tokens_of(rows), beside)


def _line_json(line: Line) -> dict[str, Any]:
    return {
        "suite": line.suite,
        "effort": line.effort,
        "score": line.score.to_json(),
        "num_answers": line.num_answers,
        "mishaps": dataclasses.asdict(line.mishaps),
        "tokens": dataclasses.asdict(line.tokens) if line.tokens else None,
        "beside": [
            {"figure": dataclasses.asdict(figure), "reading": dataclasses.asdict(reading)}
            for figure, reading in line.beside
        ],
        "reading": line.reading,
    }
