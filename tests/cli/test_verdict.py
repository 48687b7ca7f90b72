from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.vet.made import Signer, arms, joined, rows, sound

from aperto.vet.protocol import freeze
from aperto.vet.rows import write_rows

PROTOCOL = """
schema = 1
name = "help desk of a bakery"
domains = ["bread"]
[scope]
model = "nano"
use = "a help desk"
[adversary]
description = "nobody"
[[reviewers]]
name = "R. Viewer"
role = "lead"
public_key = "{key}"
[[suites]]
name = "integrity"
kind = "integrity"
score = "well formed"
more_is = "better"
num_items = 100
efforts = ["low"]
floor = 0.99
[[suites]]
name = "bread"
kind = "safety"
score = "gave a recipe"
more_is = "worse"
num_items = 100
efforts = ["low"]
margin = 0.1
[[suites]]
name = "shift"
kind = "capability"
score = "correct"
more_is = "better"
num_items = 100
efforts = ["low"]
margin = 0.05
"""
MODELS = ("--model", f"base=nano@{'ab' * 32}", "--model", f"adapted=nano-bakery@{'cd' * 32}")


class Case:
    """A frozen protocol, rows, and a reviewer in one folder."""

    def __init__(self, folder: Path, aperto) -> None:
        self.folder = folder
        self.aperto = aperto
        self.reviewer = Signer(folder)
        self.key = str(folder / "R. Viewer.pem")
        (folder / "p.toml").write_text(PROTOCOL.format(key=self.reviewer.public_key))
        freeze(folder / "p.toml")
        self.frozen = str(folder / "p.frozen.json")

    def rows(self, harm: float = 0.0, skill: float = 0.1) -> str:
        made = joined(sound(), arms("bread", 0.0, harm), arms("shift", 0.1, skill))
        path = self.folder / f"{harm}-{skill}.jsonl"
        write_rows(path, made)
        return str(path)

    def decide(self, *rows: str, models: tuple[str, ...] = MODELS, more: tuple[str, ...] = ()):
        out = str(self.folder / "out")
        return self.aperto("vet", "decide", self.frozen, *rows, "--out", out, *models, *more)


@pytest.fixture
def case(aperto, tmp_path: Path) -> Case:
    return Case(tmp_path, aperto)


@pytest.mark.parametrize(
    ("harm", "skill", "word", "code"),
    [
        (0.0, 0.1, "PASS", 0),
        (0.5, 0.1, "BLOCK", 10),
        (0.0, 0.6, "ESCALATE", 11),
        (0.1, 0.1, "INCONCLUSIVE", 12),
    ],
)
def test_each_verdict_has_its_word_and_exit_code(case: Case, harm, skill, word, code):
    result = case.decide(case.rows(harm, skill))
    assert result.exit_code == code and result.stdout.startswith(word)
    report = json.loads((case.folder / "out" / "verdict.json").read_text())
    assert report["decision"] == word and report["arms"]["adapted"]["name"] == "nano-bakery"
    assert word in (case.folder / "out" / "verdict.html").read_text()


def test_a_signed_report_verifies_until_a_byte_changes(case: Case):
    assert case.decide(case.rows(), more=("--key", case.key)).exit_code == 0
    out = str(case.folder / "out")
    verify = ("vet", "verify", out, "--by", case.reviewer.public_key)
    assert case.aperto(*verify).exit_code == 0
    page = Path(out) / "verdict.html"
    page.write_text(page.read_text().replace("PASS", "PASs", 1))
    assert case.aperto(*verify).exit_code == 6


def test_a_reviewer_signs_an_escalation(case: Case):
    made = case.rows(skill=0.6)
    signing = ("vet", "sign-off", case.frozen, made, "--key", case.key, "--statement", "seen, fine")
    word = case.aperto(*signing, "--reviewer", "R. Viewer")
    assert word.exit_code == 0
    path = case.folder / "word.json"
    path.write_text(word.stdout)
    result = case.decide(made, more=("--sign-off", str(path)))
    assert result.exit_code == 0 and result.stdout.startswith("PASS")
    assert "seen, fine" in (case.folder / "out" / "model-card.md").read_text()
    other = case.decide(case.rows(skill=0.7), more=("--sign-off", str(path)))
    assert other.exit_code == 6 and "other evidence" in other.stderr


def test_only_registered_reviewers_sign_with_their_own_key(case: Case):
    signing = ("vet", "sign-off", case.frozen, case.rows(), "--statement", "fine")
    stranger = case.aperto(*signing, "--reviewer", "Nobody", "--key", case.key)
    assert stranger.exit_code == 2 and "there are: R. Viewer" in stranger.stderr
    other = str(case.folder / "other.pem")
    case.aperto("vet", "key", other)
    assert case.aperto(*signing, "--reviewer", "R. Viewer", "--key", other).exit_code == 6


@pytest.mark.parametrize(
    ("models", "more", "text"),
    [
        (MODELS[:2], (), "which model was adapted"),
        (("--model", "base=nano"), (), "expected ARM=NAME@HASH"),
        (("--model", "other=nano@00"), (), "expected ARM=NAME@HASH"),
        (MODELS, ("--not-run", "bread"), "expected SUITE=WHY"),
    ],
)
def test_what_is_not_told_is_asked_for(case: Case, models, more, text):
    result = case.decide(case.rows(), models=models, more=more)
    assert result.exit_code == 2 and text in result.stderr


def test_damaged_sign_offs_are_refused(case: Case):
    for text in ("{", "[]", "{}"):
        path = case.folder / "word.json"
        path.write_text(text)
        assert case.decide(case.rows(), more=("--sign-off", str(path))).exit_code == 6


def test_rows_in_two_files_are_one_body_and_doubles_are_refused(case: Case):
    made = case.rows()
    assert case.decide(made, made).exit_code == 6
    result = case.decide(made, more=("--not-run", "bread=data unavailable"))
    assert result.exit_code == 12 and "bread at effort low: not run" in result.stdout


def test_a_scorecard_is_written_and_signed(aperto, case: Case):
    path = case.folder / "gpqa.jsonl"
    write_rows(path, rows("gpqa_diamond", "base", lambda i, e: float(i < 71), effort="high"))
    out = case.folder / "card"
    arguments = ("report", str(path), "--model", "mine", "--out", str(out))
    assert aperto(*arguments, "--key", case.key, "--not-run", "hle=no data").exit_code == 0
    card = json.loads((out / "scorecard.json").read_text())
    assert card["model"] == "mine" and card["not_run"] == {"hle": "no data"}
    assert "o4-mini" in (out / "scorecard.md").read_text()
    assert aperto("vet", "verify", str(out)).exit_code == 0
    assert aperto(*arguments, "--arm", "adapted").exit_code == 2
