"""`aperto pull`: download a model from a hub."""

from __future__ import annotations

from typing import Annotated

import typer

from aperto.cli.app import settings_of
from aperto.cli.convert import LayoutChoice
from aperto.cli.options import LogLevelOption
from aperto.cli.progress import byte_progress


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(pull)


def pull(
    ctx: typer.Context,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Such as openai/gpt-oss-20b.")],
    layout: Annotated[
        LayoutChoice, typer.Option(help="Which form of the weights to download.")
    ] = LayoutChoice.HF,
    file: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Part of the wanted file's name, for GGUF."),
    ] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    log_level: LogLevelOption = None,
) -> None:
    """Download a model from a hub.

    Only one layout is downloaded. Run it again to go on after an interruption.
    """
    settings_of(ctx, log_level)
    from aperto.formats import hub

    with byte_progress(f"pulling {repo}") as progress:
        path = hub.pull(repo, layout.value, file=file, revision=revision, progress=progress)
    typer.echo(f"pulled {repo} to {path}")
    if layout is LayoutChoice.HF and revision == "main":
        typer.echo(f"To talk to it: aperto chat {repo}")
    else:
        typer.echo(f"To talk to it: aperto chat {path}")
