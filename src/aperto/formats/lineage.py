"""Where a derived model or adapter comes from, and whether it was vetted; kept beside the files.

A folder holds it as aperto_lineage.json, a GGUF file under the key aperto.lineage.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aperto.errors import FormatError
from aperto.formats.jsonfile import parse_object, read_object

FILE = "aperto_lineage.json"
GGUF_KEY = "aperto.lineage"
NOT_VETTED = "no"
_FORMAT = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Parent:
    """A model or adapter that something was made from."""

    name: str
    """Its name or path, as it was given."""
    hash: str
    """Of its tensors, as `aperto check` prints it; of an adapter's weights file."""


@dataclasses.dataclass(frozen=True, slots=True)
class Lineage:
    """How something was made."""

    parents: tuple[Parent, ...]
    """What it was made from, the base model first."""
    steps: tuple[str, ...]
    """What was done, in order, a line each; those of the parents come first."""
    package: str = dataclasses.field(default_factory=lambda: f"aperto {version('aperto')}")
    """What made it."""
    vetted: str = NOT_VETTED
    """"no", or the verdict of the gate and the hash of its report."""

    def then(self, step: str, *parents: Parent) -> Lineage:
        """What is made from this by one more step; it is not vetted."""
        return Lineage((*self.parents, *parents), (*self.steps, step))

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    def lines(self) -> list[tuple[str, str]]:
        """Label and text of each line for people."""
        return [
            ("vetted", self.vetted),
            *(("made from", f"{parent.name} ({parent.hash})") for parent in self.parents),
            *(("made by", step) for step in self.steps),
        ]


def read_lineage(folder: Path) -> Lineage | None:
    """The lineage of a folder, if it has one. Raises FormatError where it cannot be read."""
    path = folder / FILE
    return _parsed(read_object(path), str(path)) if path.is_file() else None


def parse_lineage(text: object, where: str) -> Lineage | None:
    """The lineage in a GGUF file's metadata, if there is any. Raises FormatError as above."""
    if text is None:
        return None
    if not isinstance(text, str):
        raise FormatError(f"{where}: {GGUF_KEY} is {text!r:.80}; expected text")
    return _parsed(parse_object(text.encode(), f"{where} ({GGUF_KEY})"), where)


def _parsed(raw: Mapping[str, Any], where: str) -> Lineage:
    try:
        if raw["format"] != _FORMAT:
            raise FormatError(
                f"{where}: the lineage has format {raw['format']!r:.40}; expected {_FORMAT}; it is "
                "of a newer release"
            )
        parents = tuple(Parent(str(p["name"]), str(p["hash"])) for p in raw["parents"])
        steps = tuple(str(step) for step in raw["steps"])
        return Lineage(parents, steps, str(raw["package"]), str(raw["vetted"]))
    except (KeyError, TypeError) as problem:
        raise FormatError(f"{where}: the lineage is not complete ({problem})") from problem
