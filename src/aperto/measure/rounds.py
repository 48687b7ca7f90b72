"""Rounds of measuring: every arm in a fresh process, alone on the machine, warmed after loading.

An arm is an executor: a program that reads one JSON command a line and answers each with one JSON
line (load, clear, feed, decode; generate, save and restore where it can). What is timed, and in
which order, is decided here, the same for every arm.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from aperto.errors import EngineError
from aperto.machine import Limits, best_of

WARM_PROMPT_TOKENS = 64
WARM_DECODE_TOKENS = 16
_STDERR_LINES = 5
_EXIT_SECONDS = 60

Samples = dict[str, list[float]]
"""Name of a figure -> its values; speeds in tokens/s, load in s, memory in bytes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What one round measures of each arm."""

    vocab_size: int
    """Random token ids are drawn below this."""
    prompts: tuple[int, ...] = (512, 2048)
    """Prompt lengths in tokens, each fed into an empty cache."""
    depth: int = 4096
    """Tokens in the cache for the second decoding figure; 0 leaves it out."""
    decode_tokens: int = 32
    """Tokens of one decoding sample."""
    samples: int = 3
    """Decoding samples of each kind, one after the other."""

    @property
    def context(self) -> int:
        """Tokens the cache must hold."""
        decoded = self.samples * self.decode_tokens
        return max(self.depth + decoded, *self.prompts, WARM_PROMPT_TOKENS + WARM_DECODE_TOKENS)


@dataclasses.dataclass(frozen=True, slots=True)
class Arm:
    """One side of a comparison."""

    name: str
    """Who it is, for the reader."""
    command: tuple[str, ...]
    """Program and arguments of its executor."""
    load: Mapping[str, Any]
    """Arguments of its load command, besides `context`."""
    has_engine: bool = False
    """Whether it answers `generate`."""
    keeps_state: bool = False
    """Whether it answers `save` and `restore`: a slow arm fills its cache to `depth` only once."""


@dataclasses.dataclass(frozen=True, slots=True)
class Round:
    """One arm, once."""

    arm: str
    engine: str
    """What the executor says it is: version, instruction set."""
    limits: Limits
    """The better of the machine just before and just after: clouds' memory drifts."""
    samples: Samples


class Child:
    """An executor process; use it in a `with` block."""

    def __init__(self, arm: Arm) -> None:
        self._arm = arm
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            arm.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def run(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Run one command and return its answer.

        Raises EngineError with the last lines of its standard error if the process ends instead.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended(command) from None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended(command)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def peak_bytes(self) -> int:
        """Peak resident memory of the process so far, mapped files included."""
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise EngineError(f"{self._arm.name}: the system does not state the peak memory (VmHWM)")

    def _ended(self, command: str) -> EngineError:
        code = self._process.wait(_EXIT_SECONDS)
        self._errors.seek(0)
        lines = self._errors.read().splitlines()[-_STDERR_LINES:]
        return EngineError(
            f"{self._arm.name} ended with code {code} at command {command!r}; expected an answer; "
            f"it last wrote: {' | '.join(lines) or 'nothing'}"
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            if exc is not None:
                self._process.kill()
            self._process.communicate(timeout=_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


def run_rounds(
    arms: Sequence[Arm],
    plan: Plan,
    repeats: int,
    probe: Callable[[], Limits],
    progress: Callable[[int, int, str], None],
) -> list[Round]:
    """Measure each arm `repeats` times in turn, the machine's limits probed before and after each.

    progress is called with (arms finished, arms in all, what comes next).
    """
    rounds: list[Round] = []
    total = repeats * len(arms)
    with tempfile.TemporaryDirectory() as folder:
        for repeat, arm in itertools.product(range(repeats), arms):
            where = f"round {repeat + 1} of {repeats}: {arm.name}"

            def step(what: str, where: str = where) -> None:
                progress(len(rounds), total, f"{where}, {what}")

            step("limits")
            before = probe()
            engine, samples = measure(arm, plan, step, repeat, Path(folder) / f"{arm.name}.state")
            step("limits")
            rounds.append(Round(arm.name, engine, best_of(before, probe()), samples))
    progress(total, total, "done")
    return rounds


def measure(
    arm: Arm, plan: Plan, step: Callable[[str], None], seed: int, state: Path
) -> tuple[str, Samples]:
    """Measure one arm in a fresh process; return what it says it is, and the samples.

    The same seed gives every arm the same token ids. `state` is where an arm that keeps its state
    puts it.
    """
    source = random.Random(seed)
    samples: Samples = {}

    def ids(count: int) -> list[int]:
        return [source.randrange(plan.vocab_size) for _ in range(count)]

    def speed(command: str, count: int) -> float:
        return count / float(child.run(command, ids=ids(count))["seconds"])

    def decode() -> list[float]:
        return [speed("decode", plan.decode_tokens) for _ in range(plan.samples)]

    with Child(arm) as child:
        step("load")
        loaded = child.run("load", context=plan.context, **arm.load)
        # A mapped model is "loaded" at once and pays at its first token.
        first = child.run("decode", ids=ids(1))
        samples["load"] = [float(loaded["seconds"]) + float(first["seconds"])]
        step("warm-up")
        child.run("feed", ids=ids(WARM_PROMPT_TOKENS))
        child.run("decode", ids=ids(WARM_DECODE_TOKENS))
        child.run("clear")
        step("decode")
        samples["decode 0"] = decode()
        for tokens in plan.prompts:
            step(f"prefill {tokens}")
            child.run("clear")
            samples[f"prefill {tokens}"] = [speed("feed", tokens)]
        if plan.depth:
            step(f"fill to {plan.depth}")
            _fill(child, arm, plan, state, ids)
            step(f"decode at {plan.depth}")
            samples[f"decode {plan.depth}"] = decode()
        samples["memory"] = [float(child.peak_bytes())]
        if arm.has_engine:
            step("engine")
            answer = child.run("generate", ids=ids(1), tokens=plan.decode_tokens * plan.samples)
            samples["engine"] = [answer["tokens"] / answer["seconds"]]
    return str(loaded["engine"]), samples


def _fill(child: Child, arm: Arm, plan: Plan, state: Path, ids: Callable[[int], list[int]]) -> None:
    """Fill the cache to `depth`: from the stored state, or on from the last prompt, or afresh."""
    if state.exists():
        child.run("restore", path=str(state))
        return
    last = plan.prompts[-1] if plan.prompts else plan.depth
    if last >= plan.depth:
        child.run("clear")
    child.run("feed", ids=ids(plan.depth - last if last < plan.depth else plan.depth))
    if arm.keeps_state:
        child.run("save", path=str(state))
