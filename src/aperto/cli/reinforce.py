"""`aperto reinforce`: tune a model by rewards that a Python function gives; writes an adapter."""

from __future__ import annotations

import hashlib
import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aperto.cli import training
from aperto.cli.app import settings_of
from aperto.cli.options import LogLevelOption, ModelArgument
from aperto.errors import UsageError

if TYPE_CHECKING:
    from aperto.adapt.reward import Reward


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(reinforce)


def reinforce(
    ctx: typer.Context,
    model: ModelArgument,
    data: Annotated[Path, typer.Argument(help="JSONL or Parquet of prompts; or a folder of them.")],
    reward: Annotated[Path, typer.Option(help="Python file with reward(task, answer) -> float.")],
    out: training.OutOption,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 100,
    tasks_per_step: Annotated[int, typer.Option(min=1, help="Prompts of a step.")] = 4,
    attempts: Annotated[int, typer.Option(min=2, help="Answers to each.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    clip: Annotated[float, typer.Option(help="How far the ratio of probabilities counts.")] = 0.2,
    base_weight: Annotated[
        float, typer.Option(help="Weight of the distance from the base model; 0: none.")
    ] = 0.0,
    rank: training.RankOption = 16,
    alpha: training.AlphaOption = None,
    rslora: training.RsloraOption = False,
    targets: training.TargetsOption = "attention",
    learning_rate: training.RateOption = 1e-4,
    schedule: training.ScheduleOption = training.ScheduleChoice.CONSTANT,
    warmup: training.WarmupOption = 0.0,
    optimiser: training.OptimiserOption = training.OptimiserChoice.ADAMW,
    weight_decay: training.DecayOption = 0.0,
    dtype: training.DtypeOption = None,
    device: training.DeviceOption = training.DeviceChoice.CPU,
    threads: training.ThreadsOption = None,
    seed: training.SeedOption = 0,
    dry_run: training.DryRunOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Tune a model by rewards (GRPO): answers drawn here, the better ones made likelier.

    The engine draws the answers; how far its log probabilities lie from the trainer's is told in
    every step. Interrupted or killed, the same command goes on and ends in the same bits.
    """
    settings_of(ctx, log_level)
    training.require_torch()
    import aperto
    from aperto.adapt.job import use_threads
    from aperto.adapt.reward import RewardConfig, RewardJob
    from aperto.adapt.reward_rows import read_tasks
    from aperto.cli.rollouts import EnginePolicy
    from aperto.formats import open_checkpoint
    from aperto.formats.hub import resolve_model

    if threads is not None:
        use_threads(threads)
    path = resolve_model(model)
    checkpoint = open_checkpoint(path)
    tasks = read_tasks(data)
    training.refuse_test_questions(tasks)
    value = _reward(reward)
    config = RewardConfig(
        steps=steps,
        tasks_per_step=tasks_per_step,
        attempts=attempts,
        max_tokens=max_tokens,
        clip=clip,
        base_weight=base_weight,
        learning_rate=learning_rate,
        schedule=schedule.value,
        warmup=warmup,
        optimiser=optimiser.value,
        weight_decay=weight_decay,
        dtype=training.dtype_for(dtype, checkpoint),
        device=device.value,
        seed=seed,
    )
    adapted, hottest = training.lora_of(targets, rank, alpha, rslora, 0.0)
    with aperto.load(path, precision="exact", threads=threads) as local:
        subject = training.subject_of(model, path, checkpoint, adapted, hottest, device)
        job = RewardJob(
            subject,
            tasks,
            value,
            EnginePolicy(local.engine, local.tokenizer),
            local.tokenizer,
            config,
            out,
            hashlib.sha256(reward.read_bytes()).hexdigest(),
        )
        typer.echo(
            f"data: {len(tasks)} tasks; {steps} steps of {tasks_per_step} tasks with {attempts} "
            "answers each"
        )
        training.announce_memory(job.memory(), sum(p.numel() for p in job.trainable.values()))
        if dry_run:
            return
        with training.watching(steps) as (watch, _):
            outcome = job.run(watch)
    training.report_end(outcome, out, f"aperto chat {model} --adapter {out}")


def _reward(path: Path) -> Reward:
    """The function of a user's file. Raises UsageError where there is none."""
    if not path.is_file():
        raise UsageError(
            f"{path}: there is no such file; expected Python with reward(task, answer)"
        )
    try:
        found = runpy.run_path(str(path)).get("reward")
    except Exception as problem:
        raise UsageError(f"{path}: {type(problem).__name__}: {problem}") from problem
    if not callable(found):
        raise UsageError(
            f"{path}: found no function named reward; expected reward(task, answer) -> float"
        )
    value: Reward = found
    return value
