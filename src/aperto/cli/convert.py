"""`aperto convert`: write a checkpoint in another layout."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aperto.cli.app import settings_of
from aperto.cli.options import LogLevelOption
from aperto.cli.progress import byte_progress
from aperto.errors import UsageError

if TYPE_CHECKING:
    from aperto.formats.checkpoint import TensorSource, TokenizerSource


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
    check_destination(destination, layout)
    from aperto.formats import DType, open_checkpoint
    from aperto.formats.hub import resolve_model
    from aperto.formats.requantize import QuantizedExperts, quantize_experts
    from aperto.formats.write import write_checkpoint

    model = quantize_experts(open_checkpoint(resolve_model(source)))
    with (
        vocabulary_for(model, layout) as vocabulary,
        byte_progress(f"writing {destination.name}") as progress,
    ):
        write_checkpoint(
            model,
            destination,
            layout.value,
            tokenizer_from=vocabulary,
            dense=DType(dense.value) if dense else None,
            progress=progress,
        )
    if isinstance(model, QuantizedExperts):
        for name, error in model.errors.items():
            typer.echo(f"{name}: quantised to MXFP4, {error}")
    typer.echo(f"wrote {destination}")


def check_destination(path: Path, layout: LayoutChoice) -> None:
    """Raise UsageError where the name of a model does not fit its layout."""
    if (layout is LayoutChoice.GGUF) != (path.suffix == ".gguf"):
        wanted = "a file that ends in .gguf" if layout is LayoutChoice.GGUF else "a folder"
        raise UsageError(f"destination is {path}; layout {layout.value} is {wanted}")


@contextlib.contextmanager
def vocabulary_for(model: TensorSource, layout: LayoutChoice) -> Iterator[TokenizerSource | None]:
    """The bundled vocabulary as a file, where a layout must carry one and the model has none."""
    from aperto.tokenizer import write_bundled

    if layout is LayoutChoice.OPENAI or model.tokenizer_source().kind != "bundled":
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        yield write_bundled(Path(folder), model.config.vocab_size)
