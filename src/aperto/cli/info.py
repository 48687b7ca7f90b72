"""`aperto info`: what a checkpoint is, and whether it fits into this machine's memory."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aperto.cli.app import settings_of
from aperto.cli.options import JsonOption, LogLevelOption, ModelArgument, PrecisionOption
from aperto.cli.table import columns
from aperto.errors import UsageError

if TYPE_CHECKING:
    from aperto.config import ModelConfig, Precision
    from aperto.formats import Checkpoint
    from aperto.measure.plan import MemoryPlan

ContextOption = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="TOKENS", help="Context of the memory plan. Default: what a chat takes."
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(info)


def info(
    ctx: typer.Context,
    model: ModelArgument,
    context: ContextOption = None,
    precision: PrecisionOption = None,
    as_json: JsonOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Describe a model, and whether it fits here.

    Shows the architecture, the tensors, and a memory plan for a context on this machine.
    """
    settings = settings_of(ctx, log_level)
    from aperto.formats.adapter import is_adapter

    if model is not None and is_adapter(Path(model)):
        typer.echo(_adapter_as(Path(model), as_json=as_json))
        return
    from aperto import machine
    from aperto.formats import open_checkpoint
    from aperto.formats.hub import resolve_model
    from aperto.measure.plan import default_context, plan_memory

    checkpoint = open_checkpoint(resolve_model(model))
    config = checkpoint.config
    if context is not None and context > config.max_context:
        raise UsageError(
            f"--context is {context}; this model holds at most {config.max_context} tokens"
        )
    chosen: Precision = precision.value if precision else settings.precision
    plan = plan_memory(
        config,
        precision=chosen,
        context=context or settings.context or default_context(config, chosen),
        available_bytes=machine.available_bytes(),
    )
    if as_json:
        typer.echo(json.dumps(_as_dict(checkpoint, plan), indent=2))
    else:
        typer.echo(_as_text(checkpoint, plan))


def _adapter_as(path: Path, *, as_json: bool) -> str:
    """What an adapter's folder holds, as JSON or as a table."""
    from aperto.formats.adapter import summarize
    from aperto.formats.lineage import NOT_VETTED, read_lineage
    from aperto.measure.plan import readable_bytes

    found, lineage = summarize(path), read_lineage(path)
    if as_json:
        made = dataclasses.asdict(lineage) if lineage else None
        return json.dumps(
            {"path": str(path), **dataclasses.asdict(found), "lineage": made}, indent=2
        )
    return columns(
        [
            ["adapter", str(path)],
            ["trained on", found.base],
            ["rank", f"{found.rank}, scaling {found.scaling:g}"],
            *(["changes", f"{number} x {kind}"] for kind, number in found.modules.items()),
            ["parameters", f"{_count(found.num_parameters)}, {readable_bytes(found.nbytes)}"],
            *(list(line) for line in (lineage.lines() if lineage else [("vetted", NOT_VETTED)])),
        ]
    )


def _stored_bytes(checkpoint: Checkpoint) -> dict[str, dict[str, int]]:
    """Bytes and dtypes by kind of tensor."""
    from aperto.measure.plan import bytes_by_kind

    infos = [checkpoint.info(name) for name in checkpoint.names()]
    return {
        "kinds": bytes_by_kind((info.name, info.nbytes) for info in infos),
        "dtypes": dict(Counter(str(info.dtype) for info in infos).most_common()),
    }


def _as_dict(checkpoint: Checkpoint, plan: MemoryPlan) -> dict[str, Any]:
    stored = _stored_bytes(checkpoint)
    return {
        "path": str(checkpoint.path),
        "layout": checkpoint.layout,
        "notes": list(checkpoint.notes),
        "lineage": dataclasses.asdict(checkpoint.lineage) if checkpoint.lineage else None,
        "config": dataclasses.asdict(checkpoint.config),
        "bytes_by_kind": stored["kinds"],
        "tensors_by_dtype": stored["dtypes"],
        "plan": {
            **dataclasses.asdict(plan),
            "total_bytes": plan.total_bytes,
            "fits": plan.fits,
        },
    }


