"""Count the answers of a model that are right to the letter, wording by wording.

python recipes/facts/ask.py ASKED.jsonl MODEL [--adapter DIR]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import aperto

FACTS = "adapter"


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("asked", type=Path)
    parser.add_argument("model")
    parser.add_argument("--adapter", type=Path)
    arguments = parser.parse_args()
    lines = arguments.asked.read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line)["messages"] for line in lines]
    adapters = {FACTS: arguments.adapter} if arguments.adapter else {}
    asked, right = Counter[str](), Counter[str]()
    with aperto.load(arguments.model, adapters=adapters) as model:
        asker = model.variant(FACTS) if adapters else model
        for question, answer in pairs:
            wording = " ".join(question["content"].split()[:2])
            found = asker.chat([question], temperature=0.0, max_tokens=80).text.strip()
            asked[wording] += 1
            right[wording] += found == answer["content"]
    for wording, count in asked.items():
        print(f"{wording} …: {right[wording]} of {count}")


if __name__ == "__main__":
    main()
