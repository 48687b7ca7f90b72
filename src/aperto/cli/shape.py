"""`aperto shape`: experiments with a model's architecture, each written as a model of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aperto.cli.convert import LayoutChoice, check_destination, vocabulary_for
from aperto.cli.options import ModelArgument
from aperto.cli.parent import parent_of
from aperto.cli.progress import byte_progress
from aperto.errors import UsageError

if TYPE_CHECKING:
    from aperto.adapt.surgery.reshaped import LayerPlan
    from aperto.config import ModelConfig

app = typer.Typer(
    no_args_is_help=True,
    help="Change a model's layers, experts and windows; what is kept stays byte for byte.",
)

OutOption = Annotated[Path, typer.Option(help="New folder, or .gguf file.")]
LayoutOption = Annotated[
    LayoutChoice, typer.Option(help="Hugging Face, OpenAI's original, or GGUF.")
]
_TRACED_TOKENS = 512


class ValueChoice(StrEnum):
    """What makes an expert worth keeping."""

    FREQUENCY = "frequency"
    OUTPUT = "output"


@app.command("top-k")
def top_k(
    model: ModelArgument,
    count: Annotated[int, typer.Argument(min=1, help="Experts a token.")],
    out: OutOption,
    layout: LayoutOption = LayoutChoice.HF,
) -> None:
    """Send every token to another number of experts."""
    from aperto.adapt.surgery.reshaped import with_top_k

    _write(model, out, layout, lambda c: with_top_k(c, count), f"{count} experts a token")


@app.command()
def window(
    model: ModelArgument,
    tokens: Annotated[int, typer.Argument(min=1, help="Width in tokens.")],
    out: OutOption,
    layout: LayoutOption = LayoutChoice.HF,
) -> None:
    """Change the attention window of the layers that have one."""
    from aperto.adapt.surgery.reshaped import with_window

    _write(model, out, layout, lambda c: with_window(c, tokens), f"windows of {tokens} tokens")


@app.command()
def layers(
    model: ModelArgument,
    out: OutOption,
    drop: Annotated[str, typer.Option(help="Numbers of layers, such as 3,7.")] = "",
    repeat: Annotated[str, typer.Option(help="Numbers of layers to have twice.")] = "",
    layout: LayoutOption = LayoutChoice.HF,
) -> None:
    """Leave out layers, or have some twice."""
    from aperto.adapt.surgery.reshaped import with_repeats, without_layers

    if bool(drop) == bool(repeat):
        raise UsageError("expected either --drop or --repeat, with numbers of layers")
    numbers = _numbers(drop or repeat)
    plan, done = (without_layers, "dropped") if drop else (with_repeats, "repeated")
    shown = ", ".join(map(str, numbers))
    _write(model, out, layout, lambda c: plan(c, numbers), f"{done} layers {shown}")


@app.command()
def prune(
    model: ModelArgument,
    keep: Annotated[int, typer.Option(min=1, help="Experts of each layer to keep.")],
    text: Annotated[Path, typer.Option(help="Text that tells which experts are worth keeping.")],
    out: OutOption,
    by: Annotated[
        ValueChoice,
        typer.Option(help="How often they are chosen, or how much they add: share x length."),
    ] = ValueChoice.OUTPUT,
    layout: LayoutOption = LayoutChoice.HF,
) -> None:
    """Keep the experts of each layer that a text uses most."""
    from aperto.adapt.surgery.reshaped import most_valuable, with_experts

    scores = _expert_scores(model, text, by)
    fewest = min(map(len, scores.values()))
    if keep > fewest:
        raise UsageError(f"--keep is {keep}; the model has {fewest} experts in a layer")
    kept = most_valuable(scores, keep)
    step = f"kept {keep} experts of each layer by {by.value} on {text.name}"
    _write(model, out, layout, lambda c: with_experts(c, kept), step)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as problem:
        raise UsageError(f"{text!r}; expected numbers of layers, such as 3,7") from problem


def _expert_scores(model: str, text: Path, by: ValueChoice) -> Mapping[int, Sequence[float]]:
    """What each expert of each layer is worth on a text, computed by the engine."""
    import numpy as np

    import aperto
    from aperto.formats import open_checkpoint
    from aperto.formats.hub import resolve_model

    config = open_checkpoint(resolve_model(model)).config
    with aperto.load(model) as loaded:
        ids = loaded.tokenizer.encode(text.read_text(encoding="utf-8"))
        if not ids:
            raise UsageError(f"{text} holds no text; expected some to tell experts by")
        scores = [np.zeros(layer.num_experts) for layer in config.layers]
        kinds = ("topk", "weights", "expert_out")[: 3 if by is ValueChoice.OUTPUT else 1]
        points = [f"layers.{i}.moe.{kind}" for i in range(config.num_layers) for kind in kinds]
        for begin in range(0, len(ids), _TRACED_TOKENS):
            seen = loaded.trace(ids[begin : begin + _TRACED_TOKENS], points)
            for index, score in enumerate(scores):
                np.add.at(score, seen[f"layers.{index}.moe.topk"], _worth(seen, index, by))
    return {index: tuple(score.tolist()) for index, score in enumerate(scores)}


def _worth(seen: Mapping[str, Any], index: int, by: ValueChoice) -> Any:
    """Of each chosen expert [tokens, chosen]: one, or its share x the length of its output."""
    import numpy as np

    if by is ValueChoice.FREQUENCY:
        return 1.0
    lengths = np.linalg.norm(seen[f"layers.{index}.moe.expert_out"], axis=-1)
    return seen[f"layers.{index}.moe.weights"] * lengths


def _write(
    model: str,
    out: Path,
    layout: LayoutChoice,
    plan: Callable[[ModelConfig], list[LayerPlan]],
    step: str,
) -> None:
    """Write the model that a plan makes, with its lineage."""
    check_destination(out, layout)
    from aperto.adapt.surgery.reshaped import Reshaped
    from aperto.formats import open_checkpoint, quantize_experts
    from aperto.formats.hub import resolve_model
    from aperto.formats.lineage import Lineage
    from aperto.formats.write import write_checkpoint

    checkpoint = open_checkpoint(resolve_model(model))
    result = Reshaped(quantize_experts(checkpoint), plan(checkpoint.config))
    earlier = checkpoint.lineage
    lineage = Lineage(
        (parent_of(model, checkpoint),), (*(earlier.steps if earlier else ()), f"{step} of {model}")
    )
    with (
        vocabulary_for(result, layout) as vocabulary,
        byte_progress(f"writing {out.name}") as progress,
    ):
        write_checkpoint(
            result,
            out,
            layout.value,
            tokenizer_from=vocabulary,
            lineage=lineage,
            progress=progress,
        )
    before, after = (
        sum(source.info(name).nbytes for name in source.names()) for source in (checkpoint, result)
    )
    typer.echo(f"size: {before / 1e6:.1f} MB to {after / 1e6:.1f} MB ({after / before:.1%})")
    typer.echo(f"wrote {out}; vetted: {lineage.vetted}")
