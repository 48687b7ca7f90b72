"""`aperto models`: what is on this machine."""

from __future__ import annotations

import json

import typer

from aperto.cli.app import settings_of
from aperto.cli.options import JsonOption, LogLevelOption
from aperto.cli.table import columns


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(models)


def models(
    ctx: typer.Context,
    as_json: JsonOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """List the models on this machine."""
    default = settings_of(ctx, log_level).default_model
    from aperto.formats.hub import list_models
    from aperto.measure.plan import readable_bytes

    entries = list_models()
    if as_json:
        rows = [{"name": e.name, "path": str(e.path), "bytes": e.nbytes} for e in entries]
        typer.echo(json.dumps(rows, indent=2))
        return
    if not entries:
        typer.echo("No models here yet. To download one: aperto pull openai/gpt-oss-20b")
        return
    marked = [(e.name + (" (default)" if e.name == default else ""), e) for e in entries]
    typer.echo(
        columns(
            [[name, readable_bytes(e.nbytes), str(e.path)] for name, e in marked],
            right=frozenset({1}),
        )
    )
