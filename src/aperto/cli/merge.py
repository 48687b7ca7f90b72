"""`aperto merge`: fold an adapter into its base and write the result as a model of its own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aperto.cli.app import settings_of
from aperto.cli.convert import LayoutChoice, check_destination, vocabulary_for
from aperto.cli.options import LogLevelOption
from aperto.cli.parent import parent_of
from aperto.cli.progress import byte_progress

if TYPE_CHECKING:
    from aperto.formats import Checkpoint
    from aperto.formats.lineage import Lineage


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(merge)


def merge(
    ctx: typer.Context,
    base: Annotated[str, typer.Argument(help="The model that the adapter was trained on.")],
    adapter: Annotated[Path, typer.Argument(help="The adapter's folder.")],
    out: Annotated[Path, typer.Option(help="New folder, or .gguf file.")],
    layout: Annotated[
        LayoutChoice, typer.Option(help="Hugging Face, OpenAI's original, or GGUF.")
    ] = LayoutChoice.HF,
    log_level: LogLevelOption = None,
) -> None:
    """Fold an adapter into its base model.

    What the adapter does not change stays byte for byte; changed experts are quantised to MXFP4
    again, and the rounding of each changed tensor is printed.
    """
    settings_of(ctx, log_level)
    check_destination(out, layout)
    from aperto.formats import open_checkpoint, quantize_experts
    from aperto.formats.adapter import read_adapter
    from aperto.formats.hub import resolve_model
    from aperto.formats.merged import Merged
    from aperto.formats.write import write_checkpoint

    checkpoint = open_checkpoint(resolve_model(base))
    merged = Merged(quantize_experts(checkpoint), read_adapter(adapter, checkpoint.config))
    lineage = _lineage(base, checkpoint, adapter)
    with (
        vocabulary_for(merged, layout) as vocabulary,
        byte_progress(f"writing {out.name}") as progress,
    ):
        write_checkpoint(
            merged,
            out,
            layout.value,
            tokenizer_from=vocabulary,
            lineage=lineage,
            progress=progress,
        )
    for name, error in merged.errors.items():
        typer.echo(f"{name}: {error}")
    typer.echo(f"wrote {out}; vetted: {lineage.vetted}")


def _lineage(base: str, checkpoint: Checkpoint, adapter: Path) -> Lineage:
    """What the merged model is made from: hashes of all tensors of the base, and of the adapter."""
    from aperto.formats.adapter import WEIGHTS
    from aperto.formats.lineage import Lineage, Parent, read_lineage

    parent = parent_of(base, checkpoint)
    of_adapter = hashlib.sha256((adapter / WEIGHTS).read_bytes()).hexdigest()[: len(parent.hash)]
    before = [made for made in (checkpoint.lineage, read_lineage(adapter)) if made is not None]
    return Lineage(
        (parent, Parent(str(adapter), of_adapter)),
        (*(step for made in before for step in made.steps), f"merged {adapter.name} into {base}"),
    )
