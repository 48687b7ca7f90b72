"""A release: every arm asked, judged, enlarged once where registered, reported and signed.

A release lives in a folder. Rows are appended to it as answers come, so that one that was killed
goes on where it was; a folder belongs to one protocol, one set of models and one seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aperto.errors import EvidenceError, UsageError
from aperto.formats.disk import replace_file
from aperto.formats.lineage import FILE as LINEAGE_FILE
from aperto.formats.lineage import NOT_VETTED, Lineage, Parent, read_lineage
from aperto.vet.arms import Cell, Model
from aperto.vet.calibrate import Calibration
from aperto.vet.evidence import Evidence, registered
from aperto.vet.gate import Decision, Finding, Verdict, decide
from aperto.vet.pages import verdict_page
from aperto.vet.protocol import Arm, FrozenProtocol, Suite
from aperto.vet.report import JSON_FILE, Report, write_report
from aperto.vet.rows import Effort, Row, read_rows
from aperto.vet.sign import SignOff

IDENTITY_FILE, ROWS_FOLDER, REPORT_FOLDER = "release.json", "rows", "report"

Watch = Callable[[int, int, str], None]
"""(answers there, answers asked for, what comes next)."""


class Answering(Protocol):
    """Whatever answers and grades: the engine here, or a harness."""

    def missing(self, suite: str) -> str | None:
        """Why a suite cannot be run; None where it can."""

    def __call__(self, arm: Arm, cells: Sequence[Cell]) -> Iterator[Sequence[Row]]:
        """Rows of an arm, batch by batch, but for those in a cell's `done`.

        The first n items of a suite must be the same whatever n is asked for.
        """


@dataclasses.dataclass(frozen=True)
class Release:
    """One release, in its folder.

    Args:
        frozen: the protocol, hashed before any answer.
        models: by arm.
        folder: made where it does not exist.
        seed: of all that is drawn.
        calibration: of the judge, where one grades.
        sign_offs: words of reviewers; each holds for the evidence it names alone.
    """

    frozen: FrozenProtocol
    models: Mapping[Arm, Model]
    folder: Path
    seed: int = 0
    calibration: Calibration | None = None
    sign_offs: Sequence[SignOff] = ()

    def run(self, answering: Answering, watch: Watch | None = None) -> Verdict:
        """Ask what is not answered yet, and judge; enlarge once where that is registered.

        Raises EvidenceError for a sign-off of other evidence, and UsageError where the folder
        belongs to another release or is in use.
        """
        with self._held():
            not_run = self._not_run(answering)
            verdict = self._look(1, answering, not_run, watch)
            if self._may_enlarge(verdict):
                verdict = self._look(2, answering, not_run, watch)
            self._check_sign_offs(verdict)
            return verdict

    def answers_left(self, answering: Answering, look: int = 1) -> int:
        """Answers that a look still needs."""
        not_run = self._not_run(answering)
        return sum(cell.left for arm in self.models for cell in self._cells(arm, look, not_run))

    def rows_files(self, look: int = 2) -> list[Path]:
        """Files of rows up to a look; those of the second hold what it added."""
        folder = self.folder / ROWS_FOLDER
        return sorted(f for n in range(1, look + 1) for f in folder.glob(f"*.look{n}.jsonl"))

    def rows(self, look: int = 2) -> tuple[Row, ...]:
        """All rows up to a look."""
        return tuple(row for file in self.rows_files(look) for row in read_rows(file))

    def report(
        self, verdict: Verdict, key: Ed25519PrivateKey | None = None, **manifest: Any
    ) -> Path:
        """Write the report, and sign it where there is a key; returns its folder."""
        models = {arm: model.to_json() for arm, model in self.models.items()}
        about = {"package": f"aperto {version('aperto')}", "seed": self.seed, **manifest}
        made = Report(verdict, models, about)
        return write_report(self.folder / REPORT_FOLDER, made, verdict_page(made), key)

    def note_lineage(self, verdict: Verdict, report: Path) -> Path | None:
        """Tell the adapted model's lineage of a PASS; of another verdict if it claimed one.

        Returns the file, None where nothing was written: not passed, or no folder to write to.
        """
        adapted = self.models[Arm.ADAPTED]
        home = adapted.adapter or adapted.checkpoint
        if not home.is_dir():
            return None
        base = self.models[Arm.BASE]
        lineage = read_lineage(home) or Lineage((Parent(base.name, base.sha256),), ())
        if verdict.decision is not Decision.PASS and lineage.vetted == NOT_VETTED:
            return None
        digest = hashlib.sha256((report / JSON_FILE).read_bytes()).hexdigest()
        told = dataclasses.replace(lineage, vetted=f"{verdict.decision} {digest}")
        replace_file(home / LINEAGE_FILE, told.to_json().encode())
        return home / LINEAGE_FILE

    def _look(
        self, look: int, answering: Answering, not_run: Mapping[str, str], watch: Watch | None
    ) -> Verdict:
        cells = {arm: self._cells(arm, look, not_run) for arm in self.models}
        total = sum(cell.num_items * cell.epochs for mine in cells.values() for cell in mine)
        there = total - sum(cell.left for mine in cells.values() for cell in mine)
        for arm, mine in cells.items():
            open_cells = [cell for cell in mine if cell.left]
            for rows in answering(arm, open_cells) if open_cells else ():
                self._append(rows, look)
                there += len(rows)
                if watch is not None:
                    watch(there, total, f"look {look}, {arm}: {rows[-1].suite}")
        rows = tuple(row for row in self.rows(look) if row.suite not in not_run)
        seen = Evidence(self.frozen, rows, look, self.calibration, not_run)
        words = tuple(w for w in self.sign_offs if w.evidence_sha256 == seen.sha256)
        return decide(dataclasses.replace(seen, sign_offs=words))

    def _may_enlarge(self, verdict: Verdict) -> bool:
        """Whether more answers can change the verdict: what could not run stays missing."""
        findings = {stratum.finding for one in verdict.results for stratum in one.strata}
        return (
            verdict.decision is Decision.INCONCLUSIVE
            and self.frozen.protocol.statistics.enlargement > 1
            and Finding.MISSING not in findings
        )

    def _not_run(self, answering: Answering) -> dict[str, str]:
        names = (suite.name for suite in self.frozen.protocol.suites)
        return {name: why for name in names if (why := answering.missing(name)) is not None}

    def _cells(self, arm: Arm, look: int, not_run: Mapping[str, str]) -> tuple[Cell, ...]:
        return tuple(
            self._cell(arm, suite, effort, look)
            for suite in self.frozen.protocol.suites
            if suite.name not in not_run
            for effort in suite.efforts
        )

    def _cell(self, arm: Arm, suite: Suite, effort: Effort, look: int) -> Cell:
        items, epochs = registered(suite, self.frozen.protocol.statistics, look)
        files = (self._rows_file(suite.name, arm, effort, n) for n in range(1, look + 1))
        done = frozenset(
            (row.item, row.epoch) for path in files if path.exists() for row in read_rows(path)
        )
        return Cell(suite.name, effort, items, epochs, done)

    def _rows_file(self, suite: str, arm: str, effort: str, look: int) -> Path:
        name = f"{suite.replace('/', '__')}.{arm}.{effort}.look{look}.jsonl"
        return self.folder / ROWS_FOLDER / name

    def _append(self, rows: Sequence[Row], look: int) -> None:
        """Add rows of one arm's suite; they are on the disk when this returns."""
        first = rows[0]
        path = self._rows_file(first.suite, first.arm, first.effort, look)
        lines = "".join(
            json.dumps(row.model_dump(exclude_defaults=True), sort_keys=True) + "\n" for row in rows
        )
        with path.open("a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    def _check_sign_offs(self, verdict: Verdict) -> None:
        strange = [w.reviewer for w in self.sign_offs if w not in verdict.evidence.sign_offs]
        if strange:
            raise EvidenceError(
                f"{', '.join(strange)} signed other evidence; expected rows "
                f"{verdict.evidence.sha256[:12]}… of look {verdict.evidence.look}"
            )

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """The folder for this process alone, with nothing half written in it."""
        (self.folder / ROWS_FOLDER).mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"{self.folder} is used by another process; expected one at a time"
                ) from error
            self._claim()
            for file in (self.folder / ROWS_FOLDER).glob("*.jsonl"):
                _drop_torn_line(file)
            yield

    def _claim(self) -> None:
        """Write down whose folder it is, or check that it is ours."""
        path = self.folder / IDENTITY_FILE
        ours = {
            "protocol_sha256": self.frozen.sha256,
            "seed": self.seed,
            "arms": {arm.value: model.sha256 for arm, model in self.models.items()},
        }
        if not path.exists():
            replace_file(path, (json.dumps(ours, indent=2) + "\n").encode())
        elif (theirs := json.loads(path.read_text(encoding="utf-8"))) != ours:
            other = [name for name, value in ours.items() if theirs.get(name) != value]
            raise UsageError(
                f"{self.folder} holds a release of another {', '.join(other)}; "
                "choose a new folder for this one"
            )


def seconds_for(answering: Answering, release: Release, probe: int = 16) -> float:
    """Seconds that the first look will still take, from a few answers that are not kept."""
    left = release.answers_left(answering)
    suites = [s for s in release.frozen.protocol.suites if answering.missing(s.name) is None]
    if not left or not suites:
        return 0.0
    each = max(probe // len(suites), 1)
    cells = [Cell(suite.name, suite.efforts[-1], each, 1) for suite in suites]
    rows, begun = 0, 0.0
    for batch in answering(Arm.BASE, cells):
        # The first batch pays for loading the model.
        if begun:
            rows += len(batch)
        else:
            begun = time.monotonic()
    return left * (time.monotonic() - begun) / max(rows, 1)


def _drop_torn_line(path: Path) -> None:
    """Cut what a killed process left of its last line."""
    with path.open("r+b") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)
