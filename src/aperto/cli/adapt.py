"""`aperto adapt`: fine-tune a model on one's own data; the result is an adapter."""

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

from aperto.cli.app import settings_of
from aperto.cli.options import LogLevelOption, ModelArgument
from aperto.cli.parent import parent_of
from aperto.cli.progress import duration, step_progress
from aperto.errors import DataError, MissingExtraError, UsageError

if TYPE_CHECKING:
    from aperto.adapt.data import Dataset
    from aperto.adapt.finetune import Finetune
    from aperto.adapt.lora import LoraConfig
    from aperto.adapt.train import Outcome, StepReport
    from aperto.formats import Checkpoint
    from aperto.formats.lineage import Lineage

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


class TooLongChoice(StrEnum):
    """What is done with conversations that do not fit a row."""

    ERROR = "error"
    CUT = "cut"
    DROP = "drop"


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(adapt)


def adapt(
    ctx: typer.Context,
    model: ModelArgument,
    data: Annotated[
        Path, typer.Argument(help="Chat or text JSONL, text, Parquet; or a folder of them.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the adapter; one left earlier is resumed.")],
    rank: Annotated[int, typer.Option(min=1, help="Inner width of the changes.")] = 16,
    alpha: Annotated[
        float | None, typer.Option(help="Numerator of their scaling. Default: twice the rank.")
    ] = None,
    rslora: Annotated[bool, typer.Option("--rslora", help="Scale by alpha / sqrt(rank).")] = False,
    dropout: Annotated[float, typer.Option(help="Share of their inputs left out.")] = 0.0,
    targets: Annotated[
        str,
        typer.Option(
            help="What is adapted, separated by commas: attention, router, experts, "
            "experts:N (the N most used of each layer); and in full: sinks, norms, biases."
        ),
    ] = "attention",
    epochs: Annotated[float, typer.Option(help="Times that every row is learnt.")] = 1.0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps, in place of epochs.")
    ] = None,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a packed row.")] = 1024,
    too_long: Annotated[
        TooLongChoice, typer.Option(help="What to do with longer conversations.")
    ] = TooLongChoice.ERROR,
    rows_per_step: Annotated[int, typer.Option(min=1, help="Rows of an optimiser step.")] = 8,
    rows_per_batch: Annotated[
        int, typer.Option(min=1, help="Of these, rows that go through the model at once.")
    ] = 1,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-4,
    schedule: Annotated[ScheduleChoice, typer.Option(help="How it falls.")] = ScheduleChoice.COSINE,
    warmup: Annotated[float, typer.Option(help="Share of the steps over which it rises.")] = 0.03,
    optimiser: Annotated[
        OptimiserChoice, typer.Option(help="AdamW with moments of 4 bytes, or of 1.")
    ] = OptimiserChoice.ADAMW,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 0.0,
    held_out: Annotated[
        float, typer.Option(help="Share of the rows to evaluate on, where no files are named so.")
    ] = 0.05,
    evaluate_every: Annotated[
        int, typer.Option(min=0, help="Steps between evaluations. Default: at the end alone.")
    ] = 0,
    dtype: Annotated[
        DtypeChoice | None,
        typer.Option(help="Activations and frozen matrices. Default: float32 below 1 GiB."),
    ] = None,
    qat: Annotated[
        bool,
        typer.Option("--qat", help="Round trained experts to MXFP4 in training, as storing does."),
    ] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Train every weight, in float32, and write a model; for small models."
        ),
    ] = False,
    fast: Annotated[
        int,
        typer.Option(
            min=0,
            help="Train this many layers from the top; what those below give is kept on disk.",
        ),
    ] = 0,
    device: Annotated[
        DeviceChoice, typer.Option(help="Where to compute; a GPU as torch names it.")
    ] = DeviceChoice.CPU,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the data, tell memory and time, and stop.")
    ] = False,
    log_level: LogLevelOption = None,
) -> None:
    """Fine-tune a model on a CPU, its packed weights frozen and mapped; writes an adapter.

    With --full every weight is trained, and a model is written.

    The data is checked as a whole first. Interrupted or killed, the same command goes on from the
    last state and ends in the same bits.
    """
    settings_of(ctx, log_level)
    _require_torch()
    from aperto.adapt.device import check_device, free_memory
    from aperto.adapt.finetune import Finetune, FinetuneConfig
    from aperto.adapt.job import Subject, use_threads
    from aperto.formats import open_checkpoint, quantize_experts
    from aperto.formats.hub import resolve_model
    from aperto.formats.licence import licences
    from aperto.tokenizer import Tokenizer

    if threads is not None:
        use_threads(threads)
    path = resolve_model(model)
    checkpoint = open_checkpoint(path)
    tokenizer = Tokenizer.from_checkpoint(checkpoint.tokenizer_source())
    dataset = _dataset(data, tokenizer, length, too_long.value, held_out, seed)
    size = sum(checkpoint.info(name).nbytes for name in checkpoint.names())
    small = DtypeChoice.FLOAT32 if size < _BIG_BYTES else DtypeChoice.BFLOAT16
    config = FinetuneConfig(
        epochs=epochs,
        steps=steps,
        length=length,
        rows_per_step=rows_per_step,
        rows_per_batch=rows_per_batch,
        learning_rate=learning_rate,
        schedule=schedule.value,
        warmup=warmup,
        optimiser=optimiser.value,
        weight_decay=weight_decay,
        evaluate_every=evaluate_every,
        dtype=(dtype or small).value,
        qat=qat,
        fast=fast,
        device=device.value,
        seed=seed,
    )
    if full:
        _refuse_with_full(ctx)
    adapted, hottest = (None, 0) if full else _lora(targets, rank, alpha, rslora, dropout)
    check_device(device.value)
    before = free_memory(device.value)
    subject = Subject(
        source=quantize_experts(checkpoint),
        lineage=_lineage(model, checkpoint),
        adapted=adapted,
        hottest=hottest,
        licences=licences(path),
        available_bytes=before,
    )
    job = Finetune(subject, dataset, config, out)
    _announce(job, dataset)
    typer.echo(f"time: about {duration(job.seconds())}")
    if dry_run:
        return
    with _watching(job.steps) as (watch, watch_trunk):
        outcome = job.run(watch, watch_trunk)
    _report(outcome, out, model, full)


