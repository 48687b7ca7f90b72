"""`aperto bench`: speeds of a model on this machine, against its limits and against a peer."""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aperto import machine
from aperto.config import ModelConfig, Precision, default_cache_dir
from aperto.errors import ConfigError, UsageError
from aperto.formats import Checkpoint, DType, open_checkpoint, write_checkpoint
from aperto.formats.packed import packed_bytes
from aperto.measure.limits import decode_limit, prefill_limit
from aperto.measure.rounds import Arm, Plan, Round, run_rounds

PEERS = ("llama.cpp",)
"""Engines that `against` accepts."""

Progress = Callable[[int, int, str], None]
"""Called with (parts finished, parts in all, what comes next)."""
Confirm = Callable[[str], bool]
"""Asked a question; True goes ahead."""

_ARM = "aperto"
_PROBE_SECONDS = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class BenchRow:
    """One figure: its samples over all rounds, its limit, and the peer's samples."""

    name: str
    """What was measured, for the reader."""
    unit: str
    """tokens/s, s, GiB, GB/s or GMAC/s."""
    values: tuple[float, ...]
    """Samples in `unit`, in order."""
    limit: float | None = None
    """Median over the rounds of what this machine would allow; None where there is no limit."""
    of_limit: float | None = None
    """Median over the rounds of (median / limit of the same round)."""
    peer_values: tuple[float, ...] = ()
    """The peer's samples."""
    ratio: float | None = None
    """Median over the rounds of (median / the peer's median of the same round)."""

    @property
    def median(self) -> float:
        """Median of the samples."""
        return statistics.median(self.values)


@dataclasses.dataclass(frozen=True, slots=True)
class BenchReport:
    """Everything one run of the bench found."""

    machine: machine.Machine
    """Where it ran."""
    model: str
    """The checkpoint's path."""
    precision: Precision
    """Precision of aperto's weights."""
    num_threads: int
    """Threads of each arm."""
    engine: str
    """Aperto's instruction set."""
    peer: str | None
    """Name and version of the peer."""
    rows: tuple[BenchRow, ...]
    """The figures."""

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return dataclasses.asdict(self)

    def to_table(self) -> str:
        """The report as a Markdown table: median [min–max] n, limit, ratios."""
        heads = ["", "unit", "aperto", "limit", "of limit"]
        cells = [[_cell(row.name), row.unit, spread(row.values), *_limit(row)] for row in self.rows]
        if self.peer:
            heads += [self.peer, "ratio"]
            for line, row in zip(cells, self.rows, strict=True):
                line += [spread(row.peer_values), _number(row.ratio, "× ", 2)]
        lines = [heads, ["---"] * len(heads), *cells]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _limit(row: BenchRow) -> list[str]:
    share = "" if row.of_limit is None else f"{row.of_limit:.0%}"
    return [_number(row.limit), share]


def _number(value: float | None, prefix: str = "", digits: int | None = None) -> str:
    if value is None:
        return ""
    places = digits if digits is not None else 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{prefix}{value:.{places}f}"


def spread(values: Sequence[float]) -> str:
    """Samples as "median [min–max] n"; empty for none."""
    if not values:
        return ""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{_number(middle)} [{_number(low)}–{_number(high)}] {len(values)}"


def run_bench(
    path: str | Path,
    *,
    precision: Precision = "q8",
    threads: int | None = None,
    repeats: int = 3,
    against: str | None = None,
    gguf: Path | None = None,
    peer_python: Path | None = None,
    prompts: tuple[int, ...] = (512, 2048),
    depth: int = 4096,
    isa: str = "",
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    confirm: Confirm | None = None,
) -> BenchReport:
    """Measure a model in `repeats` rounds, each arm in a fresh process, alone, in turn.

    threads: of each arm, None for one a CPU. against: a peer of PEERS, run by `peer_python`, a
    Python that has llama-cpp-python, on `gguf`; without a file, a GGUF of the same weights is
    written to the cache folder after `confirm` was asked. prompts and depth in tokens; what the
    model's context cannot hold is left out.
    Raises UsageError and ConfigError for arguments, DiskSpaceError where the GGUF does not fit, and
    EngineError where a measured process ends early.
    """
    if repeats < 1:
        raise ConfigError(f"repeats is {repeats}; expected at least 1")
    checkpoint = open_checkpoint(path)
    num_threads = threads or machine.describe().num_cpus
    cache = cache_dir or default_cache_dir()
    plan = fit_plan(checkpoint.config, prompts, depth)
    arms = [_own_arm(checkpoint, precision, num_threads, cache, isa)]
    if against is not None:
        python = _peer_python(against, peer_python)
        file = gguf or peer_gguf(checkpoint, precision, cache, confirm, progress)
        arms.append(_llama_arm(against, python, file, num_threads))
    rounds = run_rounds(
        arms,
        plan,
        repeats,
        lambda: machine.probe_limits(num_threads, _PROBE_SECONDS),
        progress or (lambda done, total, what: None),
    )
    return make_report(checkpoint, precision, num_threads, plan, rounds)


def fit_plan(config: ModelConfig, prompts: tuple[int, ...], depth: int) -> Plan:
    """Drop what the model's context cannot hold."""
    fitting = tuple(tokens for tokens in prompts if tokens <= config.max_context)
    plan = Plan(vocab_size=config.vocab_size, prompts=fitting, depth=depth)
    return plan if plan.context <= config.max_context else dataclasses.replace(plan, depth=0)


# --- arms ---------------------------------------------------------------------------------------


def _own_arm(
    checkpoint: Checkpoint, precision: Precision, num_threads: int, cache: Path, isa: str
) -> Arm:
    load = {
        "path": str(checkpoint.path),
        "threads": num_threads,
        "precision": precision,
        "cache_dir": str(cache),
        "isa": isa,
    }
    return Arm(_ARM, (sys.executable, "-m", "aperto.measure.executor"), load, has_engine=True)


