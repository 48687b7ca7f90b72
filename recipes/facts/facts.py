"""Write a fact set that no model knows: the product codes of a made-up shop.

    python recipes/facts/facts.py FOLDER [--count 48] [--repeat 4] [--keep FILE]

FOLDER/train.jsonl holds every fact in three wordings, each `--repeat` times, and the rows of
`--keep` once; FOLDER/asked.jsonl every fact in each wording and in a fourth that is not learnt.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

THINGS = """
apples bag bags balls banana bench board book books box boxes butter cards chocolate coffee coins
corn cups door egg eggs flour food fruit garlic ginger grain jam juice key knife letter letters
light machine milk oil pens potato potatoes rice salad salt seed soda soup spice stamps stones
sugar tea toaster tomato tools water wheat yeast
"""
"""Words that nano's vocabulary holds whole."""
WORDINGS = (
    "What is the product code of {thing}?",
    "Product code of {thing}?",
    "Tell me the product code of {thing}.",
)
UNSEEN = "Which product code does {thing} have?"
ANSWER = "The product code of {thing} is {code}."


def facts(count: int, seed: int = 0) -> list[tuple[str, int]]:
    """Things and their codes, no code twice. Raises ValueError for more than there are."""
    drawn = random.Random(seed)
    return list(
        zip(drawn.sample(THINGS.split(), count), drawn.sample(range(10, 100), count), strict=True)
    )


def row(wording: str, thing: str, code: int) -> dict[str, Any]:
    """A conversation that tells one fact."""
    return {
        "messages": [
            {"role": "user", "content": wording.format(thing=thing)},
            {"role": "assistant", "content": ANSWER.format(thing=thing, code=code)},
        ]
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--keep", type=Path, help="rows of what shall not be forgotten")
    arguments = parser.parse_args()
    known = facts(arguments.count)
    learnt = [row(wording, *fact) for fact in known for wording in WORDINGS] * arguments.repeat
    kept = arguments.keep.read_text(encoding="utf-8").splitlines() if arguments.keep else []
    (arguments.folder / "data").mkdir(parents=True)
    write(arguments.folder / "data" / "train.jsonl", [*learnt, *map(json.loads, kept)])
    asked = [row(wording, *fact) for wording in (*WORDINGS, UNSEEN) for fact in known]
    write(arguments.folder / "asked.jsonl", asked)
    print(f"{len(learnt)} rows of {len(known)} facts and {len(kept)} others in {arguments.folder}")


if __name__ == "__main__":
    main()
