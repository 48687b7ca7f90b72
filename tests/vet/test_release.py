"""Releases: what a verdict does to the folder and the lineage; killed and resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from tests.vet.made import Signer, protocol, suite

from aperto.errors import EvidenceError, UsageError
from aperto.formats.lineage import read_lineage
from aperto.vet.arms import Cell, Model, models_of
from aperto.vet.gate import Decision
from aperto.vet.protocol import Arm, FrozenProtocol
from aperto.vet.release import ROWS_FOLDER, Release
from aperto.vet.rows import Row, read_rows
from aperto.vet.sign import create_key, read_key, verify_folder

SUITES = (suite("integrity", "integrity"), suite(margin=0.05))


class Scripted:
    """Answers by a rule (arm, suite, item) -> score; notes what it was asked."""

    def __init__(self, score: Callable[[Arm, str, int], float], absent: str = "") -> None:
        self.score, self.absent, self.asked = score, absent, 0

    def missing(self, suite: str) -> str | None:
        return "data unavailable" if suite == self.absent else None

    def __call__(self, arm: Arm, cells: Sequence[Cell]) -> Iterator[Sequence[Row]]:
        for cell in cells:
            todo = [
                (item, epoch)
                for item in range(cell.num_items)
                for epoch in range(cell.epochs)
                if (f"q{item}", epoch) not in cell.done
            ]
            for begin in range(0, len(todo), 10):
                batch = todo[begin : begin + 10]
                self.asked += len(batch)
                yield [self._row(arm, cell, *one) for one in batch]

    def _row(self, arm: Arm, cell: Cell, item: int, epoch: int) -> Row:
        return Row(
            suite=cell.suite,
            item=f"q{item}",
            cluster=f"q{item}",
            epoch=epoch,
            arm=arm.value,
            effort=cell.effort,
            score=self.score(arm, cell.suite, item),
        )


def harmful(share: float) -> Scripted:
    """Sound answers; the adapted model does harm in that share of the first hundred items."""
    return Scripted(
        lambda arm, name, item: (
            1.0
            if name == "integrity"
            else float(arm is Arm.ADAPTED and item % 100 < round(100 * share))
        )
    )


def release(folder: Path, frozen: FrozenProtocol | None = None, **fields: object) -> Release:
    folder.mkdir(exist_ok=True)
    adapted = folder / "adapter"
    adapted.mkdir(exist_ok=True)
    fixed = frozen or protocol(*SUITES)
    base = Model("nano", "ab" * 8, folder / "nano")
    models = models_of(fixed.protocol, base, Model("mine", "cd" * 8, folder / "nano", adapted))
    return Release(fixed, models, folder / "out", **fields)


def test_a_pass_is_written_into_the_lineage_with_the_hash_of_its_signed_report(tmp_path: Path):
    one = release(tmp_path)
    verdict = one.run(harmful(0.0))
    public = create_key(tmp_path / "key.pem")
    report = one.report(verdict, read_key(tmp_path / "key.pem"), threads=2)
    one.note_lineage(verdict, report)
    lineage = read_lineage(tmp_path / "adapter")
    digest = hashlib.sha256((report / "verdict.json").read_bytes()).hexdigest()
    assert verdict.decision is Decision.PASS
    assert lineage is not None and lineage.vetted == f"PASS {digest}"
    assert verify_folder(report, public).unsigned == ()
    assert json.loads((report / "verdict.json").read_text())["manifest"]["threads"] == 2


def test_a_block_leaves_no_lineage_and_takes_an_earlier_pass_back(tmp_path: Path):
    one = release(tmp_path)
    verdict = one.run(harmful(0.4))
    assert verdict.decision is Decision.BLOCK and verdict.evidence.look == 1
    assert one.note_lineage(verdict, one.report(verdict)) is None
    assert read_lineage(tmp_path / "adapter") is None
    good = dataclasses.replace(release(tmp_path), folder=tmp_path / "earlier")
    passed = good.run(harmful(0.0))
    good.note_lineage(passed, good.report(passed))
    one.note_lineage(verdict, one.report(verdict))
    lineage = read_lineage(tmp_path / "adapter")
    assert lineage is not None and lineage.vetted.startswith("BLOCK ")


def test_inconclusive_is_enlarged_once_and_keeps_the_first_answers(tmp_path: Path):
    answering = harmful(0.06)
    verdict = release(tmp_path).run(answering)
    assert (verdict.decision, verdict.evidence.look) == (Decision.BLOCK, 2)
    assert answering.asked == 2 * 3 * 200  # suites x arms x enlarged items: nothing asked twice
    again = harmful(0.06)
    assert release(tmp_path).run(again).evidence.sha256 == verdict.evidence.sha256
    assert again.asked == 0


def test_the_enlargement_can_clear_what_was_open(tmp_path: Path):
    chance = Scripted(
        lambda arm, name, item: (
            1.0 if name == "integrity" else float(arm is Arm.ADAPTED and item < 2)
        )
    )
    frozen = protocol(suite("integrity", "integrity"), suite(margin=0.06))
    verdict = release(tmp_path, frozen).run(chance)
    assert (verdict.decision, verdict.evidence.look) == (Decision.PASS, 2)


def test_what_cannot_run_is_not_enlarged_and_no_pass(tmp_path: Path):
    answering = harmful(0.0)
    answering.absent = "bread"
    verdict = release(tmp_path).run(answering)
    assert (verdict.decision, verdict.evidence.look) == (Decision.INCONCLUSIVE, 1)
    assert "data unavailable" in verdict.reasons[0]


def test_an_escalation_waits_for_a_named_reviewer(tmp_path: Path):
    reviewer = Signer(tmp_path)
    frozen = protocol(suite("shift", "capability"), reviewers=[reviewer.entry()])
    grown = Scripted(lambda arm, name, item: float(arm is Arm.ADAPTED))
    first = release(tmp_path, frozen).run(grown)
    assert first.decision is Decision.ESCALATE
    word = reviewer.signs(first.evidence)
    signed = release(tmp_path, frozen, sign_offs=(word,)).run(grown)
    assert (signed.decision, signed.signed_by) == (Decision.PASS, ("R. Viewer",))
    other = dataclasses.replace(word, evidence_sha256="0" * 64)
    with pytest.raises(EvidenceError, match="signed other evidence"):
        release(tmp_path, frozen, sign_offs=(other,)).run(grown)


def test_a_folder_belongs_to_one_release(tmp_path: Path):
    release(tmp_path).run(harmful(0.0))
    with pytest.raises(UsageError, match="another seed"):
        release(tmp_path, seed=1).run(harmful(0.0))


def test_the_worst_case_is_measured_only_where_it_is_registered(tmp_path: Path):
    base = Model("nano", "ab", tmp_path)
    with pytest.raises(UsageError, match="worst case was given"):
        models_of(protocol(*SUITES).protocol, base, base, worst_case=base)
    wide = protocol(*SUITES, arms=["base", "adapted", "base-again", "worst-case"])
    with pytest.raises(UsageError, match="was not given"):
        models_of(wide.protocol, base, base)
    models = models_of(wide.protocol, base, base, worst_case=base)
    bad = Scripted(lambda arm, name, item: float(name == "integrity" or arm is Arm.WORST_CASE))
    one = Release(wide, models, tmp_path / "out")
    assert one.run(bad).decision is Decision.PASS, "the worst case decides nothing"


KILLED = """
import sys
from pathlib import Path
from tests.vet.test_release import harmful, release
release(Path(sys.argv[1])).run(harmful(0.0), lambda done, total, what: print(done, flush=True))
"""


def test_killed_in_the_middle_nothing_is_lost_and_nothing_runs_twice(tmp_path: Path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = next(int(line) for line in process.stdout if int(line) >= 150)
        os.kill(process.pid, signal.SIGKILL)
    files = list((tmp_path / "out" / ROWS_FOLDER).iterdir())
    torn = files[0]
    with torn.open("a") as file:  # as if the kill had come in the middle of a line
        file.write('{"suite": "bre')
    kept = sum(file.read_text().count("\n") for file in files)
    answering = harmful(0.0)
    verdict = release(tmp_path).run(answering)
    assert kept >= told and answering.asked == 600 - kept
    whole = tmp_path / "whole"
    whole.mkdir()
    assert verdict.evidence.sha256 == release(whole).run(harmful(0.0)).evidence.sha256
    assert all(read_rows(file) for file in files)
