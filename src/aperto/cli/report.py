"""`aperto report`: a scorecard from graded answers, beside published figures."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from aperto.cli.app import settings_of
from aperto.cli.options import LogLevelOption
from aperto.cli.verdict import KeyOption, NotRunOption, RowsArgument, read_all, reasons_of

JSON_FILE, MARKDOWN_FILE, PAGE_FILE = "scorecard.json", "scorecard.md", "scorecard.html"


class ToolsChoice(StrEnum):
    """What the model had at hand."""

    NONE = "none"
    TOOLS = "tools"


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)


def report(
    ctx: typer.Context,
    rows: RowsArgument,
    model: Annotated[str, typer.Option(metavar="NAME", help="The model's name on the card.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the card goes.")],
    arm: Annotated[str, typer.Option(metavar="ARM", help="Whose rows to take.")] = "base",
    tools: Annotated[
        ToolsChoice, typer.Option(help="What the model had; only like is set beside like.")
    ] = ToolsChoice.NONE,
    not_run: NotRunOption = None,
    key: KeyOption = None,
    log_level: LogLevelOption = None,
) -> None:
    """Write a scorecard: scores with their noise, beside published figures.

    As JSON, Markdown and one HTML file; signed where a key is given.
    """
    settings_of(ctx, log_level)
    from aperto.vet.pages import scorecard_page
    from aperto.vet.scorecard import make_scorecard, markdown
    from aperto.vet.sign import read_key, sign_folder

    missing = reasons_of(not_run)
    card = make_scorecard(read_all(rows), model=model, arm=arm, not_run=missing, tools=tools.value)
    text = json.dumps(card.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    out.mkdir(parents=True, exist_ok=True)
    contents = {
        JSON_FILE: text + "\n",
        MARKDOWN_FILE: markdown(card),
        PAGE_FILE: scorecard_page(card),
    }
    for name, content in contents.items():
        (out / name).write_text(content, encoding="utf-8")
    if key is not None:
        sign_folder(out, contents, read_key(key))
    typer.echo(f"{len(card.lines)} scores of {model} in {out / PAGE_FILE}")
