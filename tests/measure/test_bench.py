"""The bench: rows, ratios against the round's own limit and peer, refusals, the peer's file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import write_tiny

from aperto import machine
from aperto.errors import ConfigError, UsageError
from aperto.formats import DType, open_checkpoint
from aperto.machine import Limits
from aperto.measure import bench
from aperto.measure.limits import decode_limit, prefill_limit
from aperto.measure.rounds import Arm, Plan, Round

FAKE = Path(__file__).with_name("fake_executor.py")


def fake_arm(name: str, speed: float, log: Path) -> Arm:
    command = (sys.executable, str(FAKE), str(speed), str(log), "")
    return Arm(name, command, {}, has_engine=name == "aperto")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny")


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_own_arm", lambda *_: fake_arm("aperto", 30.0, tmp_path / "a"))
    peer = fake_arm("llama.cpp", 10.0, tmp_path / "b")
    monkeypatch.setattr(bench, "_llama_arm", lambda *_: peer)
    monkeypatch.setattr(bench, "_peer_python", lambda *_: Path(sys.executable))
    limits = Limits(1, 1e9, 2e9, 3e9)
    monkeypatch.setattr(machine, "probe_limits", lambda *_: limits)


@pytest.mark.usefixtures("fakes")
def test_a_run_against_a_peer(tiny: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    report = bench.run_bench(
        tiny,
        threads=1,
        repeats=2,
        against="llama.cpp",
        gguf=tmp_path / "given.gguf",
        prompts=(16,),
        depth=32,
        progress=lambda done, total, what: steps.append(what),
    )
    rows = {row.name: row for row in report.rows}
    assert list(rows) == [
        "memory read",
        "int8 peak",
        "float32 peak",
        "load to first token",
        "decode, empty",
        "prefill 16",
        "decode at 32",
        "peak memory",
        "engine, empty",
    ]
    assert rows["memory read"].values == (1.0,) * 4, "before each of four processes"
    decode = rows["decode at 32"]
    assert decode.values == pytest.approx((30.0,) * 6)
    assert decode.peer_values == pytest.approx((10.0,) * 6)
    assert decode.ratio == pytest.approx(3)
    config = open_checkpoint(tiny).config
    assert decode.limit == decode_limit(config, "q8", 32, Limits(1, 1e9, 2e9, 3e9))
    assert decode.of_limit == pytest.approx(30 / decode.limit)
    assert rows["prefill 16"].limit == prefill_limit(config, "q8", 16, Limits(1, 1e9, 2e9, 3e9))
    assert rows["engine, empty"].peer_values == ()
    assert rows["load to first token"].limit is None
    assert report.peer == "llama.cpp (fake 1)"
    assert steps[0] == "round 1 of 2: aperto, limits" and steps[-1] == "done"


@pytest.mark.usefixtures("fakes")
def test_a_run_alone_prints_and_stores(tiny: Path) -> None:
    report = bench.run_bench(tiny, threads=1, repeats=1, prompts=(16,), depth=0)
    table = report.to_table().splitlines()
    assert table[0] == "|  | unit | aperto | limit | of limit |"
    assert len({line.count("|") for line in table}) == 1
    assert any(
        line.startswith("| decode, empty | tokens/s | 30.0 [30.0–30.0] 3 |") for line in table
    )
    stored = json.loads(json.dumps(report.to_json()))
    assert stored["rows"][0]["unit"] == "GB/s" and stored["peer"] is None
    assert stored["machine"]["cpu"] == machine.cpu_name()


def make_round(arm: str, bandwidth: float, speed: float) -> Round:
    samples = {"decode 0": [speed * 0.9, speed, speed * 1.2]}
    return Round(arm, "x", Limits(1, bandwidth, 1, 1), samples)


def test_ratios_are_taken_within_a_round(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    # The machine slows down from round to round: speeds differ, what they say does not.
    rounds = []
    for bandwidth in (4e9, 2e9, 1e9):
        limit = decode_limit(checkpoint.config, "q8", 0, Limits(1, bandwidth, 1, 1))
        rounds += [make_round("aperto", bandwidth, limit / 2)]
        rounds += [make_round("llama.cpp", bandwidth, limit / 6)]
    report = bench.make_report(checkpoint, "q8", 1, Plan(vocab_size=9), rounds)
    row = report.rows[-1]
    assert row.of_limit == pytest.approx(0.5) and row.ratio == pytest.approx(3)
    assert len(row.values) == 9


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((), ""),
        ((3.14159,), "3.14 [3.14–3.14] 1"),
        ((10.0, 30.0, 20.0), "20.0 [10.0–30.0] 3"),
        ((99.0, 1234.5), "667 [99.0–1234] 2"),
    ],
)
def test_spread(values: tuple[float, ...], text: str) -> None:
    assert bench.spread(values) == text


def test_what_the_context_cannot_hold_is_left_out(tiny: Path) -> None:
    config = open_checkpoint(write_tiny(tiny.parent / "short", max_context=1024)).config
    plan = bench.fit_plan(config, (512, 2048), 4096)
    assert plan.prompts == (512,) and plan.depth == 0
    plan = bench.fit_plan(open_checkpoint(tiny).config, (512, 2048), 4096)
    assert plan.prompts == (512, 2048) and plan.depth == 4096


def test_refusals(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="repeats is 0"):
        bench.run_bench(tiny, repeats=0)
    with pytest.raises(UsageError, match=r"'vllm'; expected one of llama\.cpp"):
        bench.run_bench(tiny, against="vllm")
    with pytest.raises(UsageError, match="does not exist"):
        bench.run_bench(tiny, against="llama.cpp", peer_python=tmp_path / "python")
    broken = tmp_path / "python-without"
    broken.write_text("#!/bin/sh\necho 'No module named llama_cpp' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(UsageError, match=r"No module named llama_cpp.*docs/bench\.md"):
        bench.run_bench(tiny, against="llama.cpp", peer_python=broken)


def test_the_peer_file_is_asked_for_written_once_and_found_again(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny(tmp_path / "tiny", tokenizer=True))
    with pytest.raises(UsageError, match="--yes, or name a file with --gguf"):
        bench.peer_gguf(checkpoint, "q8", tmp_path)
    with pytest.raises(UsageError, match="was not to be written"):
        bench.peer_gguf(checkpoint, "q8", tmp_path, confirm=lambda question: False)
    asked: list[str] = []
    steps: list[Any] = []

    def confirm(question: str) -> bool:
        asked.append(question)
        return True

    file = bench.peer_gguf(
        checkpoint, "q8", tmp_path, confirm, lambda done, total, what: steps.append((done, total))
    )
    assert str(file) in asked[0] and "0.0 GB" in asked[0] and steps[-1][0] == steps[-1][1]
    assert open_checkpoint(file).info("head.weight").dtype is DType.Q8_0
    assert bench.peer_gguf(checkpoint, "q8", tmp_path) == file
    exact = bench.peer_gguf(checkpoint, "exact", tmp_path, confirm)
    assert open_checkpoint(exact).info("head.weight").dtype is DType.BF16
    own = open_checkpoint(file)
    assert bench.peer_gguf(own, "q8", tmp_path) == file, "a GGUF is its own peer file"
