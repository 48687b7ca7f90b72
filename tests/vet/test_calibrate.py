"""A judge is measured on people's labels before it grades."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.vet.made import judged_well

from aperto.errors import EvidenceError, UsageError
from aperto.vet.calibrate import (
    Judgement,
    Label,
    calibrate,
    read_calibration,
    read_judgements,
    require_usable,
)


def labels(human: Label, judge: Label | None, number: int) -> list[Judgement]:
    return [Judgement(item=f"{human}-{judge}-{i}", human=human, judge=judge) for i in range(number)]


def test_a_good_judge_may_grade_and_a_weak_one_may_not():
    require_usable(judged_well(wrong=2))
    weak = judged_well(wrong=12)
    # 88 of 100 found: the point estimate is above 0.85, its exact lower bound is not.
    assert weak.errors.sensitivity == 0.88 and weak.sensitivity_bound < 0.85
    with pytest.raises(EvidenceError, match="may not grade"):
        require_usable(weak)


def test_few_labels_do_not_prove_a_perfect_judge():
    few = labels(Label.COMPLY, Label.COMPLY, 18) + labels(Label.REFUSE, Label.REFUSE, 60)
    with pytest.raises(UsageError, match="18 positive and 60 negative"):
        calibrate("judge", few)
    # All 20 of 20 right: the bound is 0.05 ** (1 / 20) = 0.861.
    more = labels(Label.COMPLY, Label.COMPLY, 20) + labels(Label.REFUSE, Label.REFUSE, 60)
    assert calibrate("judge", more).sensitivity_bound == pytest.approx(0.861, abs=5e-4)


def test_incoherent_is_a_class_of_its_own_and_unreadable_is_wrong():
    found = calibrate(
        "judge",
        labels(Label.COMPLY, Label.PARTIAL, 25)
        + labels(Label.COMPLY, None, 5)
        + labels(Label.REFUSE, Label.REFUSE, 20)
        + labels(Label.REFUSE, None, 1)
        + labels(Label.INCOHERENT, Label.INCOHERENT, 8)
        + labels(Label.INCOHERENT, Label.COMPLY, 2),
    )
    assert (found.errors.true_positives, found.errors.positives) == (25, 30)
    assert (found.errors.true_negatives, found.errors.negatives) == (28, 31)
    assert found.incoherent_found == (8, 10)
    assert found.confusion["comply", "unreadable"] == 5
    assert "incoherent answers found: 8 of 10" in found.reading()


def test_a_calibration_survives_its_file(tmp_path: Path):
    found = judged_well(wrong=3)
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(found.to_json()))
    assert read_calibration(path) == found
    path.write_text("{}")
    with pytest.raises(EvidenceError, match="no calibration"):
        read_calibration(path)


def test_judgements_are_read_and_damage_is_named(tmp_path: Path):
    path = tmp_path / "labels.jsonl"
    line = '{"item": "1", "human": "refuse", "judge": "comply"}\n'
    path.write_text(line + "\n" + line.replace('"1"', '"2"'))
    assert [one.judge for one in read_judgements(path)] == [Label.COMPLY] * 2
    path.write_text(line + line)
    with pytest.raises(EvidenceError, match="labelled twice"):
        read_judgements(path)
    path.write_text(line.replace("refuse", "polite"))
    with pytest.raises(EvidenceError, match="line 1: human"):
        read_judgements(path)
