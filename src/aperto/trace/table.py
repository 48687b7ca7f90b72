"""A trace as Parquet: one table of tokens, one of choices of experts, one of the logit lens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from aperto.errors import MissingExtraError
from aperto.trace.record import Trace


def write_tables(trace: Trace, folder: Path) -> tuple[Path, ...]:
    """Write tokens.parquet, experts.parquet and lens.parquet into a folder that exists.

    Raises MissingExtraError without pyarrow.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "trace") from error
    paths = []
    for name, columns in _tables(trace).items():
        path = folder / f"{name}.parquet"
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
        paths.append(path)
    return tuple(paths)


def _tables(trace: Trace) -> dict[str, dict[str, Any]]:
    num = len(trace.ids)
    positions = np.arange(num, dtype=np.int32)
    tokens = {
        "position": positions,
        "id": np.array(trace.ids, np.int32),
        "text": list(trace.texts),
        "class": list(trace.classes),
        "generated": positions >= trace.num_prompt,
        "entropy": trace.entropies,
        "logprob": trace.logprobs,
    }
    experts: dict[str, list[Any]] = {
        n: [] for n in ("layer", "position", "rank", "expert", "share")
    }
    lens: dict[str, list[Any]] = {
        n: [] for n in ("layer", "position", "id", "text", "probability", "sink")
    }
    for index, layer in enumerate(trace.layers):
        rows, ranks = np.nonzero(layer.chosen >= 0)
        experts["layer"].append(np.full(len(rows), index, np.int32))
        experts["position"].append(rows.astype(np.int32))
        experts["rank"].append(ranks.astype(np.int32))
        experts["expert"].append(layer.chosen[rows, ranks])
        experts["share"].append(layer.shares[rows, ranks])
        lens["layer"].append(np.full(num, index, np.int32))
        lens["position"].append(positions)
        lens["id"].append(layer.lens_ids)
        lens["text"] += trace.lens_texts[index]
        lens["probability"].append(layer.lens_probs)
        lens["sink"].append(layer.sinks.mean(axis=1))
    return {"tokens": tokens, "experts": _joined(experts), "lens": _joined(lens)}


def _joined(columns: dict[str, list[Any]]) -> dict[str, Any]:
    return {n: parts if n == "text" else np.concatenate(parts) for n, parts in columns.items()}
