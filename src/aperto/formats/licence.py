"""The licence texts that go with whatever is derived from a model."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

FILES = ("LICENSE", "NOTICE")


def licences(base: Path | None) -> dict[str, str]:
    """LICENSE and NOTICE of a base model's folder; where it has none, the package's own.

    Both are Apache-2.0, as the weights of gpt-oss are.
    """
    found = {}
    for name in FILES:
        file = base / name if base else None
        own = distribution("aperto").read_text(f"licenses/{name}")
        text = file.read_text(encoding="utf-8") if file and file.is_file() else own
        if text is not None:
            found[name] = text
    return found
