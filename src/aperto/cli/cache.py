"""`aperto cache`: the packed weights kept on disk so that loading is quick."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from aperto.cli.app import settings_of
from aperto.cli.options import JsonOption, LogLevelOption
from aperto.cli.table import columns

app = typer.Typer(
    help="List or remove packed weights.\n\nThey are a second copy of each large model on disk, in "
    "the layout of the kernels, which makes loading quick.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
"""The group of commands."""


@app.command()
def ls(ctx: typer.Context, as_json: JsonOption = False, log_level: LogLevelOption = None) -> None:
    """List the packed cache, largest first."""
    folder = settings_of(ctx, log_level).cache_dir
    from aperto.formats import packed
    from aperto.measure.plan import readable_bytes

    entries = packed.list_entries(folder)
    if as_json:
        found = [
            {
                "name": e.path.stem,
                "path": str(e.path),
                "source": e.source,
                "precision": e.precision,
                "bytes": e.nbytes,
            }
            for e in entries
        ]
        typer.echo(json.dumps(found, indent=2))
        return
    if not entries:
        typer.echo(f"The packed cache in {folder / 'packed'} is empty.")
        return
    rows = [[e.path.stem, e.precision, readable_bytes(e.nbytes), e.source] for e in entries]
    rows.append(
        ["total", "", readable_bytes(sum(e.nbytes for e in entries)), str(folder / "packed")]
    )
    typer.echo(columns(rows, right=frozenset({2})))


@app.command()
def rm(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(help="An entry of `aperto cache ls`, the model it is from, or: all.")
    ],
    log_level: LogLevelOption = None,
) -> None:
    """Remove packed weights; the model itself stays and is packed again when it is next used."""
    folder = settings_of(ctx, log_level).cache_dir
    from aperto.formats import packed
    from aperto.measure.plan import readable_bytes

    removed = packed.remove(folder, name)
    for entry in removed:
        typer.echo(f"removed {entry.path}")
    typer.echo(f"freed {readable_bytes(sum(entry.nbytes for entry in removed))}")
