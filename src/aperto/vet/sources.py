"""Data of suites: where it comes from, how it is pinned, and where it lies on this machine.

A file is looked for in the user's folder (`--data-dir`), then in the cache, then in an installed
package. Only `fetch` reaches out, and never for sensitive sources.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.resources
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from aperto.config import default_cache_dir
from aperto.errors import DownloadError, EvidenceError, UsageError

Kind = Literal["pypi", "hf", "url", "file"]
Hazard = Literal["none", "sensitive"]
_FETCH_S = 600.0


class DataUnavailableError(UsageError):
    """The data of a suite is not on this machine; says where to put it."""


@dataclasses.dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source."""

    name: str
    """Its name below `<data-dir>/<source>/`."""
    member: str | None
    """Its path at the publisher's; None where the user converts it."""
    sha256: str | None
    """Hash that it must have; None where only its revision is pinned."""


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Where the data of one suite comes from."""

    id: str
    title: str
    kind: Kind
    pin: str
    """Version, commit, or what else fixes the content."""
    licence: str
    files: tuple[SourceFile, ...]
    hazard: Hazard = "none"
    origin: str = ""
    """Package, repository or address."""
    archive: str | None = None
    """Wheel that holds the files, for packages."""
    sha256: str | None = None
    """Hash of the wheel."""

    @property
    def layout(self) -> str:
        """Where the user's files must lie, in words."""
        places = ", ".join(f"DIR/{self.id}/{file.name}" for file in self.files)
        wheel = f", or DIR/{self.archive}" if self.archive else ""
        return f"--data-dir DIR with {places}{wheel}"


@dataclasses.dataclass(frozen=True, slots=True)
class Data:
    """Files of a source, found and checked."""

    source: Source
    paths: Mapping[str, Path]
    """Path by file name."""
    sha256: Mapping[str, str]
    """Hash by file name, for the record of a run."""

    @property
    def path(self) -> Path:
        """The file, where there is one alone."""
        (only,) = self.paths.values()
        return only


@functools.cache
def sources() -> Mapping[str, Source]:
    """All sources by id."""
    file = importlib.resources.files("aperto.vet") / "data" / "sources.toml"
    content = tomllib.loads(file.read_text(encoding="utf-8"))
    return {key: _source(key, table) for key, table in content.items()}


def source(source_id: str) -> Source:
    """The source of this id.

    Raises UsageError that lists what there is.
    """
    known = sources()
    if source_id not in known:
        raise UsageError(f"no source {source_id!r}; there are {', '.join(sorted(known))}")
    return known[source_id]


def locate(wanted: str | Source, data_dir: Path | None = None) -> Data:
    """Find the files of a source on this machine, without reaching out.

    Raises:
        DataUnavailableError: a file is nowhere; says where to put it.
        EvidenceError: a file is not the one that is pinned.
    """
    one = source(wanted) if isinstance(wanted, str) else wanted
    if data_dir is not None and one.archive and (data_dir / one.archive).is_file():
        _unpack(data_dir / one.archive, one)
    places: list[Callable[[SourceFile], Path | None]] = []
    if data_dir is not None:
        places.append(lambda file: data_dir / one.id / file.name)
    if one.hazard == "none":
        places += [lambda file: cache_folder(one) / file.name, lambda file: _installed(one, file)]
    found = {file.name: _first(file, places) for file in one.files}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise DataUnavailableError(_missing(one, missing))
    paths = {name: path for name, path in found.items() if path is not None}
    return Data(one, paths, {file.name: _checked(paths[file.name], file) for file in one.files})


def fetch(wanted: str | Source, *, download: Callable[[Source, Path], None] | None = None) -> Data:
    """Find the files of a source, and get them from their publisher where they are missing.

    Args:
        wanted: a source or its id.
        download: puts the files (for a package its wheel) into a folder; by default pip, for
            packages, and a plain request for addresses and hubs.

    Raises:
        UsageError: the source is sensitive, or of files that only the user can bring.
        DownloadError: it cannot be had.
        EvidenceError: what came is not what is pinned.
    """
    one = source(wanted) if isinstance(wanted, str) else wanted
    try:
        return locate(one)
    except DataUnavailableError:
        if one.hazard != "none" or one.kind == "file":
            raise
    with tempfile.TemporaryDirectory(prefix="aperto-data-") as folder:
        (download or _DOWNLOADS[one.kind])(one, Path(folder))
        if one.archive:
            _unpack(Path(folder) / one.archive, one)
        else:
            for file in one.files:
                _keep((Path(folder) / file.name).read_bytes(), file, one)
    return locate(one)