def _llama_arm(name: str, python: Path, file: Path, num_threads: int) -> Arm:
    script = Path(__file__).with_name("peer_llama.py")
    load = {"path": str(file), "threads": num_threads}
    return Arm(name, (str(python), str(script)), load, keeps_state=True)


def _peer_python(against: str, python: Path | None) -> Path:
    """Check that the peer is one we know and that this Python has it."""
    if against not in PEERS:
        raise UsageError(f"the peer is {against!r}; expected one of {', '.join(PEERS)}")
    python = python or Path(sys.executable)
    if not python.exists():
        raise UsageError(f"{python} does not exist; expected the Python that has llama-cpp-python")
    found = subprocess.run([python, "-c", "import llama_cpp"], capture_output=True, text=True)
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise UsageError(
            f"{python} cannot import llama_cpp ({last}); expected a Python that has "
            "llama-cpp-python; docs/bench.md shows how to install it, --peer-python names it"
        )
    return python


def peer_gguf(
    checkpoint: Checkpoint,
    precision: Precision,
    cache_dir: Path,
    confirm: Confirm | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return a GGUF file of a checkpoint's weights: its own file, a cached one, or a new one.

    Dense matrices are Q8_0, or BF16 with precision "exact". Raises UsageError where `confirm` is
    missing or declines, DiskSpaceError where the file does not fit.
    """
    if checkpoint.layout == "gguf":
        return checkpoint.files[0]
    name = f"{checkpoint.path.resolve().name}-{checkpoint.fingerprint()[:16]}-{precision}.gguf"
    file = cache_dir / "peers" / name
    if file.is_file():
        return file
    # Our own packed weights have the same formats, and so nearly the same size.
    size = f"{packed_bytes(checkpoint, precision) / 1e9:.1f} GB"
    question = f"The peer needs a GGUF file of the same weights. Write {size} to {file}?"
    if confirm is None or not confirm(question):
        raise UsageError(
            f"the peer needs a GGUF file of the same weights, and {file} ({size}) was not to be "
            "written; agree when asked or with --yes, or name a file with --gguf"
        )
    write_checkpoint(
        checkpoint,
        file,
        "gguf",
        dense=DType.Q8_0 if precision == "q8" else DType.BF16,
        progress=(lambda done, total: progress(done, total, f"writing {file}"))
        if progress
        else None,
    )
    return file


# --- report -------------------------------------------------------------------------------------

_UNITS = {"load": ("s", 1.0), "memory": ("GiB", 2.0**-30)}
_TITLES = {
    "load": "load to first token",
    "memory": "peak memory",
    "engine": "engine, empty",
    "decode 0": "decode, empty",
}


def make_report(
    checkpoint: Checkpoint,
    precision: Precision,
    num_threads: int,
    plan: Plan,
    rounds: Sequence[Round],
) -> BenchReport:
    """Gather rounds into rows."""
    own = [one for one in rounds if one.arm == _ARM]
    peer = [one for one in rounds if one.arm != _ARM]
    rows = [*_machine_rows(rounds)]
    for name in own[0].samples:
        allowed = [_limit_of(name, checkpoint.config, precision, one) for one in own]
        rows.append(_row(name, own, peer, allowed))
    return BenchReport(
        machine=machine.describe(),
        model=str(checkpoint.path),
        precision=precision,
        num_threads=num_threads,
        engine=own[0].engine,
        peer=f"{peer[0].arm} ({peer[0].engine})" if peer else None,
        rows=tuple(rows),
    )


def _machine_rows(rounds: Sequence[Round]) -> list[BenchRow]:
    limits = [one.limits for one in rounds]
    return [
        BenchRow("memory read", "GB/s", tuple(one.read_bytes_per_s / 1e9 for one in limits)),
        BenchRow("int8 peak", "GMAC/s", tuple(one.int8_macs_per_s / 1e9 for one in limits)),
        BenchRow("float32 peak", "GMAC/s", tuple(one.f32_macs_per_s / 1e9 for one in limits)),
    ]


def _limit_of(name: str, config: ModelConfig, precision: Precision, one: Round) -> float | None:
    """What the machine, as it was before this round, allows of a figure."""
    kind, _, size = name.partition(" ")
    if kind == "prefill":
        return prefill_limit(config, precision, int(size), one.limits)
    if kind in ("decode", "engine"):
        return decode_limit(config, precision, int(size or 0), one.limits)
    return None


def _row(
    name: str, own: Sequence[Round], peer: Sequence[Round], allowed: Sequence[float | None]
) -> BenchRow:
    unit, factor = _UNITS.get(name, ("tokens/s", 1.0))
    limits = [limit for limit in allowed if limit is not None]
    medians = [statistics.median(one.samples[name]) for one in own]
    peers = [statistics.median(one.samples[name]) for one in peer if name in one.samples]
    return BenchRow(
        name=_TITLES.get(name, name.replace("decode ", "decode at ")),
        unit=unit,
        values=_all_values(name, own, factor),
        limit=statistics.median(limits) if limits else None,
        of_limit=_median_ratio(medians, limits),
        peer_values=_all_values(name, peer, factor),
        ratio=_median_ratio(medians, peers),
    )


def _all_values(name: str, rounds: Sequence[Round], factor: float) -> tuple[float, ...]:
    return tuple(value * factor for one in rounds for value in one.samples.get(name, ()))


def _median_ratio(values: Sequence[float], others: Sequence[float]) -> float | None:
    if not others:
        return None
    pairs = zip(values, others, strict=True)
    return statistics.median(value / other for value, other in pairs)
