"""What the commands that train share: options, the model as a subject, progress and the end."""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aperto.cli.parent import parent_of
from aperto.cli.progress import duration, step_progress
from aperto.errors import DataError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aperto.adapt.estimate import MemoryEstimate
    from aperto.adapt.job import Subject
    from aperto.adapt.lora import LoraConfig
    from aperto.adapt.train import Outcome, StepReport
    from aperto.formats import Checkpoint

_LINE_EVERY_S = 5.0
_BIG_BYTES = 1 << 30
INTERRUPTED = 130


class ScheduleChoice(StrEnum):
    """How the learning rate falls."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"


class OptimiserChoice(StrEnum):
    """Bytes of the optimiser's moments."""

    ADAMW = "adamw"
    ADAMW8BIT = "adamw8bit"


class DtypeChoice(StrEnum):
    """Type of activations and frozen matrices."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class DeviceChoice(StrEnum):
    """Where training computes."""

    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


OutOption = Annotated[
    Path, typer.Option(help="Folder of the adapter; one left earlier is resumed.")
]
RankOption = Annotated[int, typer.Option(min=1, help="Inner width of the changes.")]
AlphaOption = Annotated[
    float | None, typer.Option(help="Numerator of their scaling. Default: twice the rank.")
]
RsloraOption = Annotated[bool, typer.Option("--rslora", help="Scale by alpha / sqrt(rank).")]
DropoutOption = Annotated[float, typer.Option(help="Share of their inputs left out.")]
TargetsOption = Annotated[
    str,
    typer.Option(
        help="What is adapted, separated by commas: attention, router, experts, "
        "experts:N (the N most used of each layer); and in full: sinks, norms, biases."
    ),
]
RateOption = Annotated[float, typer.Option(help="Highest learning rate.")]
ScheduleOption = Annotated[ScheduleChoice, typer.Option(help="How it falls.")]
WarmupOption = Annotated[float, typer.Option(help="Share of the steps over which it rises.")]
OptimiserOption = Annotated[
    OptimiserChoice, typer.Option(help="AdamW with moments of 4 bytes, or of 1.")
]
DecayOption = Annotated[float, typer.Option(help="AdamW's.")]
EvaluateOption = Annotated[
    int, typer.Option(min=0, help="Steps between evaluations. Default: at the end alone.")
]
DtypeOption = Annotated[
    DtypeChoice | None,
    typer.Option(help="Activations and frozen matrices. Default: float32 below 1 GiB."),
]
QatOption = Annotated[
    bool,
    typer.Option("--qat", help="Round trained experts to MXFP4 in training, as storing does."),
]
DeviceOption = Annotated[
    DeviceChoice, typer.Option(help="Where to compute; a GPU as torch names it.")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Default: all cores.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of all that is drawn.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check the data, tell memory and time, and stop.")
]


def require_torch() -> None:
    """Raise MissingExtraError where the package was installed without its trainer."""
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "adapt")


def dtype_for(asked: DtypeChoice | None, checkpoint: Checkpoint) -> Any:
    """The asked-for type's name, or the one that suits the model's size."""
    size = sum(checkpoint.info(name).nbytes for name in checkpoint.names())
    small = DtypeChoice.FLOAT32 if size < _BIG_BYTES else DtypeChoice.BFLOAT16
    return (asked or small).value


def subject_of(
    name: str,
    path: Path,
    checkpoint: Checkpoint,
    adapted: LoraConfig | None,
    hottest: int,
    device: DeviceChoice,
) -> Subject:
    """A model to train, within the memory there is now; hashes it."""
    from aperto.adapt.device import check_device, free_memory
    from aperto.adapt.job import Subject
    from aperto.formats import quantize_experts
    from aperto.formats.licence import licences
    from aperto.formats.lineage import Lineage

    check_device(device.value)
    available = free_memory(device.value)
    earlier = checkpoint.lineage
    return Subject(
        source=quantize_experts(checkpoint),
        lineage=Lineage((parent_of(name, checkpoint),), earlier.steps if earlier else ()),
        adapted=adapted,
        hottest=hottest,
        licences=licences(path),
        available_bytes=available,
    )


def lora_of(
    targets: str, rank: int, alpha: float | None, rslora: bool, dropout: float
) -> tuple[LoraConfig, int]:
    """The option --targets as the adapter's settings, and the N of experts:N."""
    from aperto.adapt.lora import ATTENTION, IN_FULL, LoraConfig

    matrices: list[str] = []
    in_full: list[str] = []
    experts: Literal["none", "all"] = "none"
    hottest = 0
    for word in filter(None, (part.strip() for part in targets.split(","))):
        if word == "attention":
            matrices += ATTENTION
        elif word == "router":
            matrices.append("moe.router")
        elif word in IN_FULL:
            in_full.append(word)
        elif word == "experts":
            experts = "all"
        elif found := re.fullmatch(r"experts:([1-9][0-9]*)", word):
            hottest = int(found[1])
        else:
            raise UsageError(
                f"--targets has {word!r}; expected attention, router, experts, experts:N, "
                f"{', '.join(IN_FULL)}, separated by commas"
            )
    if not (matrices or in_full or hottest or experts == "all"):
        raise UsageError("--targets is empty; expected something to adapt, such as attention")
    config = LoraConfig(
        rank=rank,
        alpha=2.0 * rank if alpha is None else alpha,
        rslora=rslora,
        dropout=dropout,
        targets=tuple(matrices),
        experts=experts,
        in_full=tuple(in_full),
    )
    return config, hottest


