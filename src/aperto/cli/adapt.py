"""`aperto adapt`: fine-tune a model on one's own data; the result is an adapter."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aperto.cli import training
from aperto.cli.app import settings_of
from aperto.cli.options import LogLevelOption, ModelArgument
from aperto.cli.progress import duration
from aperto.errors import UsageError

if TYPE_CHECKING:
    from aperto.adapt.data import Dataset
    from aperto.adapt.finetune import Finetune


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
    out: training.OutOption,
    rank: training.RankOption = 16,
    alpha: training.AlphaOption = None,
    rslora: training.RsloraOption = False,
    dropout: training.DropoutOption = 0.0,
    targets: training.TargetsOption = "attention",
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
    learning_rate: training.RateOption = 2e-4,
    schedule: training.ScheduleOption = training.ScheduleChoice.COSINE,
    warmup: training.WarmupOption = 0.03,
    optimiser: training.OptimiserOption = training.OptimiserChoice.ADAMW,
    weight_decay: training.DecayOption = 0.0,
    held_out: Annotated[
        float, typer.Option(help="Share of the rows to evaluate on, where no files are named so.")
    ] = 0.05,
    evaluate_every: training.EvaluateOption = 0,
    dtype: training.DtypeOption = None,
    qat: training.QatOption = False,
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
    device: training.DeviceOption = training.DeviceChoice.CPU,
    threads: training.ThreadsOption = None,
    seed: training.SeedOption = 0,
    dry_run: training.DryRunOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Fine-tune a model on a CPU, its packed weights frozen and mapped; writes an adapter.

    With --full every weight is trained, and a model is written.

    The data is checked as a whole first. Interrupted or killed, the same command goes on from the
    last state and ends in the same bits.
    """
    settings_of(ctx, log_level)
    training.require_torch()
    from aperto.adapt.finetune import Finetune, FinetuneConfig
    from aperto.adapt.job import use_threads
    from aperto.formats import open_checkpoint
    from aperto.formats.hub import resolve_model
    from aperto.tokenizer import Tokenizer

    if threads is not None:
        use_threads(threads)
    if full:
        _refuse_with_full(ctx)
        dtype = dtype or training.DtypeChoice.FLOAT32
    path = resolve_model(model)
    checkpoint = open_checkpoint(path)
    tokenizer = Tokenizer.from_checkpoint(checkpoint.tokenizer_source())
    dataset = _dataset(data, tokenizer, length, too_long.value, held_out, seed)
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
        dtype=training.dtype_for(dtype, checkpoint),
        qat=qat,
        fast=fast,
        device=device.value,
        seed=seed,
    )
    if full:
        adapted, hottest = None, 0
    else:
        adapted, hottest = training.lora_of(targets, rank, alpha, rslora, dropout)
    subject = training.subject_of(model, path, checkpoint, adapted, hottest, device)
    job = Finetune(subject, dataset, config, out)
    _announce(job, dataset)
    if dry_run:
        return
    with training.watching(job.steps) as (watch, watch_before):
        outcome = job.run(
            watch, lambda done, rows: watch_before(done, rows, "rows through the layers below")
        )
    trial = f"aperto chat {out}" if full else f"aperto chat {model} --adapter {out}"
    training.report_end(outcome, out, trial)


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
    training.refuse_test_questions(dataset.train)
    return dataset


def _announce(job: Finetune, dataset: Dataset) -> None:
    """What will be learnt, and the memory and the time it takes."""
    learnt = sum(example.num_learnt for example in dataset.train)
    typer.echo(
        f"data: {len(dataset.train)} examples to learn, {len(dataset.held_out)} held out; "
        f"{learnt} learnt tokens in {len(job.rows)} rows; {job.steps} steps"
    )
    training.announce_memory(job.memory(), sum(p.numel() for p in job.trainable.values()))
    typer.echo(f"time: about {duration(job.seconds())}")
