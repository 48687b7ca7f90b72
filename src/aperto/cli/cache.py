"""`aperto cache`: packed weights and saved prompts, kept on disk so that starting is quick."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from aperto.cli.app import settings_of
from aperto.cli.options import JsonOption, LogLevelOption
from aperto.cli.table import columns
from aperto.config import prompt_cache_dir
from aperto.errors import UsageError

app = typer.Typer(
    help="List or remove packed weights and saved prompts.\n\nPacked weights are a second copy of "
    "each large model on disk, in the layout of the kernels, which makes loading quick. Saved "
    "prompts are what `aperto serve --prompt-cache on` computed of long shared ones.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
"""The group of commands."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Entry:
    kind: str
    name: str
    path: Path
    source: str
    precision: str
    nbytes: int


def _entries(folder: Path) -> list[_Entry]:
    from aperto.engine.prefix_store import list_prompts
    from aperto.formats import packed

    weights = [
        _Entry("weights", e.path.stem, e.path, e.source, e.precision, e.nbytes)
        for e in packed.list_entries(folder)
    ]
    prompts = [
        _Entry("prompts", e.path.name, e.path, e.source, e.precision, e.nbytes)
        for e in list_prompts(prompt_cache_dir(folder))
    ]
    return weights + prompts


@app.command()
def ls(ctx: typer.Context, as_json: JsonOption = False, log_level: LogLevelOption = None) -> None:
    """List packed weights, then saved prompts, largest first."""
    folder = settings_of(ctx, log_level).cache_dir
    from aperto.measure.plan import readable_bytes

    entries = _entries(folder)
    if as_json:
        found = [
            {
                "kind": e.kind,
                "name": e.name,
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
        typer.echo(f"The cache in {folder} is empty.")
        return
    rows = [[e.name, e.kind, e.precision, readable_bytes(e.nbytes), e.source] for e in entries]
    rows.append(["total", "", "", readable_bytes(sum(e.nbytes for e in entries)), str(folder)])
    typer.echo(columns(rows, right=frozenset({3})))


@app.command()
def rm(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="An entry of `aperto cache ls`, the model it is from, or: weights, prompts, all."
        ),
    ],
    log_level: LogLevelOption = None,
) -> None:
    """Remove packed weights and saved prompts; the model itself stays.

    Both are made again when they are next needed.
    """
    folder = settings_of(ctx, log_level).cache_dir
    from aperto.engine.prefix_store import remove_prompts
    from aperto.formats import packed
    from aperto.measure.plan import readable_bytes

    entries = _entries(folder)
    chosen = [e for e in entries if name in ("all", e.kind, e.name, e.path.name, e.source)]
    if not chosen and name not in ("all", "weights", "prompts"):
        known = ", ".join(e.name for e in entries) or "nothing"
        raise UsageError(f"the cache has no entry {name!r}; it holds: {known}")
    for entry in chosen:
        if entry.kind == "weights":
            packed.remove(folder, entry.path.name)
        else:
            remove_prompts(prompt_cache_dir(folder), entry.path.name)
        typer.echo(f"removed {entry.path}")
    typer.echo(f"freed {readable_bytes(sum(entry.nbytes for entry in chosen))}")
