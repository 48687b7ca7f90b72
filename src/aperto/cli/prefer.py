"""`aperto prefer`: teach a model which of two answers is preferred; the result is an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aperto.cli import training
from aperto.cli.app import settings_of
from aperto.cli.options import LogLevelOption, ModelArgument
from aperto.cli.progress import duration


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(prefer)


def prefer(
    ctx: typer.Context,
    model: ModelArgument,
    data: Annotated[
        Path, typer.Argument(help="JSONL or Parquet of pairs of answers; or a folder of them.")
    ],
    out: training.OutOption,
    beta: Annotated[
        float, typer.Option(help="How closely the model is held to where it began.")
    ] = 0.1,
    label_smoothing: Annotated[
        float, typer.Option(help="Probability that a pair is the wrong way round.")
    ] = 0.0,
    sft_weight: Annotated[
        float, typer.Option(help="Weight of learning the preferred answer itself, beside.")
    ] = 0.0,
    rank: training.RankOption = 16,
    alpha: training.AlphaOption = None,
    rslora: training.RsloraOption = False,
    dropout: training.DropoutOption = 0.0,
    targets: training.TargetsOption = "attention",
    epochs: Annotated[float, typer.Option(help="Times that every pair is learnt.")] = 1.0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps, in place of epochs.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=2, help="Longest prompt with its answer; longer rows are errors.")
    ] = 1024,
    pairs_per_step: Annotated[int, typer.Option(min=1, help="Pairs of an optimiser step.")] = 8,
    learning_rate: training.RateOption = 5e-5,
    schedule: training.ScheduleOption = training.ScheduleChoice.COSINE,
    warmup: training.WarmupOption = 0.03,
    optimiser: training.OptimiserOption = training.OptimiserChoice.ADAMW,
    weight_decay: training.DecayOption = 0.0,
    held_out: Annotated[
        float, typer.Option(help="Share of the pairs to evaluate on, where no files are named so.")
    ] = 0.05,
    evaluate_every: training.EvaluateOption = 0,
    dtype: training.DtypeOption = None,
    qat: training.QatOption = False,
    device: training.DeviceOption = training.DeviceChoice.CPU,
    threads: training.ThreadsOption = None,
    seed: training.SeedOption = 0,
    dry_run: training.DryRunOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Tune a model to preferences (DPO); writes an adapter.

    The data is checked as a whole first. Interrupted or killed, the same command goes on from the
    last state and ends in the same bits.
    """
    settings_of(ctx, log_level)
    training.require_torch()
    from aperto.adapt.job import use_threads
    from aperto.adapt.pairs import read_pairs
    from aperto.adapt.preference import Preference, PreferenceConfig
    from aperto.formats import open_checkpoint
    from aperto.formats.hub import resolve_model
    from aperto.tokenizer import Tokenizer

    if threads is not None:
        use_threads(threads)
    path = resolve_model(model)
    checkpoint = open_checkpoint(path)
    tokenizer = Tokenizer.from_checkpoint(checkpoint.tokenizer_source())
    pairs = read_pairs(data, tokenizer, max_tokens=max_tokens, held_out=held_out, seed=seed)
    for note in pairs.notes:
        typer.echo(f"note: {note}")
    training.refuse_test_questions(pairs.train)
    config = PreferenceConfig(
        epochs=epochs,
        steps=steps,
        pairs_per_step=pairs_per_step,
        beta=beta,
        label_smoothing=label_smoothing,
        sft_weight=sft_weight,
        learning_rate=learning_rate,
        schedule=schedule.value,
        warmup=warmup,
        optimiser=optimiser.value,
        weight_decay=weight_decay,
        evaluate_every=evaluate_every,
        dtype=training.dtype_for(dtype, checkpoint),
        qat=qat,
        device=device.value,
        seed=seed,
    )
    adapted, hottest = training.lora_of(targets, rank, alpha, rslora, dropout)
    subject = training.subject_of(model, path, checkpoint, adapted, hottest, device)
    job = Preference(subject, pairs, config, out)
    typer.echo(
        f"data: {len(pairs.train)} pairs to learn, {len(pairs.held_out)} held out; "
        f"{job.steps} steps"
    )
    training.announce_memory(job.memory(), sum(p.numel() for p in job.trainable.values()))
    typer.echo(f"time: about {duration(job.seconds())}")
    if dry_run:
        return
    with training.watching(job.steps) as (watch, watch_before):
        outcome = job.run(
            watch, lambda done, total: watch_before(done, total, "pairs scored before training")
        )
    training.report_end(outcome, out, f"aperto chat {model} --adapter {out}")
