"""Turn the made-up tickets of recipes/support_desk into rows that teach a model to emit JSON.

    python recipes/extractor/prepare.py TICKETS DATA

The answer is one JSON object with the queue, the product and the order's number. Serve it with a
JSON schema as response format and the keys are certain; training makes the values right.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from pathlib import Path
from typing import Any

_TICKET = re.compile(
    r"queue: (?P<queue>\w+)\s+## Customer\s+(?P<customer>.+?)\s+## Reply\s+.+", re.S
)
_ORDER = re.compile(r"[Oo]rder(?: is)? (?P<order>\d+)")
_PRODUCT = re.compile(r"\b(?P<product>kettle|lamp|clock|toaster|scale|fan)\b")
SCHEMA = {
    "type": "object",
    "properties": {
        "queue": {"type": "string", "enum": ["returns", "delivery", "repair", "billing"]},
        "product": {"type": "string"},
        "order": {"type": "integer"},
    },
    "required": ["queue", "product", "order"],
    "additionalProperties": False,
}
"""The response format to serve the extractor with."""


def row(path: Path) -> dict[str, Any]:
    """One conversation. Raises SystemExit where the ticket lacks something."""
    ticket = _TICKET.fullmatch(path.read_text(encoding="utf-8"))
    text = ticket["customer"] if ticket else ""
    order, product = _ORDER.search(text), _PRODUCT.search(text)
    if not (ticket and order and product):
        raise SystemExit(f"{path}: expected a queue, and a text that names a product and an order")
    answer = {"queue": ticket["queue"], "product": product[1], "order": int(order["order"])}
    return {
        "messages": [
            {"role": "developer", "content": "Answer with a JSON object: queue, product, order."},
            {"role": "user", "content": text},
            {"role": "assistant", "content": json.dumps(answer)},
        ]
    }


def main() -> None:
    """Write train.jsonl and eval.jsonl, a fifth held out by a hash of the text."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tickets", type=Path)
    parser.add_argument("data", type=Path)
    arguments = parser.parse_args()
    arguments.data.mkdir(parents=True)
    parts: dict[str, list[str]] = {"train": [], "eval": []}
    for path in sorted(arguments.tickets.glob("*.md")):
        found = row(path)
        digest = hashlib.sha256(found["messages"][1]["content"].encode()).digest()
        parts["eval" if digest[0] < 51 else "train"].append(json.dumps(found) + "\n")
    for name, lines in parts.items():
        (arguments.data / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{len(lines)} rows in {arguments.data / name}.jsonl")


if __name__ == "__main__":
    main()
