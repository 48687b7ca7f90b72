"""`aperto bench`: how fast a model runs here, against this machine's limits."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from aperto.cli import asking
from aperto.cli.app import settings_of
from aperto.cli.options import JsonOption, LogLevelOption, PrecisionOption, ThreadsOption
from aperto.cli.progress import step_progress


class PeerChoice(StrEnum):
    """Engines to compare with."""

    LLAMA_CPP = "llama.cpp"


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(bench)


def bench(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="A name or path. Default: your default model."),
    ] = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Rounds of each arm.")] = 3,
    against: Annotated[
        PeerChoice | None, typer.Option(help="Also run this peer on the same weights.")
    ] = None,
    gguf: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The peer's file. Default: one is written."),
    ] = None,
    peer_python: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The Python that has llama-cpp-python."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Write the peer's file without asking.")
    ] = False,
    as_json: JsonOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Measure speed and memory on this machine.

    Decoding, prefilling, loading and peak memory, each against what this machine allows.
    """
    settings = settings_of(ctx, log_level)
    from aperto.formats.hub import resolve_model
    from aperto.measure.bench import run_bench

    path = resolve_model(model or settings.default_model)
    with step_progress() as progress:
        report = run_bench(
            path,
            precision=precision.value if precision else settings.precision,
            threads=threads or settings.threads or None,
            repeats=repeats,
            against=against.value if against else None,
            gguf=gguf,
            peer_python=peer_python,
            isa=settings.isa,
            cache_dir=settings.cache_dir,
            progress=progress,
            confirm=(lambda question: True) if yes else asking.confirm,
        )
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
        return
    typer.echo(f"{report.machine.cpu}, {report.num_threads} threads, {report.engine}")
    typer.echo(f"{report.model}, precision {report.precision}\n")
    typer.echo(report.to_table())
