"""The `aperto` program: its commands, and the options before them."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from aperto.cli import (
    adapt,
    bench,
    cache,
    chat,
    check,
    config,
    convert,
    info,
    merge,
    models,
    prefer,
    pull,
    reinforce,
    report,
    serve,
    shape,
    trace,
    vet,
)
from aperto.cli.app import AppGroup, invocation_of
from aperto.cli.options import LogLevelOption

app = typer.Typer(
    cls=AppGroup,
    name="aperto",
    help="Run, shape and vet open-weight gpt-oss models on your own machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
"""The program as a typer application."""


def _show_version(shown: bool) -> None:
    if not shown:
        return
    try:
        found = version("aperto")
    except PackageNotFoundError:
        found = "(not installed)"
    typer.echo(f"aperto {found}")
    raise typer.Exit


@app.callback(epilog="Start with: aperto chat")
def program(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    log_level: LogLevelOption = None,
) -> None:
    """Run, shape and vet open-weight gpt-oss models on your own machine."""
    invocation_of(ctx).log_level = log_level and log_level.value


for module in (
    chat,
    serve,
    models,
    pull,
    info,
    check,
    convert,
    adapt,
    prefer,
    reinforce,
    merge,
    trace,
    bench,
    report,
):
    module.add_to(app)
app.add_typer(cache.app, name="cache", cls=AppGroup)
app.add_typer(config.app, name="config", cls=AppGroup)
app.add_typer(shape.app, name="shape", cls=AppGroup)
app.add_typer(vet.app, name="vet", cls=AppGroup)


def main() -> None:
    """Run the program with the process's arguments; ends the process."""
    try:
        app(prog_name="aperto")
    finally:
        _flush_quietly()


def _flush_quietly() -> None:
    """Flush now, so that a reader that has gone (`| head`) is no error at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = None
