"""`aperto config`: where the user's settings come from and what they are."""

from __future__ import annotations

import dataclasses

import typer

from aperto.cli.app import settings_of
from aperto.cli.options import LogLevelOption
from aperto.config import config_path

app = typer.Typer(help="Show the user's settings.", no_args_is_help=True, rich_markup_mode=None)
"""The group of commands."""


@app.command()
def path() -> None:
    """Print the path of the user's config file, whether or not it exists."""
    typer.echo(config_path())


@app.command()
def show(
    ctx: typer.Context,
    log_level: LogLevelOption = None,
) -> None:
    """Print every setting as TOML, as the config file and the environment make it."""
    for key, value in dataclasses.asdict(settings_of(ctx, log_level)).items():
        if value is not None:
            typer.echo(f"{key} = {_toml(value)}")


def _toml(value: object) -> str:
    if isinstance(value, int | float):
        return str(value)
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
