from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from aperto.formats import open_checkpoint
from aperto.formats.adapter import Adapter, LowRank, write_adapter
from aperto.formats.hub import resolve_model
from aperto.formats.lineage import read_lineage

PROTOCOL = """
schema = 1
name = "small"
domains = ["hidden instructions"]
arms = ["base", "adapted", "base-again", "base-requantised"]

[scope]
model = "nano"
use = "a test"

[adversary]
description = "nobody"

[statistics]
enlargement = 1

[[suites]]
name = "integrity"
kind = "report"
score = "well formed"
more_is = "better"
num_items = 4
efforts = ["low"]

[[suites]]
name = "hierarchy/system/phrase"
kind = "canary"
score = "counted for the test"
more_is = "worse"
num_items = 4
efforts = ["low"]
"""


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of nano that changes nothing."""
    config = open_checkpoint(resolve_model("nano")).config
    zero = LowRank(np.zeros((1, 256), np.float32), np.zeros((256, 1), np.float32))
    made = Adapter(1, 1.0, False, {"layers.0.attn.q.weight": zero}, base="nano")
    write_adapter(tmp_path / "adapter", made, config)
    return tmp_path / "adapter"


def test_one_command_reports_signs_and_tells_by_its_exit_code(aperto, tmp_path: Path, adapter):
    file = tmp_path / "protocol.toml"
    file.write_text(PROTOCOL)
    key = tmp_path / "key.pem"
    public = aperto("vet", "key", str(key)).stdout.strip()
    out = tmp_path / "out"
    command = ("vet", "release", "--base", "nano", "--adapted", str(adapter), "--out", str(out))
    options = ("--protocol", str(file), "--key", str(key), "--max-tokens", "24", "--threads", "1")
    dry = aperto(*command, *options, "--dry-run")
    assert dry.exit_code == 0 and "32 answers to go at the first look" in dry.stdout
    done = aperto(*command, *options)
    verdict = json.loads((out / "report" / "verdict.json").read_text())
    codes = {"PASS": 0, "BLOCK": 10, "ESCALATE": 11, "INCONCLUSIVE": 12}
    assert done.exit_code == codes[verdict["decision"]], done.output
    assert verdict["decision"] in done.stdout and set(verdict["arms"]) >= {"base-requantised"}
    assert aperto("vet", "verify", str(out / "report"), "--by", public).exit_code == 0
    lineage = read_lineage(adapter)
    assert (lineage is not None) == (verdict["decision"] == "PASS")
    again = aperto(*command, *options)
    assert "0 answers to go" in again.stdout and again.exit_code == done.exit_code


def test_a_changed_protocol_is_refused(aperto, tmp_path: Path, adapter):
    file = tmp_path / "protocol.toml"
    file.write_text(PROTOCOL)
    aperto("vet", "protocol", str(file), "--freeze")
    file.write_text(PROTOCOL.replace("num_items = 4", "num_items = 5"))
    command = ("vet", "release", "--base", "nano", "--adapted", str(adapter))
    done = aperto(*command, "--out", str(tmp_path / "out"), "--protocol", str(file))
    assert done.exit_code == 2 and "changed after it was frozen" in done.stderr
