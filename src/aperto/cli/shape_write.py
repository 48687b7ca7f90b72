"""What every `aperto shape` command does with its result: write it, measure it, tell of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aperto.cli.convert import LayoutChoice, check_destination, vocabulary_for
from aperto.cli.parent import parent_of
from aperto.cli.progress import byte_progress
from aperto.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from aperto.formats import Checkpoint
    from aperto.formats.checkpoint import TensorSource
    from aperto.formats.lineage import Lineage
    from aperto.local_model import LocalModel
    from aperto.measure.quality import Measured

OutOption = Annotated[Path, typer.Option(help="New folder, or .gguf file.")]
LayoutOption = Annotated[
    LayoutChoice, typer.Option(help="Hugging Face, OpenAI's original, or GGUF.")
]
TextOption = Annotated[
    Path | None, typer.Option(help="Text to compare the result with the model on.")
]
REPORT = "shape-report.json"
NOT_MEASURED = "not measured: give --text"
_MOST_TOKENS = 1024  # of a text that is measured on


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """A changed model and where it comes from."""

    names: tuple[str, ...]
    """The models it is made from, as they were given, the base first."""
    models: tuple[Checkpoint, ...]
    """The same, opened."""
    result: TensorSource
    """What is to be written."""
    step: str
    """What was done, for the lineage."""
    kept_ids: Sequence[int] | None = None
    """Token ids of the base that the result has, ascending, where it has fewer."""
    errors: Callable[[], Mapping[str, str]] = dict
    """By tensor, what rounding took; asked for after writing."""


def open_model(name: str) -> Checkpoint:
    """Open a model by its name or path."""
    from aperto.formats import open_checkpoint
    from aperto.formats.hub import resolve_model

    return open_checkpoint(resolve_model(name))


def write(change: Change, out: Path, layout: LayoutChoice, text: Path | None) -> None:
    """Write the result with its lineage and licences, then measure it and report.

    Raises UsageError before anything is written where `out` or the text cannot be used.
    """
    check_destination(out, layout)
    from aperto.formats.write import write_checkpoint

    sample = None if text is None else read_text(text)
    lineage = lineage_of(change)
    with (
        vocabulary_for(change.result, layout) as vocabulary,
        byte_progress(f"writing {out.name}") as progress,
    ):
        write_checkpoint(
            change.result,
            out,
            layout.value,
            tokenizer_from=vocabulary,
            lineage=lineage,
            progress=progress,
        )
    if out.is_dir():
        _add_licences(change.models[0].path, out)
    report = _report(change, out, text, sample)
    target = out / REPORT if out.is_dir() else out.with_suffix(f".{REPORT}")
    from aperto.formats.disk import replace_file

    replace_file(target, (json.dumps(report, indent=2) + "\n").encode())
    typer.echo(f"wrote {out}; vetted: {lineage.vetted}")


def read_text(path: Path) -> str:
    """A text file. Raises UsageError where it cannot be read or says nothing."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(f"{path}: {problem}; expected a text file in UTF-8") from problem
    if not text.strip():
        raise UsageError(f"{path} holds no text; expected some")
    return text


def lineage_of(change: Change) -> Lineage:
    """What the result is made from: hashes of all tensors of every model, and the steps."""
    from aperto.formats.lineage import Lineage

    parents = tuple(map(parent_of, change.names, change.models))
    before = [model.lineage for model in change.models if model.lineage is not None]
    steps = (*(step for made in before for step in made.steps), change.step)
    return Lineage(parents, steps)


def _add_licences(base: Path, out: Path) -> None:
    from aperto.formats.licence import licences

    for name, text in licences(base).items():
        if not (out / name).exists():
            (out / name).write_text(text, encoding="utf-8")


def _report(change: Change, out: Path, text: Path | None, sample: str | None) -> dict[str, Any]:
    """Print sizes, errors and quality; return the same as JSON values."""
    before, after = (
        sum(source.info(name).nbytes for name in source.names())
        for source in (change.models[0], change.result)
    )
    errors = dict(change.errors())
    for name, error in errors.items():
        typer.echo(f"{name}: {error}")
    typer.echo(f"size: {before / 1e6:.1f} MB to {after / 1e6:.1f} MB ({after / before:.1%})")
    report: dict[str, Any] = {
        "step": change.step,
        "bytes_before": before,
        "bytes_after": after,
        "errors": errors,
    }
    if sample is None:
        typer.echo(f"quality: {NOT_MEASURED}")
        return {**report, "quality": NOT_MEASURED}
    return {**report, "text": str(text), "quality": _quality(change, out, sample)}


def _quality(change: Change, out: Path, sample: str) -> dict[str, Any] | str:
    """Run the base, then the result, on the beginning of a text."""
    from aperto.measure.quality import Measured

    with _loaded(change.names[0]) as base:
        ids = base.tokenizer.encode(sample)[:_MOST_TOKENS]
        if change.kept_ids is not None and not set(ids) <= set(change.kept_ids):
            outside = "not measured: the text has tokens that were trimmed"
            typer.echo(f"quality: {outside}")
            return outside
        measured = Measured(ids, forward_of(base), change.kept_ids, out.absolute().parent)
    with measured:
        return _compared(measured, out)


def _compared(measured: Measured, out: Path) -> dict[str, Any]:
    with _loaded(str(out)) as result:
        quality = measured.compare(forward_of(result))
    for label, line in quality.lines():
        typer.echo(f"{label}: {line}")
    return dataclasses.asdict(quality)


def _loaded(name: str) -> LocalModel:
    from aperto.cli.local import load_local
    from aperto.config import load_settings

    return load_local(name, load_settings())


def forward_of(model: LocalModel) -> Callable[[Sequence[int]], NDArray[np.float32]]:
    """The engine's forward pass as a callable: ids [n] to logits [n, vocab]."""

    def forward(ids: Sequence[int]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = model.trace(ids, ["logits"])["logits"]
        return logits

    return forward
