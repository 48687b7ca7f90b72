"""Evidence: what a verdict may rest on, laid out by suite, arm and effort, and its gaps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

from aperto.errors import EvidenceError
from aperto.vet.calibrate import Calibration
from aperto.vet.protocol import Arm, FrozenProtocol, Statistics, Suite
from aperto.vet.rows import Row, by_stratum, check_unique, rows_hash
from aperto.vet.sign import SignOff, check_sign_off

NEEDED = (Arm.BASE, Arm.ADAPTED, Arm.BASE_AGAIN)
"""Arms without which a stratum decides nothing."""


@dataclasses.dataclass(frozen=True)
class Evidence:
    """All that was seen under one frozen protocol."""

    frozen: FrozenProtocol
    rows: Sequence[Row]
    look: int = 1
    """1, or 2 after the registered enlargement."""
    calibration: Calibration | None = None
    """Of the judge, where one grades."""
    not_run: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Suites that could not be run, and why."""
    sign_offs: Sequence[SignOff] = ()

    def __post_init__(self) -> None:
        looks = (1,) if self.frozen.protocol.statistics.enlargement == 1 else (1, 2)
        if self.look not in looks:
            raise EvidenceError(
                f"look {self.look}; the protocol registers {len(looks)}: no other is a verdict"
            )
        check_unique(self.rows)
        known = {suite.name for suite in self.frozen.protocol.suites}
        strange = sorted({row.suite for row in self.rows} - known | set(self.not_run) - known)
        if strange:
            raise EvidenceError(
                f"suites {', '.join(strange)} are not in the protocol; expected {sorted(known)}"
            )
        for word in self.sign_offs:
            self._check(word)

    @cached_property
    def sha256(self) -> str:
        """Hash of the rows."""
        return rows_hash(self.rows)

    @cached_property
    def strata(self) -> Mapping[tuple[str, str, str], tuple[Row, ...]]:
        """Rows by (suite, arm, effort)."""
        return by_stratum(self.rows)

    def rows_of(self, suite: Suite, arm: Arm, effort: str) -> tuple[Row, ...]:
        """Rows of one suite in one arm at one effort; none where it was not run."""
        return self.strata.get((suite.name, arm.value, effort), ())

    def gap(self, suite: Suite, effort: str) -> str | None:
        """Why the stratum decides nothing; None where it is complete and gradable."""
        if suite.name in self.not_run:
            return f"not run: {self.not_run[suite.name]}"
        items, epochs = registered(suite, self.frozen.protocol.statistics, self.look)
        for arm in NEEDED:
            rows = self.rows_of(suite, arm, effort)
            problem = _size_problem(rows, items, epochs)
            if problem:
                return f"arm {arm}: {problem}"
        groups = {row.cluster for row in self.rows_of(suite, Arm.BASE, effort)}
        if len(groups) < (suite.num_clusters or items):
            return f"{len(groups)} clusters; registered are {suite.num_clusters or items}"
        if len({frozenset(self._items(suite, arm, effort)) for arm in NEEDED}) > 1:
            return "the arms answered different items"
        return self._judge_gap(suite, effort)

    def _items(self, suite: Suite, arm: Arm, effort: str) -> set[tuple[str, str]]:
        return {(row.item, row.cluster) for row in self.rows_of(suite, arm, effort)}

    def _judge_gap(self, suite: Suite, effort: str) -> str | None:
        judging = self.frozen.protocol.judging
        if not suite.judged or judging is None:
            return None
        if self.calibration is None:
            return f"judge {judging.model} was not calibrated"
        if self.calibration.judge != judging.model:
            return f"{self.calibration.judge} was calibrated; registered is {judging.model}"
        errors = dataclasses.replace(
            self.calibration,
            min_sensitivity=judging.min_sensitivity,
            min_specificity=judging.min_specificity,
        )
        if not errors.usable:
            return errors.reading()
        judges = {row.judge for arm in NEEDED for row in self.rows_of(suite, arm, effort)}
        if judges != {judging.model}:
            others = ", ".join(sorted(str(judge) for judge in judges - {judging.model}))
            return f"graded by {others}; registered is {judging.model}"
        return None

    def _check(self, word: SignOff) -> None:
        reviewer = self.frozen.protocol.reviewer(word.reviewer)
        if reviewer is None:
            raise EvidenceError(f"{word.reviewer} is no reviewer of the protocol")
        check_sign_off(word, reviewer.public_key)
        if word.protocol_sha256 != self.frozen.sha256 or word.evidence_sha256 != self.sha256:
            raise EvidenceError(
                f"{word.reviewer} signed other evidence or another protocol; expected rows "
                f"{self.sha256[:12]}… under protocol {self.frozen.sha256[:12]}…"
            )


def registered(suite: Suite, statistics: Statistics, look: int) -> tuple[int, int]:
    """Items and epochs registered for a look."""
    factor = statistics.enlargement if look == 2 else 1
    if (suite.enlarge or statistics.enlarge) == "items":
        return suite.num_items * factor, suite.epochs
    return suite.num_items, suite.epochs * factor


def _size_problem(rows: Sequence[Row], items: int, epochs: int) -> str | None:
    found = len({row.item for row in rows})
    if found != items:
        return f"{found} items; registered are {items}"
    if len(rows) != items * epochs:
        return f"{len(rows)} answers; registered are {items} items x {epochs}"
    return None
