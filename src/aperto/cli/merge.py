"""`aperto merge`: fold an adapter into its base and write the result as a model of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aperto.cli.app import settings_of
from aperto.cli.convert import LayoutChoice, check_destination, vocabulary_for
from aperto.cli.options import LogLevelOption
from aperto.cli.parent import parent_of
from aperto.cli.progress import byte_progress
from aperto.cli.shape_write import NOT_MEASURED, forward_of, read_text
from aperto.errors import UsageError

if TYPE_CHECKING:
    from aperto.formats import Checkpoint
    from aperto.formats.lineage import Lineage
    from aperto.measure.quality import Quality


REPORT = "merge-report.json"
_MOST_TOKENS = 1024  # of a text that is measured on


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
    text: Annotated[
        Path | None,
        typer.Option(help="Text on which the merged model is compared with the live adapter."),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(help="Exit with 1 where their mean KL on --text, in nats, is above this."),
    ] = None,
    log_level: LogLevelOption = None,
) -> None:
    """Fold an adapter into its base model.

    What the adapter does not change stays byte for byte; changed experts are quantised to MXFP4
    again. The rounding of each changed tensor is told, and with --text what it costs; all of it is
    in merge-report.json too.
    """
    settings_of(ctx, log_level)
    check_destination(out, layout)
    if max_kl is not None and text is None:
        raise UsageError("--max-kl without --text; expected a text to measure on")
    sample = None if text is None else read_text(text)
    from aperto.formats import open_checkpoint, quantize_experts
    from aperto.formats.adapter import read_adapter
    from aperto.formats.disk import replace_file
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
    quality = None if sample is None else _quality(base, adapter, out, sample)
    if quality is None:
        typer.echo(f"quality: {NOT_MEASURED}")
    report = {
        "errors": {name: dataclasses.asdict(error) for name, error in merged.errors.items()},
        "text": None if text is None else str(text),
        "quality": NOT_MEASURED if quality is None else dataclasses.asdict(quality),
    }
    target = out / REPORT if out.is_dir() else out.with_suffix(f".{REPORT}")
    replace_file(target, (json.dumps(report, indent=2) + "\n").encode())
    typer.echo(f"wrote {out}; vetted: {lineage.vetted}")
    if quality is not None and max_kl is not None and quality.kl > max_kl:
        typer.echo(
            f"the KL of {quality.kl:.4g} is above {max_kl:g}: the rounding costs too much; train "
            "with --qat, or merge fewer experts"
        )
        raise typer.Exit(1)


def _quality(base: str, adapter: Path, out: Path, sample: str) -> Quality:
    """Run the live adapter, then the merged model, on the beginning of a text."""
    import aperto
    from aperto.measure.quality import Measured

    with aperto.load(base, precision="exact", adapters={"live": adapter}) as local:
        ids = local.tokenizer.encode(sample)[:_MOST_TOKENS]
        measured = Measured(ids, forward_of(local.variant("live")), folder=out.absolute().parent)
    with measured, aperto.load(out, precision="exact") as merged:
        quality = measured.compare(forward_of(merged))
    for label, line in quality.lines():
        typer.echo(f"{label}: {line}")
    return quality


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
