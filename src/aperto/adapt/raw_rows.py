"""Rows of a data file as they are: JSONL, plain text, Parquet and Arrow, with where each stands."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aperto.errors import DataError, MissingExtraError

SHOWN = 20
"""Problems that an error spells out; the others are counted."""

TEXT_SUFFIXES = (".txt", ".md")
LINES_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".parquet", ".arrow", ".feather")
SUFFIXES = (*TEXT_SUFFIXES, *LINES_SUFFIXES, *TABLE_SUFFIXES)

_HELD_OUT_WORDS = frozenset({"eval", "validation", "valid", "val", "dev", "test"})
_HELD_OUT = re.compile(rf"(?:^|[-_.])(?:{'|'.join(sorted(_HELD_OUT_WORDS))})(?=$|[-_.])")
_TRAIN = re.compile(r"(?:^|[-_.])train(?=$|[-_.])")
_BATCH = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class RawRow:
    """One row of a file."""

    source: str
    """ "file:line", or "file:row" where a file has no lines; counted from 1."""
    fields: Mapping[str, Any]
    """The row's columns."""


@dataclasses.dataclass(slots=True)
class Problems:
    """What is wrong with data, collected until all of it was looked at."""

    lines: list[str] = dataclasses.field(default_factory=list)
    """One line each: where, what was found, what was expected, what to do."""
    rows: set[str] = dataclasses.field(default_factory=set)
    """Sources of the rows that have problems."""

    def add(self, source: str, field: str, found: str, expected: str, advice: str) -> None:
        """Note one problem; `field` may be empty where the row as a whole is meant."""
        where = f"{source}: {field}" if field else source
        self.lines.append(f"{where}: {found}; expected {expected}; {advice}")
        self.rows.add(source)

    def check(self, what: str) -> None:
        """Raise DataError if there are any."""
        if not self.lines:
            return
        total, shown = len(self.lines), self.lines[:SHOWN]
        noun = "problem" if total == 1 else "problems"
        rows = "1 row" if len(self.rows) == 1 else f"{len(self.rows)} rows"
        head = f"{what}: {total} {noun} in {rows}; nothing was started"
        left = [f"… and {total - SHOWN} more"] if total > SHOWN else []
        raise DataError("\n".join([head, *(f"  {line}" for line in (*shown, *left))]), self.lines)


def shown(value: Any) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def data_files(path: Path) -> tuple[list[Path], list[Path]]:
    """The files of a data set: those to learn from, and those it holds out.

    A folder's held-out files are those whose name, or whose folder's, has eval, validation, valid,
    val, dev or test among its parts ("test-00000-of-00001.parquet"). A text is held out only where
    that is its whole name, or its folder's: "test-plan.md" is a document as any other.

    Raises:
        DataError: there are none, or it is a file of another kind.
    """
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"{path}: a file that ends in {path.suffix!r}; expected one of "
                f"{', '.join(SUFFIXES)}; write it as JSONL, one object a line"
            )
        return [path], []
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; expected the data to learn from")
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and file.suffix.lower() in SUFFIXES and _is_data(file.relative_to(path))
    )
    held_out = [file for file in files if _is_held_out(file.relative_to(path))]
    learnt = [file for file in files if file not in set(held_out)]
    if not learnt:
        found = f"{len(held_out)} held-out files and no others" if held_out else "no data files"
        raise DataError(
            f"{path}: {found}; expected files that end in {', '.join(SUFFIXES)}, directly or as "
            "train-… files or in a folder named train"
        )
    return learnt, held_out


def held_out_note(files: Sequence[Path]) -> tuple[str, ...]:
    """What is to be said of files that are held out because of their names; nothing if none are."""
    if not files:
        return ()
    names = ", ".join(file.name for file in files[:5])
    more = f" and {len(files) - 5} more" if len(files) > 5 else ""
    return (f"held out by name, only evaluated: {names}{more}",)


def _is_data(file: Path) -> bool:
    """Whether a file of a folder holds rows, and does not describe the folder."""
    about = {"readme.md", "license.txt", "license.md", "dataset_info.json", "dataset_dict.json"}
    about |= {"dataset_infos.json", "state.json", "changelog.md"}
    hidden = any(part.startswith(".") for part in file.parts)
    return not hidden and file.name.lower() not in about


