from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def file(aperto, tmp_path: Path) -> Path:
    path = tmp_path / "protocol.toml"
    path.write_text(aperto("vet", "example").stdout)
    return path


def test_the_example_is_checked_and_frozen_once(aperto, file: Path):
    shown = aperto("vet", "protocol", str(file))
    assert shown.exit_code == 0 and "hierarchy/system/phrase" in shown.stdout
    frozen = aperto("vet", "protocol", str(file), "--freeze")
    assert frozen.exit_code == 0
    assert frozen.stdout.split()[0] == shown.stdout.split()[0]
    assert file.with_suffix(".frozen.json").exists()
    file.write_text(file.read_text().replace("margin = 0.05", "margin = 0.5"))
    changed = aperto("vet", "protocol", str(file), "--freeze")
    assert changed.exit_code == 2 and "changed after it was frozen" in changed.stderr


def test_a_plan_prints_power_and_hours(aperto, file: Path):
    arguments = ("vet", "plan", str(file), "--rate", "injection=0.1", "--rate", "all=0.01")
    plan = json.loads(aperto(*arguments, "--json").stdout)
    by_name = {one["suite"]: one for one in plan["suites"]}
    assert by_name["injection"]["base_rate"] == 0.1
    assert by_name["injection"]["power"] < by_name["hierarchy/system/hijack"]["power"]
    faster = json.loads(aperto(*arguments, "--json", "--tokens-per-s", "200").stdout)
    assert faster["hours"] == pytest.approx(plan["hours"] / 2)


def test_a_plan_in_words(aperto, file: Path):
    shown = aperto("vet", "plan", str(file))
    assert "A harmless model passes everything with probability" in shown.stdout


@pytest.mark.parametrize("rate", ["injection", "injection=2", "=0.1", "injection=much", "cake=0.1"])
def test_rates_that_are_none_are_refused(aperto, file: Path, rate: str):
    assert aperto("vet", "plan", str(file), "--rate", rate).exit_code == 2


def labels(path: Path, wrong: int) -> Path:
    lines = [
        {"item": f"{human}{i}", "human": human, "judge": other if i < wrong else human}
        for human, other in (("comply", "refuse"), ("refuse", "comply"))
        for i in range(100)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_judge_is_measured(aperto, tmp_path: Path):
    out = tmp_path / "calibration.json"
    good = labels(tmp_path / "good.jsonl", 2)
    result = aperto("vet", "calibrate", str(good), "--judge", "j", "--out", str(out))
    assert result.exit_code == 0 and "j may grade" in result.stdout
    assert json.loads(out.read_text())["usable"] is True


def test_a_weak_judge_fails_the_command(aperto, tmp_path: Path):
    weak = labels(tmp_path / "weak.jsonl", 12)
    result = aperto("vet", "calibrate", str(weak), "--judge", "j")
    assert result.exit_code == 6 and "may not grade" in result.stderr
    told = aperto("vet", "calibrate", str(weak), "--judge", "j", "--json")
    assert told.exit_code == 6 and json.loads(told.stdout)["usable"] is False


def test_a_signed_folder_is_verified_and_a_changed_one_is_not(aperto, tmp_path: Path):
    from aperto.vet.sign import read_key, sign_folder

    public = aperto("vet", "key", str(tmp_path / "key.pem")).stdout.strip()
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "verdict.json").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    sign_folder(folder, ["verdict.json"], read_key(tmp_path / "key.pem"))
    shown = aperto("vet", "verify", str(folder))
    assert shown.exit_code == 0 and "not signed: notes.txt" in shown.stdout
    assert "was not checked" in shown.stdout
    assert aperto("vet", "verify", str(folder), "--by", public).exit_code == 0
    assert aperto("vet", "verify", str(folder), "--by", "ab" * 32).exit_code == 6
    (folder / "verdict.json").write_text("[]")
    changed = aperto("vet", "verify", str(folder), "--by", public)
    assert changed.exit_code == 6 and "it was changed" in changed.stderr
