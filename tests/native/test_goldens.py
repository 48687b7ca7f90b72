"""Every instruction set of this machine gives the bits that are written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.native.goldens import CASES, PATH, compute

from aperto.native import isa_names

GOLDENS = json.loads(PATH.read_text())


def test_every_case_is_written_down() -> None:
    assert set(GOLDENS) == set(CASES)
    hashes = [value for golden in GOLDENS.values() for value in golden.values()]
    assert len(set(hashes)) == 3 * len(CASES)


@pytest.mark.parametrize("isa", isa_names())
@pytest.mark.parametrize("name", CASES)
def test_logits_are_as_written_down(name: str, isa: str, tmp_path: Path) -> None:
    found = compute(name, tmp_path, isa, threads=2)
    assert found["weights"] == GOLDENS[name]["weights"], "tests/tiny.py or NumPy's generator moved"
    assert found == GOLDENS[name], f"the logits of {isa} moved"