def _num_parameters(config: ModelConfig, experts_per_layer: list[int]) -> int:
    """Weights of all matrices, with the given number of experts counted in each layer."""
    hidden = config.hidden_size
    expert = 3 * hidden * config.intermediate_size + 2 * config.intermediate_size + hidden
    attention = 2 * hidden * (config.q_size + config.kv_size)
    attention += 2 * hidden + config.q_size + 2 * config.kv_size + config.num_attention_heads
    total = 2 * config.vocab_size * hidden + hidden + config.num_layers * (attention + hidden)
    for layer, num_experts in zip(config.layers, experts_per_layer, strict=True):
        total += layer.num_experts * (hidden + 1) + num_experts * expert
    return total


def _windows(config: ModelConfig) -> str:
    groups = Counter(layer.window for layer in config.layers)
    return ", ".join(
        f"{count} with a window of {window}" if window else f"{count} over the whole context"
        for window, count in sorted(groups.items())
    )


def _experts(config: ModelConfig) -> str:
    kinds = Counter((layer.num_experts, layer.experts_per_token) for layer in config.layers)
    if len(kinds) == 1:
        (num_experts, per_token), _ = kinds.most_common(1)[0]
        return f"{num_experts} a layer, {per_token} for each token"
    return ", ".join(
        f"{total} ({top} for each token) in {n} layers" for (total, top), n in kinds.most_common()
    )


def _architecture(checkpoint: Checkpoint) -> list[list[str]]:
    config = checkpoint.config
    total = _num_parameters(config, [layer.num_experts for layer in config.layers])
    active = _num_parameters(config, [layer.experts_per_token for layer in config.layers])
    active -= config.vocab_size * config.hidden_size  # one embedding row is read, not the table
    heads = f"{config.num_attention_heads} query, {config.num_key_value_heads} key/value heads"
    return [
        ["model", str(checkpoint.path)],
        ["layout", checkpoint.layout],
        ["parameters", f"{_count(total)}, {_count(active)} active for each token"],
        ["layers", f"{config.num_layers}: {_windows(config)}"],
        ["hidden size", str(config.hidden_size)],
        ["attention", f"{heads} of {config.head_dim}, with sinks"],
        ["experts", f"{_experts(config)}, inner size {config.intermediate_size}"],
        ["vocabulary", str(config.vocab_size)],
        [
            "longest context",
            f"{config.max_context} tokens (YaRN x{config.rope.factor:g} from "
            f"{config.rope.original_context})",
        ],
        *(["note", note] for note in checkpoint.notes),
        *([label, text] for label, text in _lineage(checkpoint)),
    ]


def _lineage(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    return checkpoint.lineage.lines() if checkpoint.lineage else []


def _count(number: int) -> str:
    for limit, unit in ((10**9, "billion"), (10**6, "million")):
        if number >= limit:
            return f"{number / limit:.2f} {unit}"
    return str(number)


def _as_text(checkpoint: Checkpoint, plan: MemoryPlan) -> str:
    from aperto.measure.plan import readable_bytes

    stored = _stored_bytes(checkpoint)
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in stored["dtypes"].items())
    kinds = [[kind, readable_bytes(size)] for kind, size in stored["kinds"].items()]
    kinds.append(["total", readable_bytes(sum(stored["kinds"].values()))])
    items = [[item.name, readable_bytes(item.num_bytes), item.detail] for item in plan.items]
    items.append(["total", readable_bytes(plan.total_bytes), ""])
    items.append(["available", readable_bytes(plan.available_bytes), "on this machine, now"])
    verdict = "It fits." if plan.fits else "It does not fit. What to change:"
    longest = f"The longest context that fits is {plan.longest_context} tokens."
    lines = [
        columns(_architecture(checkpoint)),
        "",
        f"Tensors: {sum(stored['dtypes'].values())} ({dtypes})",
        columns(kinds, right=frozenset({1})),
        "",
        f"Memory for a context of {plan.context} tokens, precision {plan.precision}:",
        columns(items, right=frozenset({1})),
        verdict,
        *(f"  {advice}" for advice in plan.advice),
        *([longest] if plan.fits else []),
    ]
    return "\n".join(lines)
