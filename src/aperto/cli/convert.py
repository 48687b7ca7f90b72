"""`aperto convert`: write a checkpoint in another layout."""

from __future__ import annotations

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from aperto.cli.app import settings_of
from aperto.cli.options import LogLevelOption
from aperto.cli.progress import byte_progress
from aperto.errors import UsageError


class LayoutChoice(StrEnum):
    """How a checkpoint lies on disk."""

    HF = "hf"
    OPENAI = "openai"
    GGUF = "gguf"


class DenseChoice(StrEnum):
    """Types of the embedding, head and attention matrices."""

    BF16 = "BF16"
    F16 = "F16"
    F32 = "F32"
    Q8_0 = "Q8_0"


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(convert)


def convert(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(help="A model's name or path.")],
    destination: Annotated[Path, typer.Argument(help="New folder, or .gguf file.")],
    layout: Annotated[LayoutChoice, typer.Option(help="Hugging Face, OpenAI's original, or GGUF.")],
    dense: Annotated[
        DenseChoice | None,
        typer.Option(
            case_sensitive=False,
            help="Type of embedding, head and attention; Q8_0 for GGUF only. Default: as stored.",
        ),
    ] = None,
    log_level: LogLevelOption = None,
) -> None:
    """Write a model in another layout.

    Experts that are not MXFP4 become it, and the error of each tensor is printed.
    """
    settings_of(ctx, log_level)
    if (layout is LayoutChoice.GGUF) != (destination.suffix == ".gguf"):
        wanted = "a file that ends in .gguf" if layout is LayoutChoice.GGUF else "a folder"
        raise UsageError(f"destination is {destination}; layout {layout.value} is {wanted}")
    from aperto.formats import DType, open_checkpoint
    from aperto.formats.hub import resolve_model
    from aperto.formats.requantize import QuantizedExperts, quantize_experts
    from aperto.formats.write import write_checkpoint
    from aperto.tokenizer import write_bundled

    model = quantize_experts(open_checkpoint(resolve_model(source)))
    with (
        tempfile.TemporaryDirectory() as folder,
        byte_progress(f"writing {destination.name}") as progress,
    ):
        # The original layout has no vocabulary of its own, the other two must carry one.
        bundled = model.tokenizer_source().kind == "bundled" and layout.value != "openai"
        write_checkpoint(
            model,
            destination,
            layout.value,
            tokenizer_from=write_bundled(Path(folder), model.config.vocab_size)
            if bundled
            else None,
            dense=DType(dense.value) if dense else None,
            progress=progress,
        )
    if isinstance(model, QuantizedExperts):
        for name, error in model.errors.items():
            typer.echo(f"{name}: quantised to MXFP4, {error}")
    typer.echo(f"wrote {destination}")
