"""Reports: what a verdict says on paper, and that nothing in it can be changed unnoticed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from tests.vet.made import JUDGE, Signer, arms, joined, judged_well, protocol, sound, suite

from aperto.errors import SignatureError
from aperto.vet.evidence import Evidence
from aperto.vet.gate import decide
from aperto.vet.protocol import Arm
from aperto.vet.report import CARD_FILE, JSON_FILE, Report, false_alarms, model_card, write_report
from aperto.vet.sign import create_key, read_key, verify_folder

MODELS = {
    Arm.BASE: {"name": "nano", "sha256": "ab" * 32},
    Arm.ADAPTED: {"name": "nano + bakery | <b>", "sha256": "cd" * 32},
}


def made(adapted: float = 0.0, **fields: object) -> Report:
    frozen = protocol(
        suite("integrity", "integrity"),
        suite(margin=0.1, judged=True),
        suite("shift", "capability"),
        judging={"model": JUDGE},
        scope={"model": "nano", "use": "a help desk", "not_tested": ["other languages"]},
    )
    seen = joined(sound(), arms("bread", 0.0, adapted, judge=JUDGE), arms("shift", 0.1, 0.1))
    evidence = Evidence(frozen, seen, calibration=judged_well(), **fields)
    return Report(decide(evidence), MODELS, review_log=({"said": "more n", "done": "yes"},))


def test_json_holds_what_a_reader_needs_and_no_answers():
    report = made(0.5)
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert plain["schema"] == "aperto.verdict/1" and plain["decision"] == "BLOCK"
    assert plain["protocol"]["sha256"] == report.evidence.frozen.sha256
    bread = plain["suites"][1]["strata"][0]
    assert bread["harms"]["adapted"]["lower"] > 0.1
    assert bread["answers"]["adapted"]["number"] == 100
    assert bread["answers"]["base-again"]["mishaps"]["truncated"] == 0
    assert plain["judge"]["usable"] and plain["arms"]["base"]["name"] == "nano"
    assert plain["not_tested"] == ["other languages"] and "not say that" in plain["residual_risk"]
    assert plain["review_log"] == [{"said": "more n", "done": "yes"}]


def test_the_card_says_decision_reasons_and_gaps():
    text = model_card(made(0.5))
    assert text.startswith("## Safety evaluation\n\n**BLOCK**")
    assert "bread at effort low: harm +5" in text and "- other languages" in text
    assert "may grade" in text and "0 of 1 strata" in text


def test_a_card_of_a_pass_has_no_reasons():
    text = model_card(made(0.0))
    assert "**PASS**" in text and "### Why" not in text


def test_texts_cannot_break_out_of_the_card():
    text = model_card(made())
    assert "nano + bakery \\| &lt;b>" in text


def test_false_alarms_count_where_the_base_would_not_pass():
    frozen = protocol(suite("sums", "utility", margin=0.05), suite("words", "utility", margin=0.05))
    seen = joined(arms("sums", 0.9, 0.9, again=0.84), arms("words", 0.9, 0.9))
    alarms = false_alarms(decide(Evidence(frozen, seen)))
    assert (alarms.strata, alarms.not_passed) == (2, 1)


def test_suites_not_run_are_in_the_report():
    frozen = protocol(suite("sums", "utility"), suite("hle", "utility"))
    evidence = Evidence(frozen, arms("sums", 1.0, 1.0), not_run={"hle": "data unavailable"})
    report = Report(decide(evidence), MODELS)
    assert report.to_json()["not_run"] == {"hle": "data unavailable"}
    assert "- hle: data unavailable" in model_card(report)
    assert "All grading was exact" in model_card(report)


def test_named_reviewers_are_quoted(tmp_path: Path):
    reviewer = Signer(tmp_path)
    frozen = protocol(suite("shift", "capability"), reviewers=[reviewer.entry()])
    evidence = Evidence(frozen, arms("shift", 0.1, 0.6))
    signed = dataclasses.replace(evidence, sign_offs=(reviewer.signs(evidence),))
    text = model_card(Report(decide(signed), MODELS))
    assert "R. Viewer, 2026-01-02T00:00:00+00:00: looked at, accepted for internal use" in text


def test_written_reports_are_signed_and_one_byte_breaks_them(tmp_path: Path):
    public = create_key(tmp_path / "key.pem")
    folder = write_report(tmp_path / "out", made(), "<p>page</p>", read_key(tmp_path / "key.pem"))
    assert verify_folder(folder, public).unsigned == ()
    card = folder / CARD_FILE
    card.write_text(card.read_text().replace("PASS", "PASs", 1))
    with pytest.raises(SignatureError, match=CARD_FILE):
        verify_folder(folder)


def test_reports_can_be_written_without_a_key(tmp_path: Path):
    folder = write_report(tmp_path, made(), "<p>page</p>")
    assert json.loads((folder / JSON_FILE).read_text())["decision"] == "PASS"
    with pytest.raises(SignatureError, match="not signed"):
        verify_folder(folder)
