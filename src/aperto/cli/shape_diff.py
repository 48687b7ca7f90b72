"""`aperto shape diff`: two models, tensor by tensor."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from aperto.cli.options import JsonOption
from aperto.cli.progress import byte_progress
from aperto.cli.table import columns

if TYPE_CHECKING:
    from aperto.adapt.surgery.difference import Difference

_HEAD = ("tensor", "type", "status", "max abs", "relative L2", "cosine", "changed blocks")


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(diff)


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A model's name or path.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one's.")],
    every: Annotated[
        bool, typer.Option("--all", help="Show identical tensors too, not only their number.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two models tensor by tensor, whatever their layouts."""
    from aperto.adapt.surgery.difference import as_json as to_json
    from aperto.adapt.surgery.difference import config_differences, differences
    from aperto.cli.shape_write import open_model

    one, two = open_model(a), open_model(b)
    settings = config_differences(one.config, two.config)
    with byte_progress("comparing") as progress:
        found = list(differences(one, two, progress))
    if as_json:
        typer.echo(to_json(found, settings))
        return
    for name, (before, after) in settings.items():
        typer.echo(f"{name}: {before} in A, {after} in B")
    shown = [row for row in found if every or row.status != "identical"]
    if shown:
        typer.echo(columns([_HEAD, *map(_row, shown)], frozenset((3, 4, 5, 6))))
    counts = Counter(row.status for row in found)
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    typer.echo(f"{len(found)} tensors: {summary}")


def _row(row: Difference) -> tuple[str, ...]:
    if row.status not in ("changed", "same values"):
        return row.name, row.types, row.status, "", "", "", ""
    return (
        row.name,
        row.types,
        row.status,
        f"{row.max_abs:.4g}",
        f"{row.relative:.4g}",
        f"{row.cosine:.6f}",
        f"{row.changed_blocks:.1%}",
    )
