"""`aperto trace`: what happens inside a model while it answers, as a page and as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aperto.cli.app import settings_of
from aperto.cli.options import LogLevelOption, PrecisionOption, ThreadsOption
from aperto.errors import UsageError


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(trace)


def trace(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="nano, org/name, or a path.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", metavar="TEXT", help="What to answer.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the results.")],
    max_tokens: Annotated[
        int, typer.Option(min=0, metavar="N", help="Most tokens of the answer that is traced.")
    ] = 64,
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Trace with an adapter, or an intervention file."),
    ] = None,
    parquet: Annotated[
        bool, typer.Option("--parquet", help="Also write Parquet tables (extra: trace).")
    ] = False,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    log_level: LogLevelOption = None,
) -> None:
    """Answer a prompt greedily and show what happened inside the model.

    DIR gets index.html: entropy of each token, experts by class of token and together, attention,
    sinks and the logit lens.
    """
    import dataclasses

    from aperto.cli.local import load_local
    from aperto.engine import Request, SamplingParams
    from aperto.formats import open_checkpoint
    from aperto.formats.hub import resolve_model
    from aperto.harmony import from_chat, render, stop_ids
    from aperto.trace import record, write_page, write_tables

    settings = settings_of(ctx, log_level)
    given = {"precision": precision and precision.value, "threads": threads}
    chosen = {name: value for name, value in given.items() if value is not None}
    settings = dataclasses.replace(settings, **chosen)  # type: ignore[arg-type]
    if out.exists():
        raise UsageError(f"{out} exists already; expected the name of a new folder")
    checkpoint = open_checkpoint(resolve_model(model))
    adapters = {} if adapter is None else {adapter.stem: adapter}
    with load_local(model, settings, adapters) as local:
        engine = local.engine if adapter is None else local.engine.view(adapter.stem)
        ids = render(from_chat([{"role": "user", "content": prompt}]), local.tokenizer)
        num_prompt = len(ids)
        if max_tokens:
            request = Request(
                prompt=ids,
                max_tokens=max_tokens,
                sampling=SamplingParams(temperature=0.0),
                stop_ids=stop_ids(local.tokenizer),
            )
            ids = [*ids, *(token.id for token in engine.submit(request))]
        traced = record(engine, checkpoint, local.tokenizer, ids, num_prompt)
    out.mkdir(parents=True)
    write_page(traced, out / "index.html", f"{model}: {prompt}")
    typer.echo(out / "index.html")
    if parquet:
        for path in write_tables(traced, out):
            typer.echo(path)
