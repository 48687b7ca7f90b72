"""Protocols are validated, hashed and frozen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from tests.vet.made import TOML, protocol, suite

from aperto.errors import EvidenceError, UsageError
from aperto.vet.protocol import (
    Arm,
    Kind,
    freeze,
    frozen_path,
    protocol_hash,
    read_frozen,
    read_protocol,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bakery.toml"
    path.write_text(TOML)
    return path


def test_a_file_is_read_with_its_defaults(file: Path):
    read = read_protocol(file)
    assert read.suite("bread").kind is Kind.SAFETY
    assert read.statistics.alpha == 0.025 and read.statistics.enlargement == 2
    assert Arm.BASE_AGAIN in read.arms
    with pytest.raises(UsageError, match="it has integrity, bread"):
        read.suite("cake")


def test_the_hash_follows_the_content_and_not_the_layout(file: Path):
    before = protocol_hash(read_protocol(file))
    file.write_text("# a remark\n" + TOML.replace("= ", "=  ") + "\n")
    assert protocol_hash(read_protocol(file)) == before
    file.write_text(TOML.replace("margin = 0.05", "margin = 0.06"))
    assert protocol_hash(read_protocol(file)) != before


def test_freezing_is_once(file: Path):
    frozen = freeze(file)
    assert read_frozen(frozen_path(file)) == frozen
    assert freeze(file) == frozen
    file.write_text(TOML.replace("margin = 0.05", "margin = 0.5"))
    with pytest.raises(UsageError, match="changed after it was frozen"):
        freeze(file)


def test_a_protocol_frozen_before_a_default_existed_keeps_its_hash(file: Path):
    freeze(file)
    path = frozen_path(file)
    content = json.loads(path.read_text())
    del content["protocol"]["statistics"]["enlarge"]
    plain = json.dumps(
        content["protocol"], sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    content["sha256"] = hashlib.sha256(plain.encode()).hexdigest()
    path.write_text(json.dumps(content))
    assert read_frozen(path).sha256 == content["sha256"] == freeze(file).sha256


def test_a_frozen_file_that_was_changed_is_refused(file: Path):
    freeze(file)
    path = frozen_path(file)
    whole = path.read_text()
    content = json.loads(whole)
    content["protocol"]["suites"][1]["margin"] = 0.5
    path.write_text(json.dumps(content))
    with pytest.raises(EvidenceError, match="changed after it was frozen"):
        read_frozen(path)
    for damaged in (whole[:-20], "{}", "[]", whole.replace('"safety"', '"safe"')):
        path.write_text(damaged)
        with pytest.raises(EvidenceError, match="not a frozen protocol"):
            read_frozen(path)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("margin = 0.05", "", "needs a margin"),
        ("margin = 0.05", "margin = 0.05\nmargni = 0.1", "margni"),
        ("margin = 0.05", "margin = 0", "greater than 0"),
        ("floor = 0.99", "", "needs a floor"),
        ('name = "integrity"\nkind = "integrity"', 'name = "i"\nkind = "report"', "integrity"),
        ('name = "bread"\n', 'name = "integrity"\n', "named twice"),
        ('name = "bread"\nkind = "safety"', 'name = "b"\nkind = "canary"\nbar = 0.5', "bar_source"),
        ('efforts = ["low"]\nmargin', 'efforts = ["low", "high"]\nmargin', "at effort high"),
        ('efforts = ["low"]\nmargin', "efforts = []\nmargin", "each once"),
        ("epochs = 4", "epochs = 4\njudged = true", r"\[judging\]"),
        ("schema = 1", "schema = 2", "schema"),
        (
            'domains = ["bread recipes"]',
            'domains = ["bread recipes"]\narms = ["base"]',
            "arms lack",
        ),
        ("schema = 1", "schema = ", "not TOML"),
        ("schema = 1", "schema = 1979-05-27", "JSON"),
    ],
)
def test_what_does_not_fit_is_named(file: Path, old: str, new: str, text: str):
    assert old in TOML
    file.write_text(TOML.replace(old, new))
    with pytest.raises(UsageError, match=text):
        read_protocol(file)


def test_reviewers_are_found_by_name():
    key = "ab" * 32
    made = protocol(
        suite("sums", "utility"), reviewers=[{"name": "A", "role": "lead", "public_key": key}]
    )
    person = made.protocol.reviewer("A")
    assert person is not None and person.public_key == key
    assert made.protocol.reviewer("B") is None
