"""Writes tests/goldens/logits.json anew: python -m tests.native.regenerate_goldens.

Only for a change that is meant to move the bits of every model's answers; say so in the changelog.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from tests.native.goldens import CASES, PATH, compute


def main() -> None:
    result = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            result[name] = compute(name, Path(folder), "reference")
    PATH.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