def cache_folder(one: Source) -> Path:
    """Where fetched files of a source are kept."""
    stamp = hashlib.sha256(f"{one.origin} {one.pin} {one.sha256}".encode()).hexdigest()[:12]
    return default_cache_dir() / "data" / f"{one.id}-{stamp}"


def _source(key: str, table: dict[str, Any]) -> Source:
    kind = table["kind"]
    if kind not in get_args(Kind) or table.get("hazard", "none") not in get_args(Hazard):
        raise ValueError(f"sources.toml, {key}: unknown kind or hazard")
    return Source(
        id=key,
        title=table["title"],
        kind=kind,
        pin=table["pin"],
        licence=table["licence"],
        files=tuple(
            SourceFile(name, one.get("member"), one.get("sha256"))
            for name, one in table["files"].items()
        ),
        hazard=table.get("hazard", "none"),
        origin=table.get("package") or table.get("repo") or table.get("url") or "",
        archive=table.get("archive"),
        sha256=table.get("sha256"),
    )


def _first(file: SourceFile, places: list[Callable[[SourceFile], Path | None]]) -> Path | None:
    for place in places:
        path = place(file)
        if path is not None and path.is_file():
            return path
    return None


def _installed(one: Source, file: SourceFile) -> Path | None:
    """The file of an installed package of exactly the pinned version."""
    if one.kind != "pypi" or file.member is None:
        return None
    try:
        package = importlib.metadata.distribution(one.origin)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(package.locate_file(file.member))) if package.version == one.pin else None


def _missing(one: Source, names: list[str]) -> str:
    text = f"not run: data unavailable: {one.title} ({one.pin}) lacks {', '.join(names)}; "
    text += f"expected {one.layout}"
    if one.hazard == "none" and one.kind != "file":
        text += "; or fetch it with: aperto eval --fetch"
    return text


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _checked(path: Path, file: SourceFile) -> str:
    return _verified(path.read_bytes(), file.sha256, str(path))


def _verified(data: bytes, expected: str | None, name: str) -> str:
    found = _digest(data)
    if expected is not None and found != expected:
        raise EvidenceError(
            f"{name} has SHA-256 {found}, expected {expected}; it is another version than the "
            "pinned one, or damaged. Remove it and bring the pinned one"
        )
    return found


def _unpack(archive: Path, one: Source) -> None:
    """Take the files of a source, and nothing else, out of its wheel into the cache."""
    _verified(archive.read_bytes(), one.sha256, archive.name)
    with zipfile.ZipFile(archive) as wheel:
        for file in one.files:
            assert file.member is not None
            _keep(wheel.read(file.member), file, one)


def _keep(data: bytes, file: SourceFile, one: Source) -> None:
    """Write one file to the cache, whole or not at all."""
    _verified(data, file.sha256, file.name)
    folder = cache_folder(one)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as part:
        part.write(data)
        part.flush()
        os.fsync(part.fileno())
    Path(part.name).replace(folder / file.name)


def _from_index(one: Source, folder: Path) -> None:
    """A wheel from the index that pip is set up for; nothing is installed or run."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
    ]
    wanted = f"{one.origin}=={one.pin}"
    try:
        done = subprocess.run(
            [*pip, "--dest", str(folder), wanted],
            capture_output=True,
            text=True,
            timeout=_FETCH_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DownloadError(f"pip did not bring {wanted} in {_FETCH_S:g} s; try again") from error
    if done.returncode or not (folder / str(one.archive)).is_file():
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise DownloadError(f"pip did not bring {wanted}: {said}; or use {one.layout}")


def _from_address(one: Source, folder: Path) -> None:
    import httpx

    base = one.origin
    if one.kind == "hf":
        base = f"https://huggingface.co/datasets/{one.origin}/resolve/{one.pin}/"
    for file in one.files:
        try:
            answer = httpx.get(f"{base}{file.member}", follow_redirects=True, timeout=60.0)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise DownloadError(
                f"{base}{file.member} did not come: {error}; or use {one.layout}"
            ) from error
        (folder / file.name).write_bytes(answer.content)


_DOWNLOADS: Mapping[str, Callable[[Source, Path], None]] = {
    "pypi": _from_index,
    "url": _from_address,
    "hf": _from_address,
}