def _refuse_with_full(ctx: typer.Context) -> None:
    """Raise UsageError where an option of adapters stands beside --full."""
    given = [
        f"--{name}"
        for name in ("targets", "rank", "alpha", "rslora", "dropout")
        if (source := ctx.get_parameter_source(name)) and source.name != "DEFAULT"
    ]
    if given:
        raise UsageError(
            f"{', '.join(given)} with --full, which trains every weight; expected one or the other"
        )


def _require_torch() -> None:
    if importlib.util.find_spec("torch") is None:
        raise MissingExtraError("torch", "adapt")


def _dataset(
    path: Path, tokenizer: Any, length: int, too_long: Any, held_out: float, seed: int
) -> Dataset:
    from aperto.adapt.data import read_dataset

    dataset = read_dataset(
        path,
        tokenizer,
        max_tokens=length,
        too_long=too_long,
        held_out=held_out,
        seed=seed,
    )
    for note in dataset.notes:
        typer.echo(f"note: {note}")
    _refuse_test_questions(dataset)
    return dataset


def _refuse_test_questions(dataset: Dataset) -> None:
    """Raise DataError where a row to learn asks what a registered suite asks."""
    from aperto.registry import suites_asking

    found = suites_asking({example.source: example.digests for example in dataset.train})
    if found:
        lines = [f"{row}: a question of {', '.join(names)}" for row, names in found.items()]
        more = f" and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise DataError(
            f"{len(lines)} rows are questions of evaluation suites ({'; '.join(lines[:5])}{more}); "
            "a model that learnt them has no score; remove these rows",
            lines,
        )


def _lora(
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


def _lineage(name: str, checkpoint: Checkpoint) -> Lineage:
    from aperto.formats.lineage import Lineage

    earlier = checkpoint.lineage
    return Lineage((parent_of(name, checkpoint),), earlier.steps if earlier else ())


def _announce(job: Finetune, dataset: Dataset) -> None:
    """What will be learnt, and the memory it takes."""
    learnt = sum(example.num_learnt for example in dataset.train)
    trained = sum(p.numel() for p in job.trainable.values())
    typer.echo(
        f"data: {len(dataset.train)} examples to learn, {len(dataset.held_out)} held out; "
        f"{learnt} learnt tokens in {len(job.rows)} rows; {job.steps} steps"
    )
    memory = job.memory()
    parts = ", ".join(f"{i.name} {i.num_bytes / 2**30:.2f}" for i in memory.items)
    typer.echo(f"memory: {memory.total_bytes / 2**30:.2f} GiB ({parts})")
    typer.echo(f"trained: {trained / 1e6:.2f} M values")


@contextmanager
def _watching(
    steps: int,
) -> Iterator[tuple[Callable[[StepReport], None], Callable[[int, int], None]]]:
    """Show every step, and rows before them: a bar on a terminal, else a line now and then."""
    shown, durations = -_LINE_EVERY_S, []
    with step_progress() as draw:

        def watch(report: StepReport) -> None:
            nonlocal shown
            durations.append(report.seconds)
            recent = durations[-20:]
            left = sum(recent) / len(recent) * (steps - report.step)
            text = (
                f"loss {report.loss:.4f}, {report.tokens_per_s:.0f} tokens/s, {duration(left)} left"
            )
            draw(report.step, steps, text)
            now = time.monotonic()
            due = now - shown >= _LINE_EVERY_S or report.step == steps
            if due and not sys.stderr.isatty():
                shown = now
                typer.echo(f"step {report.step}/{steps}: {text}")

        def watch_trunk(done: int, rows: int) -> None:
            nonlocal shown
            draw(done, rows, "rows through the layers below")
            now = time.monotonic()
            if (now - shown >= _LINE_EVERY_S or done == rows) and not sys.stderr.isatty():
                shown = now
                typer.echo(f"row {done}/{rows} through the layers below")

        yield watch, watch_trunk


def _report(outcome: Outcome, out: Path, model: str, full: bool) -> None:
    if outcome.resumed_at:
        typer.echo(f"resumed after step {outcome.resumed_at}")
    if not outcome.finished:
        typer.echo(
            f"stopped after step {outcome.step} of {outcome.steps}; the same command goes on"
        )
        raise typer.Exit(INTERRUPTED)
    for name, value in outcome.measures.items():
        typer.echo(f"{name}: {value:.4f}")
    trial = str(out) if full else f"{model} --adapter {out}"
    typer.echo(f"wrote {out}; vetted: no; try it: aperto chat {trial}")
