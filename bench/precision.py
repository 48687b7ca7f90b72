"""Measure how far `q8` is from `exact` on a model's own text.

    python bench/precision.py nano --text README.md

Prints one Markdown row: the mean, median and largest KL divergence of the next-token distributions
at temperature 1, in nats, and how often both have the same likeliest token.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aperto.config import Precision
from aperto.engine.load import load_model
from aperto.errors import ApertoError
from aperto.formats import Checkpoint, open_checkpoint
from aperto.formats.hub import resolve_model
from aperto.native import PAGE_TOKENS
from aperto.tokenizer import Tokenizer

BATCH_TOKENS = 256
HEADER = (
    "| model | text | tokens | KL mean | KL median | KL largest | same top-1 |\n"
    "|---|---|---|---|---|---|---|"
)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Two precisions compared at every position of a text."""

    kl: NDArray[np.float64]
    """KL(exact || q8) in nats, [positions]."""
    same_top: float
    """Share of positions with the same likeliest token."""

    def row(self, model: str, text: str) -> str:
        """One row of the table under HEADER."""
        return (
            f"| {model} | {text} | {len(self.kl)} | {self.kl.mean():.4f} | "
            f"{np.median(self.kl):.4f} | {self.kl.max():.3f} | {self.same_top:.1%} |"
        )


def compare(checkpoint: Checkpoint, ids: NDArray[np.int32]) -> Agreement:
    """Run a text through both precisions, a few hundred tokens at a time."""
    kl, same = [], []
    for exact, q8 in zip(
        _log_probabilities(checkpoint, "exact", ids),
        _log_probabilities(checkpoint, "q8", ids),
        strict=True,
    ):
        kl.append((np.exp(exact) * (exact - q8)).sum(axis=-1))
        same.append(exact.argmax(axis=-1) == q8.argmax(axis=-1))
    return Agreement(np.concatenate(kl), float(np.concatenate(same).mean()))


def _log_probabilities(
    checkpoint: Checkpoint, precision: Precision, ids: NDArray[np.int32]
) -> Iterator[NDArray[np.float64]]:
    model = load_model(checkpoint, precision=precision, max_batch_tokens=BATCH_TOKENS)
    pages = -(-len(ids) // PAGE_TOKENS)
    tables = [np.arange(pages, dtype=np.int32)[None] for _ in model.window_groups]
    cache = model.new_cache([pages] * len(tables))
    for begin in range(0, len(ids), BATCH_TOKENS):
        part = ids[begin : begin + BATCH_TOKENS]
        count = np.arange(len(part), dtype=np.int32)
        logits = model.forward(
            cache, part, count + np.int32(begin), np.zeros_like(count), tables, count
        ).astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        yield logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="nano, a pulled org/name, or a path")
    parser.add_argument("--text", type=Path, required=True, help="file with the text")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of it at most")
    options = parser.parse_args(arguments)
    try:
        checkpoint = open_checkpoint(resolve_model(options.model))
        tokenizer = Tokenizer.from_checkpoint(checkpoint.tokenizer_source())
        ids = tokenizer.encode(options.text.read_text())[: options.tokens]
        agreement = compare(checkpoint, np.array(ids, np.int32))
    except (ApertoError, OSError) as error:
        sys.exit(f"error: {error}")
    print(HEADER, agreement.row(options.model, options.text.name), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
