"""`aperto check`: whether a model is what it claims to be, and runs as it should."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from aperto.cli.app import settings_of
from aperto.cli.asking import confirm
from aperto.cli.options import JsonOption, LogLevelOption, ModelArgument
from aperto.cli.progress import byte_progress
from aperto.cli.table import columns

if TYPE_CHECKING:
    from aperto.formats import Checkpoint
    from aperto.measure.check import Forward

WriteOption = Annotated[
    bool,
    typer.Option(
        "--write", help="Store tensor hashes and reference logits beside the model instead."
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(check)


def check(
    ctx: typer.Context,
    model: ModelArgument,
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="Do not run the model, only read it.")
    ] = False,
    hashes: Annotated[
        bool, typer.Option("--hashes", help="Print the SHA-256 of every tensor and nothing else.")
    ] = False,
    write: WriteOption = False,
    as_json: JsonOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Check that a model is what it claims to be.

    Hashes of the tensors, dequantising, the chat template, sampling defaults, logits against
    stored references, and the kernels against each other: each is PASS, FAIL or SKIPPED, with
    the reason. The exit code is 1 if anything is FAIL.
    """
    settings = settings_of(ctx, log_level)
    from aperto.formats import open_checkpoint
    from aperto.formats.hub import resolve_model
    from aperto.measure.check import check_model, loader

    checkpoint = open_checkpoint(resolve_model(model))
    if hashes:
        _print_hashes(checkpoint)
        return
    forward = None if weights_only else loader(checkpoint, settings.cache_dir, confirm=confirm)
    if write:
        _write(checkpoint, forward)
        return
    with byte_progress("hashing") as progress:
        results = list(check_model(checkpoint, forward=forward, progress=progress))
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(result) for result in results], indent=2))
    else:
        typer.echo(columns([[r.status, r.name, r.detail] for r in results]))
    if any(result.status == "FAIL" for result in results):
        raise typer.Exit(1)


def _print_hashes(checkpoint: Checkpoint) -> None:
    from aperto.measure.check import tensor_hashes

    for name, sha256 in tensor_hashes(checkpoint, lambda done, total: None):
        typer.echo(f"{sha256}  {name}")


def _write(checkpoint: Checkpoint, forward: Forward | None) -> None:
    from aperto.config import PRECISIONS
    from aperto.measure.check import make_references, reference_prompts
    from aperto.measure.references import write_manifest, write_references

    typer.echo(f"wrote {write_manifest(checkpoint)}")
    if forward is not None:
        cases = make_references(forward, reference_prompts(checkpoint), PRECISIONS)
        typer.echo(f"wrote {write_references(checkpoint.path, cases)}")
