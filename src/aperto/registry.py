"""Registered test questions: hashes of what evaluation suites ask, so that none is trained on.

A suite's file is plain text: lines that begin with "#", then a SHA-256 in hexadecimal a line, each
of one normalised prompt. The package carries those of its own suites; runs of others add theirs to
the user's folder. The questions themselves are not in these files and cannot be had from them.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.resources
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from aperto.config import state_dir
from aperto.errors import FormatError, UsageError
from aperto.formats.disk import replace_file

_HEAD = "# aperto registry 1"
_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_AROUND_WORDS = ".,;:!?\"'()[]{}`<>…“”„‘’«»"
_MIN_WORDS = 5
"""Words from which a line or a paragraph inside a text is looked up on its own."""


@dataclasses.dataclass(frozen=True, slots=True)
class RegisteredSuite:
    """What a suite asks, as hashes."""

    name: str
    """Name of the suite."""
    digests: frozenset[str]
    """A `digest` a prompt."""
    path: str
    """The file it was read from."""


def normalised(text: str) -> str:
    """A text without what rewriting changes: case, widths of blanks, punctuation around words.

    Signs inside and before words stay, so "2-91" is not "2+91".
    """
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return " ".join(filter(None, (word.strip(_AROUND_WORDS) for word in words)))


def digest(text: str) -> str:
    """SHA-256 of the normalised text, in hexadecimal."""
    return hashlib.sha256(normalised(text).encode("utf-8", "replace")).hexdigest()


def digests(text: str) -> tuple[str, ...]:
    """Digests of a text, and of its paragraphs and lines of five words or more."""
    parts = [part for cut in ("\n\n", "\n") for part in text.split(cut)]
    long = (part for part in parts if len(part.split()) >= _MIN_WORDS)
    return tuple(dict.fromkeys(digest(part) for part in (text, *long) if normalised(part)))


def user_folder() -> Path:
    """Where suites that were run on this machine are registered."""
    return state_dir() / "registry"


def register(
    name: str, prompts: Iterable[str], *, folder: Path | None = None, note: str = ""
) -> Path:
    """Register what a suite asks, in place of what its file said before.

    Args:
        name: the suite's; the file is NAME.txt.
        prompts: the questions' own words, without a template that all share.
        folder: the user's if None.
        note: one line for whoever reads the file.

    Raises:
        UsageError: the name cannot be that of a file, or there are no prompts.
        OSError: the file cannot be written.
    """
    found = sorted({digest(prompt) for prompt in prompts if normalised(prompt)})
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"a suite's name is {name!r}; expected letters, digits, '.', '_' and '-' alone"
        )
    if not found:
        raise UsageError(f"suite {name!r} registers no prompts; expected at least one")
    folder = user_folder() if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    lines = [_HEAD, f"# suite: {name}", f"# {' '.join(note.split())}" if note else "", *found]
    path = folder / f"{name}.txt"
    replace_file(path, "".join(f"{line}\n" for line in lines if line).encode())
    return path


def registered(folder: Path | None = None) -> Iterator[RegisteredSuite]:
    """Every suite that is registered, the package's own first; `folder` is the user's if None.

    Raises:
        FormatError: a file is not what `register` writes.
    """
    yield from _shipped()
    folder = user_folder() if folder is None else folder
    for path in sorted(folder.glob("*.txt")):
        yield _parsed(path.read_text(encoding="utf-8"), str(path))


@functools.cache
def _shipped() -> tuple[RegisteredSuite, ...]:
    folder = importlib.resources.files("aperto") / "data" / "registered"
    files = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".txt")), key=lambda f: f.name
    )
    return tuple(_parsed(file.read_text(encoding="utf-8"), f"aperto/{file.name}") for file in files)


def _parsed(text: str, path: str) -> RegisteredSuite:
    lines = text.splitlines()
    if not lines or lines[0] != _HEAD:
        first = lines[0][:40] if lines else ""
        raise FormatError(
            f"{path}: first line is {first!r}; expected {_HEAD!r}; remove the file and run the "
            "suite again"
        )
    name = Path(path).stem
    for number, line in enumerate(lines, 1):
        if not line.startswith("#") and not _HEX.fullmatch(line):
            raise FormatError(
                f"{path}:{number}: {line[:40]!r}; expected a SHA-256 in hexadecimal; remove the "
                "file and run the suite again"
            )
    return RegisteredSuite(
        name, frozenset(line for line in lines if not line.startswith("#")), path
    )


def suites_asking(
    digests_of: Mapping[str, Iterable[str]], folder: Path | None = None
) -> dict[str, tuple[str, ...]]:
    """The suites that ask what a row asks, by row; rows that none asks are left out.

    Args:
        digests_of: the digests of each row, by its name.
        folder: the user's registered suites; as in `registered`.

    Raises:
        FormatError: as `registered` does.
    """
    suites = list(registered(folder))
    found = {}
    for row, marks in digests_of.items():
        asked = set(marks)
        names = tuple(suite.name for suite in suites if asked & suite.digests)
        if names:
            found[row] = names
    return found
