"""Rounds: order of the work, fresh processes in turn, the same tokens for every arm, crashes."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from aperto.errors import EngineError
from aperto.machine import Limits
from aperto.measure.rounds import Arm, Child, Plan, run_rounds

LIMITS = Limits(2, 30e9, 800e9, 200e9)
FAKE = Path(__file__).with_name("fake_executor.py")


def fake_arm(
    name: str, log: Path, speed: float = 10.0, mode: str = "", engine: bool = False
) -> Arm:
    command = (sys.executable, str(FAKE), str(speed), str(log), mode)
    return Arm(name, command, {"path": "model"}, has_engine=engine)


def entries(log: Path) -> list[list[Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def quiet(done: int, total: int, what: str) -> None:
    pass


def test_one_round_in_order(tmp_path: Path) -> None:
    plan = Plan(vocab_size=100, prompts=(8, 16), depth=24, decode_tokens=4, samples=2)
    arm = fake_arm("one", tmp_path / "log", engine=True)
    (round_,) = run_rounds([arm], plan, 1, lambda: LIMITS, quiet)
    assert entries(tmp_path / "log") == [
        ["load", 0, {"path": "model", "context": 80}],
        ["decode", 1, {}],
        ["feed", 64, {}],
        ["decode", 16, {}],
        ["clear", 0, {}],
        ["decode", 4, {}],
        ["decode", 4, {}],
        ["clear", 0, {}],
        ["feed", 8, {}],
        ["clear", 0, {}],
        ["feed", 16, {}],
        ["feed", 8, {}],  # on from 16 to 24
        ["decode", 4, {}],
        ["decode", 4, {}],
        ["generate", 1, {"tokens": 8}],
    ]
    assert round_.engine == "fake 1" and round_.limits == LIMITS
    memory = round_.samples.pop("memory")
    assert 1e6 < memory[0] < 1e9, "a Python interpreter"
    assert round_.samples == {
        "load": [2.1],  # and a token at 10 tokens/s
        "decode 0": [10.0, 10.0],
        "prefill 8": [10.0],
        "prefill 16": [10.0],
        "decode 24": [10.0, 10.0],
        "engine": [10.0],
    }


def test_depth_below_the_last_prompt_starts_afresh(tmp_path: Path) -> None:
    plan = Plan(vocab_size=100, prompts=(16,), depth=8, decode_tokens=4, samples=1)
    run_rounds([fake_arm("one", tmp_path / "log")], plan, 1, lambda: LIMITS, quiet)
    assert [entry[:2] for entry in entries(tmp_path / "log")][-4:] == [
        ["feed", 16],
        ["clear", 0],
        ["feed", 8],
        ["decode", 4],
    ]


def test_without_depth(tmp_path: Path) -> None:
    plan = Plan(vocab_size=100, prompts=(8,), depth=0, decode_tokens=4, samples=1)
    (round_,) = run_rounds([fake_arm("one", tmp_path / "log")], plan, 1, lambda: LIMITS, quiet)
    assert set(round_.samples) == {"load", "decode 0", "prefill 8", "memory"}


def test_arms_alternate_and_limits_are_probed_before_and_after_each(tmp_path: Path) -> None:
    plan = Plan(vocab_size=100, prompts=(8,), depth=0, decode_tokens=4, samples=1)
    arms = [fake_arm("a", tmp_path / "a"), fake_arm("b", tmp_path / "b", speed=5.0)]
    steps: list[tuple[int, int]] = []
    probes: list[Limits] = []

    def probe() -> Limits:
        probes.append(Limits(1, [5, 1, 2, 6][len(probes) % 4], 1, 1))
        return probes[-1]

    def progress(done: int, total: int, what: str) -> None:
        steps.append((done, total))

    rounds = run_rounds(arms, plan, 2, probe, progress)
    assert [one.arm for one in rounds] == ["a", "b", "a", "b"]
    assert len(probes) == 8
    assert [one.limits.read_bytes_per_s for one in rounds] == [5, 6, 5, 6], "the better of two"
    assert steps[0] == (0, 4) and steps[-1] == (4, 4) and steps == sorted(steps)
    first = len(entries(tmp_path / "a")) // 2
    assert entries(tmp_path / "a")[first][0] == "load", "a fresh process each time"


def test_an_arm_that_keeps_its_state_fills_its_cache_once(tmp_path: Path) -> None:
    plan = Plan(vocab_size=100, prompts=(8,), depth=24, decode_tokens=4, samples=1)
    arm = dataclasses.replace(fake_arm("a", tmp_path / "a"), keeps_state=True)
    run_rounds([arm], plan, 3, lambda: LIMITS, quiet)
    done = [entry[0] for entry in entries(tmp_path / "a")]
    assert done.count("save") == 1 and done.count("restore") == 2
    assert done.count("feed") == 3 * 2 + 1, "warm-up and prompt each time, the depth once"


def test_every_arm_gets_the_same_tokens(tmp_path: Path) -> None:
    plan = Plan(vocab_size=1000, prompts=(8,), depth=0, decode_tokens=4, samples=1)
    sent: dict[str, list[Any]] = {"a": [], "b": []}

    class Spy(Child):
        def run(self, command: str, **arguments: Any) -> dict[str, Any]:
            sent[self._arm.name].append(arguments.get("ids"))
            return super().run(command, **arguments)

    arms = [fake_arm(name, tmp_path / name) for name in sent]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aperto.measure.rounds.Child", Spy)
        run_rounds(arms, plan, 1, lambda: LIMITS, quiet)
    assert sent["a"] == sent["b"]
    tokens = [token for ids in sent["a"] if ids for token in ids]
    assert min(tokens) >= 0 and max(tokens) < 1000 and len(set(tokens)) > 50


def test_a_crash_is_told_with_its_last_words(tmp_path: Path) -> None:
    plan = Plan(vocab_size=100)
    with pytest.raises(EngineError, match=r"code 3 at command 'feed'.*tile configuration"):
        run_rounds([fake_arm("b", tmp_path / "b", mode="crash")], plan, 1, lambda: LIMITS, quiet)


def test_a_program_that_never_starts_speaking(tmp_path: Path) -> None:
    arm = Arm("dead", (sys.executable, "-c", "raise SystemExit('no model here')"), {})
    with pytest.raises(EngineError, match=r"dead ended with code 1.*no model here"):
        run_rounds([arm], Plan(vocab_size=9), 1, lambda: LIMITS, quiet)
