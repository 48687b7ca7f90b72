"""How many held-out tickets are sorted and answered right, by the base and by the adapter.

python recipes/support_desk/score.py MODEL DATA/eval.jsonl [--adapter FOLDER] [--limit N]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aperto


def scores(model: Any, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Shares of the right queue, and of the whole answer to the letter; greedy."""
    queue = whole = 0
    for row in rows:
        *asked, expected = row["messages"]
        answer = model.chat(asked, temperature=0.0, max_tokens=120)
        queue += answer.text.split(":")[0].strip() == expected["content"].split(":")[0]
        whole += answer.text.strip() == expected["content"]
    return {"queue": queue / len(rows), "whole answer": whole / len(rows)}


def main() -> None:
    """Print a line a model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    lines = arguments.data.read_text(encoding="utf-8").splitlines()[: arguments.limit]
    rows = [json.loads(line) for line in lines]
    adapters = {"desk": arguments.adapter} if arguments.adapter else {}
    with aperto.load(arguments.model, adapters=adapters) as model:
        variants = {"base": model, **{name: model.variant(name) for name in adapters}}
        for name, variant in variants.items():
            shown = ", ".join(f"{k} {v:.1%}" for k, v in scores(variant, rows).items())
            print(f"{name}: {shown} of {len(rows)} tickets")


if __name__ == "__main__":
    main()