def refuse_test_questions(rows: Iterable[Any]) -> None:
    """Raise DataError where a row to learn (`source`, `digests`) asks what a suite asks."""
    from aperto.registry import suites_asking

    found = suites_asking({row.source: row.digests for row in rows})
    if found:
        lines = [f"{row}: a question of {', '.join(names)}" for row, names in found.items()]
        more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise DataError(
            f"{len(lines)} rows are questions of evaluation suites ({'; '.join(lines[:5])}{more}); "
            "a model that learnt them has no score; remove these rows",
            lines,
        )


def announce_memory(memory: MemoryEstimate, trained: int) -> None:
    """Tell what a job takes, and how much it trains."""
    parts = ", ".join(f"{i.name} {i.num_bytes / 2**30:.2f}" for i in memory.items)
    typer.echo(f"memory: {memory.total_bytes / 2**30:.2f} GiB ({parts})")
    typer.echo(f"trained: {trained / 1e6:.2f} M values")


@contextmanager
def watching(
    steps: int,
) -> Iterator[tuple[Callable[[StepReport], None], Callable[[int, int, str], None]]]:
    """Show every step, and what comes before: a bar on a terminal, else a line now and then."""
    shown, durations = -_LINE_EVERY_S, []
    with step_progress() as draw:

        def show(done: int, total: int, line: str, text: str) -> None:
            nonlocal shown
            draw(done, total, text)
            now = time.monotonic()
            if (now - shown >= _LINE_EVERY_S or done == total) and not sys.stderr.isatty():
                shown = now
                typer.echo(line)

        def watch(report: StepReport) -> None:
            durations.append(report.seconds)
            recent = durations[-20:]
            left = sum(recent) / len(recent) * (steps - report.step)
            measures = "".join(f", {name} {value:.3g}" for name, value in report.measures.items())
            text = (
                f"loss {report.loss:.4f}{measures}, {report.tokens_per_s:.0f} tokens/s, "
                f"{duration(left)} left"
            )
            show(report.step, steps, f"step {report.step}/{steps}: {text}", text)

        def watch_before(done: int, total: int, what: str) -> None:
            show(done, total, f"{done}/{total} {what}", what)

        yield watch, watch_before


def report_end(outcome: Outcome, out: Path, trial: str) -> None:
    """Say how a run ended; `trial` is what a user may type next. Raises Exit where it stopped."""
    if outcome.resumed_at:
        typer.echo(f"resumed after step {outcome.resumed_at}")
    if not outcome.finished:
        typer.echo(
            f"stopped after step {outcome.step} of {outcome.steps}; the same command goes on"
        )
        raise typer.Exit(INTERRUPTED)
    for name, value in outcome.measures.items():
        typer.echo(f"{name}: {value:.4f}")
    typer.echo(f"wrote {out}; vetted: no; try it: {trial}")
