"""`aperto shape`: experiments with a model's architecture, each written as a model of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aperto.cli import shape_diff
from aperto.cli.convert import LayoutChoice, check_destination
from aperto.cli.options import ModelArgument
from aperto.cli.shape_write import (
    Change,
    LayoutOption,
    OutOption,
    TextOption,
    open_model,
    read_text,
    write,
)
from aperto.errors import UsageError

if TYPE_CHECKING:
    from aperto.adapt.surgery.reshaped import LayerPlan
    from aperto.config import ModelConfig

app = typer.Typer(
    no_args_is_help=True,
    help="Change a model's architecture and weights; what is kept stays byte for byte.",
)
shape_diff.add_to(app)
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
    text: TextOption = None,
) -> None:
    """Send every token to another number of experts."""
    from aperto.adapt.surgery.reshaped import with_top_k

    _write(model, out, layout, lambda c: with_top_k(c, count), f"{count} experts a token", text)


@app.command()
def window(
    model: ModelArgument,
    tokens: Annotated[int, typer.Argument(min=1, help="Width in tokens.")],
    out: OutOption,
    layout: LayoutOption = LayoutChoice.HF,
    text: TextOption = None,
) -> None:
    """Change the attention window of the layers that have one."""
    from aperto.adapt.surgery.reshaped import with_window

    _write(
        model, out, layout, lambda c: with_window(c, tokens), f"windows of {tokens} tokens", text
    )


@app.command()
def context(
    model: ModelArgument,
    tokens: Annotated[int, typer.Option(min=1, help="Longest sequence in tokens.")],
    out: OutOption,
    factor: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help="How far YaRN stretches positions. Default: for a longer context, as far as "
            "that needs; for a shorter one, as before.",
        ),
    ] = None,
    original: Annotated[
        int | None, typer.Option(min=1, help="Context in tokens before any stretching.")
    ] = None,
    layout: LayoutOption = LayoutChoice.HF,
    text: TextOption = None,
) -> None:
    """Change the longest context, by YaRN; settings alone, every weight is kept."""
    check_destination(out, layout)
    from aperto.adapt.surgery.derived import Derived, with_context

    checkpoint = open_model(model)
    config = with_context(checkpoint.config, tokens, factor=factor, original=original)
    rope = config.rope
    typer.echo(f"context: {tokens} tokens, {rope.factor:g} x {rope.original_context}")
    step = f"context of {tokens} tokens, YaRN factor {rope.factor:g} in {model}"
    write(Change((model,), (checkpoint,), Derived(checkpoint, config), step), out, layout, text)


@app.command()
def layers(
    model: ModelArgument,
    out: OutOption,
    drop: Annotated[str, typer.Option(help="Numbers of layers, such as 3,7.")] = "",
    repeat: Annotated[str, typer.Option(help="Numbers of layers to have twice.")] = "",
    layout: LayoutOption = LayoutChoice.HF,
    text: TextOption = None,
) -> None:
    """Leave out layers, or have some twice."""
    from aperto.adapt.surgery.reshaped import with_repeats, without_layers

    if bool(drop) == bool(repeat):
        raise UsageError("expected either --drop or --repeat, with numbers of layers")
    numbers = _numbers(drop or repeat)
    plan, done = (without_layers, "dropped") if drop else (with_repeats, "repeated")
    shown = ", ".join(map(str, numbers))
    _write(model, out, layout, lambda c: plan(c, numbers), f"{done} layers {shown}", text)


@app.command()
def prune(
    model: ModelArgument,
    keep: Annotated[
        str, typer.Option(metavar="N[,N...]", help="Experts to keep: of every layer, or of each.")
    ],
    text: Annotated[Path, typer.Option(help="Text that tells which experts are worth keeping.")],
    out: OutOption,
    by: Annotated[
        ValueChoice,
        typer.Option(help="How often they are chosen, or how much they add: share x length."),
    ] = ValueChoice.OUTPUT,
    layout: LayoutOption = LayoutChoice.HF,
    held_out: Annotated[
        Path | None,
        typer.Option("--eval", help="Text to measure the result on. Default: that of --text."),
    ] = None,
) -> None:
    """Keep the experts of each layer that a text uses most."""
    check_destination(out, layout)
    from aperto.adapt.surgery.reshaped import most_valuable, with_experts

    counts = _counts(keep, open_model(model).config)
    kept = most_valuable(_expert_scores(model, text, by), counts)
    shown = counts[0] if len(set(counts)) == 1 else keep
    step = f"kept {shown} experts of each layer by {by.value} on {text.name}"
    _write(model, out, layout, lambda c: with_experts(c, kept), step, held_out or text)


def _counts(keep: str, config: ModelConfig) -> list[int]:
    """How many experts each layer keeps. Raises UsageError where there are not as many."""
    numbers = _numbers(keep)
    counts = numbers * config.num_layers if len(numbers) == 1 else numbers
    if len(counts) != config.num_layers:
        raise UsageError(
            f"--keep has {len(counts)} numbers; expected one, or {config.num_layers}, one a layer"
        )
    for index, (count, layer) in enumerate(zip(counts, config.layers, strict=True)):
        if not 1 <= count <= layer.num_experts:
            raise UsageError(
                f"--keep is {count} for layer {index}; expected 1 to {layer.num_experts}, "
                "the experts it has"
            )
    return counts


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as problem:
        raise UsageError(f"{text!r}; expected whole numbers, such as 3,7") from problem


def _expert_scores(model: str, text: Path, by: ValueChoice) -> Mapping[int, Sequence[float]]:
    """What each expert of each layer is worth on a text, computed by the engine."""
    import numpy as np

    import aperto

    sample, config = read_text(text), open_model(model).config
    with aperto.load(model) as loaded:
        ids = loaded.tokenizer.encode(sample)
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
    text: Path | None,
) -> None:
    """Write the model that a plan makes."""
    check_destination(out, layout)
    from aperto.adapt.surgery.reshaped import Reshaped
    from aperto.formats import quantize_experts

    checkpoint = open_model(model)
    result = Reshaped(quantize_experts(checkpoint), plan(checkpoint.config))
    write(Change((model,), (checkpoint,), result, f"{step} of {model}"), out, layout, text)
