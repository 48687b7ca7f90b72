"""JSON files of a checkpoint, read defensively: sizes, duplicates and every field are checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aperto.errors import FormatError

MAX_BYTES = 64 << 20


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object; duplicate keys, other values and broken text raise FormatError."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise FormatError(f"{where}: the key {twice!r:.80} occurs twice; expected it once")
        return result

    try:
        value = json.loads(data, object_pairs_hook=pairs)
    except (ValueError, RecursionError) as problem:
        raise FormatError(f"{where}: found no valid JSON ({problem!s:.120})") from problem
    if not isinstance(value, dict):
        raise FormatError(f"{where}: found a JSON {type(value).__name__}; expected an object")
    return value


def read_object(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file of at most `max_bytes`."""
    if not path.is_file():
        raise FormatError(
            f"{path}: found no such file; expected a JSON file; the folder is incomplete"
        )
    size = path.stat().st_size
    if size > max_bytes:
        raise FormatError(f"{path}: found {size} bytes; expected at most {max_bytes}")
    return parse_object(path.read_bytes(), str(path))


class Fields:
    """Typed access to the fields of a JSON object; every error names file, field, value, range."""

    def __init__(self, raw: dict[str, Any], where: str) -> None:
        self.raw = raw
        self.where = where

    def first(self, *names: str) -> tuple[str, Any]:
        """Return the first of these fields that is present and not null, else (name, None)."""
        for name in names:
            if self.raw.get(name) is not None:
                return name, self.raw[name]
        return names[0], None

    def count(
        self, *names: str, low: int = 1, high: int = 1 << 31, default: int | None = None
    ) -> int:
        """Return an integer in low..high under the first of these names."""
        name, value = self.first(*names)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.error(name, value, f"an integer in {low}..{high}")
        return value

    def number(
        self, *names: str, low: float = 0.0, high: float = 1e9, default: float | None = None
    ) -> float:
        """Return a number in low..high under the first of these names."""
        name, value = self.first(*names)
        if value is None and default is not None:
            return default
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not low <= value <= high
        ):
            raise self.error(name, value, f"a number in {low:g}..{high:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Return a boolean."""
        value = self.raw.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, value, "true or false")
        return value

    def error(self, name: str, value: Any, expected: str) -> FormatError:
        """Build the error for one field."""
        found = "nothing" if value is None else f"{value!r:.80}"
        return FormatError(f"{self.where}: {name} is {found}; expected {expected}")