def _is_held_out(file: Path) -> bool:
    parts = [part.lower() for part in (*file.parts[:-1], file.stem)]
    if file.suffix.lower() in TEXT_SUFFIXES:
        parts = [part for part in parts if part in {*_HELD_OUT_WORDS, "train"}]
    named = [part for part in parts if _HELD_OUT.search(part) or _TRAIN.search(part)]
    return bool(named) and not _TRAIN.search(named[-1])


def read_rows(path: Path, problems: Problems) -> Iterator[RawRow]:
    """Rows of one file; what cannot be read as a row goes to `problems`.

    A text file is one row with the column `text`.

    Raises:
        MissingExtraError: a Parquet or Arrow file, and pyarrow is not installed.
        OSError: the file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix in TEXT_SUFFIXES:
        return _text_row(path, problems)
    if suffix in LINES_SUFFIXES:
        return _line_rows(path, problems)
    return _table_rows(path, problems)


def _text_row(path: Path, problems: Problems) -> Iterator[RawRow]:
    source = f"{path}:1"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        problems.add(source, "", _bad_bytes(error), "UTF-8 text", "convert the file to UTF-8")
        return
    yield RawRow(source, {"text": text})


def _line_rows(path: Path, problems: Problems) -> Iterator[RawRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                row = _line_row(f"{path}:{number}", line, problems)
                if row is not None:
                    yield row


def _line_row(source: str, line: bytes, problems: Problems) -> RawRow | None:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        problems.add(source, "", _bad_bytes(error), "UTF-8 text", "convert the file to UTF-8")
    except ValueError as error:
        begin = shown(line[:40].decode(errors="replace"))
        problems.add(
            source,
            "",
            f"no JSON ({error}): {begin}",
            "one whole JSON object a line",
            "write each row on a line of its own, without commas between rows",
        )
    except RecursionError:
        problems.add(source, "", "JSON nested too deeply", "a row of data", "flatten the row")
    else:
        if isinstance(value, dict):
            return RawRow(source, value)
        problems.add(
            source,
            "",
            f"{shown(value)}",
            "a JSON object",
            "write one object a line, not an array of them",
        )
    return None


def _bad_bytes(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} at {error.start} is no UTF-8"


def _table_rows(path: Path, problems: Problems) -> Iterator[RawRow]:
    read = _parquet_batches if path.suffix.lower() == ".parquet" else _arrow_batches
    number = 0
    try:
        for batch in read(path):
            for fields in batch.to_pylist():
                number += 1
                yield RawRow(f"{path}:{number}", without_nulls(fields))
    except (ValueError, OSError) as error:  # pyarrow's errors are kinds of these
        problems.add(
            f"{path}:{number + 1}",
            "",
            f"cannot be read ({next(iter(str(error).splitlines()), type(error).__name__)})",
            "a whole Parquet or Arrow file",
            "download or write it again",
        )


def _parquet_batches(path: Path) -> Iterator[Any]:
    parquet: Any = _pyarrow("pyarrow.parquet")
    with parquet.ParquetFile(path) as file:
        yield from file.iter_batches(_BATCH)


def _arrow_batches(path: Path) -> Iterator[Any]:
    """Batches of an Arrow file: Hugging Face writes the stream form, others the file form."""
    arrow: Any = _pyarrow("pyarrow")
    with arrow.memory_map(str(path)) as source:
        open_it: Callable[[Any], Iterable[Any]] = arrow.ipc.open_stream
        if source.read(6) == b"ARROW1":
            source.seek(0)
            file = arrow.ipc.open_file(source)
            yield from (file.get_batch(i) for i in range(file.num_record_batches))
            return
        source.seek(0)
        yield from open_it(source)


def _pyarrow(module: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "adapt") from error
    return pyarrow.parquet if module == "pyarrow.parquet" else pyarrow


def without_nulls(value: Any) -> Any:
    """A table's value without the empty fields that its columns give to every row."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
