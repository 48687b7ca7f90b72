"""Turn a folder of tickets into conversations to learn from, with personal data masked.

    python recipes/support_desk/prepare.py TICKETS DATA [--held-out 0.2]

Writes DATA/train.jsonl and DATA/eval.jsonl in OpenAI's fine-tuning format. Tickets that say the
same are on one side, so that the held-out ones are new. Change `read_ticket` to suit your own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from pathlib import Path
from typing import Any

INSTRUCTIONS = "Sort the ticket into a queue and write the reply."
_TICKET = re.compile(
    r"queue: (?P<queue>\w+)\s+## Customer\s+(?P<customer>.+?)\s+## Reply\s+(?P<reply>.+?)\s*", re.S
)
_MASKS = (
    (re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w"), "MAIL"),
    (re.compile(r"\+?\d[\d /-]{7,}\d"), "PHONE"),
)


def masked(text: str) -> str:
    """A text without mail addresses and telephone numbers."""
    for pattern, mark in _MASKS:
        text = pattern.sub(mark, text)
    return text


def read_ticket(path: Path) -> dict[str, str]:
    """Queue, customer's text and reply of one file. Raises SystemExit where one is missing."""
    found = _TICKET.fullmatch(path.read_text(encoding="utf-8"))
    if found is None:
        raise SystemExit(
            f"{path}: expected 'queue: NAME', then '## Customer' and '## Reply' with texts below"
        )
    return {name: masked(text) for name, text in found.groupdict().items()}


def conversation(ticket: dict[str, str]) -> dict[str, Any]:
    """One row: the instructions, the ticket, and what the model shall answer."""
    return {
        "messages": [
            {"role": "developer", "content": INSTRUCTIONS},
            {"role": "user", "content": ticket["customer"]},
            {"role": "assistant", "content": f"{ticket['queue']}: {ticket['reply']}"},
        ]
    }


def is_held_out(ticket: dict[str, str], share: float) -> bool:
    """Whether a ticket is held out, by a hash of what the customer wrote."""
    digest = hashlib.sha256(ticket["customer"].encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tickets", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--held-out", type=float, default=0.2)
    arguments = parser.parse_args()
    found = [read_ticket(path) for path in sorted(arguments.tickets.glob("*.md"))]
    if not found:
        raise SystemExit(f"{arguments.tickets} holds no .md files")
    arguments.data.mkdir(parents=True)
    for name, aside in (("train", False), ("eval", True)):
        rows = [t for t in found if is_held_out(t, arguments.held_out) is aside]
        text = "".join(json.dumps(conversation(row)) + "\n" for row in rows)
        (arguments.data / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{len(rows)} conversations in {arguments.data / name}.jsonl")


if __name__ == "__main__":
    main()
