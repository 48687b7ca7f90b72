"""Models by name: pull them from a hub, find them again, list what there is.

Downloads lie in the cache that huggingface_hub shares with other programs. That library reads its
own environment variables (endpoint, cache folder, token).
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from aperto.errors import ApertoError, DownloadError, FormatError, ModelNotFoundError, UsageError
from aperto.formats.checkpoint import LAYOUTS, Layout
from aperto.formats.disk import require_free
from aperto.formats.jsonfile import read_object

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

NANO = "nano"
_REPO_ID = re.compile(r"^[\w.-]{1,96}/[\w.-]{1,96}\Z", re.ASCII)
_REVISION = re.compile(r"^\w[\w-]*(\.[\w-]+)*$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_SHOWN_CHARS = 80
_SPLIT_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")

Progress = Callable[[int, int], None]
"""Called with (bytes there, bytes in all)."""


@dataclasses.dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model on this machine."""

    name: str
    """What `resolve_model` accepts."""
    path: Path
    """Folder or file."""
    nbytes: int
    """Bytes of its files."""


@dataclasses.dataclass(frozen=True, slots=True)
class _RemoteFile:
    name: str
    size: int


# --- finding ------------------------------------------------------------------------------------


def resolve_model(name: str | Path) -> Path:
    """Return the folder or file of a model: "nano", a path, or a pulled "org/name".

    Raises ModelNotFoundError, which lists what there is and says what to do.
    """
    text = str(name)
    if text == NANO and nano_path().is_dir():
        return nano_path()
    if (path := _existing(text)) is not None:
        return path
    if _REPO_ID.match(text) and (snapshot := _snapshot(_cache_folder(), text)):
        problem = _incomplete(snapshot)
        if not problem:
            return snapshot
        raise ModelNotFoundError(
            f"{text} was pulled, but {problem}; expected all of it; run: aperto pull {text}"
        )
    known = ", ".join(entry.name for entry in list_models()) or "none"
    pull_line = f"; to download it, run: aperto pull {text}" if _REPO_ID.match(text) else ""
    shown = text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
    raise ModelNotFoundError(
        f"no model {shown!r}; expected a path, a pulled org/name, or one of: {known}{pull_line}"
    )


def _existing(text: str) -> Path | None:
    """The file or folder of this name; None also for names that no file can have."""
    try:
        path = Path(text).expanduser()
        return path if text and path.exists() else None
    # Too long or not allowed to look; a NUL character; the home folder of nobody.
    except (OSError, ValueError, RuntimeError):
        return None


def list_models() -> list[ModelEntry]:
    """List the embedded model and every pulled gpt-oss model."""
    entries = [ModelEntry(NANO, nano_path(), _size(nano_path()))] if nano_path().is_dir() else []
    cache = _cache_folder()
    for folder in sorted(cache.glob("models--*--*")) if cache.is_dir() else []:
        name = folder.name.removeprefix("models--").replace("--", "/", 1)
        snapshot = _snapshot(cache, name)
        if snapshot and _is_gpt_oss(snapshot) and not _incomplete(snapshot):
            entries.append(ModelEntry(name, snapshot, _size(snapshot)))
    return entries


def nano_path() -> Path:
    """Folder of the embedded model; it may be missing in a source tree."""
    return Path(str(importlib.resources.files("aperto").joinpath(NANO)))


def _cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _snapshot(cache: Path, repo_id: str) -> Path | None:
    """Return the folder that `main` points to, if it was pulled."""
    folder = cache / f"models--{repo_id.replace('/', '--')}"
    reference = folder / "refs" / "main"
    if not reference.is_file():
        return None
    snapshot = folder / "snapshots" / reference.read_text(encoding="utf-8").strip()
    return snapshot if snapshot.is_dir() else None


def _incomplete(snapshot: Path) -> str:
    """Say what is missing of a pulled model; empty if nothing is."""
    index = snapshot / "model.safetensors.index.json"
    if index.is_file():
        weight_map = _read_or_empty(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            return "its index is damaged"
        shards = sorted({str(file) for file in weight_map.values()})
        missing = [shard for shard in shards if not (snapshot / shard).is_file()]
        return f"{len(missing)} of {len(shards)} shards are missing" if missing else ""
    if any(snapshot.glob("*.safetensors")) or any(snapshot.glob("*.gguf")):
        return ""
    return "" if any(snapshot.glob("original/*.safetensors")) else "its weights are missing"


def _is_gpt_oss(snapshot: Path) -> bool:
    config = snapshot / "config.json"
    if config.is_file():
        return str(_read_or_empty(config).get("model_type", "")).startswith("gpt_oss")
    return (snapshot / "original" / "config.json").is_file() or any(snapshot.glob("*gpt-oss*.gguf"))


def _read_or_empty(path: Path) -> dict[str, Any]:
    """Read a JSON object; a damaged file of one model must not hide the others from a list."""
    try:
        return read_object(path)
    except FormatError:
        return {}


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# --- pulling ------------------------------------------------------------------------------------


def pull(
    repo_id: str,
    layout: Layout = "hf",
    *,
    file: str | None = None,
    revision: str = "main",
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download one layout of a model and return the folder or .gguf file to open.

    Only what the layout needs is fetched: root weights and JSON, or `original/`, or one GGUF file,
    chosen by a part of its name in `file` where there are several. An interrupted download goes on
    where it stopped, in this process or a later one; files that are there are kept.
    Raises UsageError for a bad name or choice, DiskSpaceError before anything is fetched, and
    DownloadError if the hub fails or a file does not have the announced size.
    """
    if not _REPO_ID.match(repo_id):
        raise UsageError(
            f"{repo_id!r} is no model name; expected org/name, e.g. openai/gpt-oss-20b"
        )
    if not _REVISION.match(revision):
        raise UsageError(f"{revision!r} is no revision; expected a branch, tag or commit")
    if layout not in LAYOUTS:
        raise UsageError(f"layout is {layout!r}; expected one of {', '.join(LAYOUTS)}")
    cache = cache_dir or _cache_folder()
    info = _model_info(repo_id, revision)
    wanted = _select(repo_id, info, layout, file)
    if not info.sha or not _COMMIT.match(info.sha):
        raise DownloadError(
            f"{repo_id}: the hub names the commit {info.sha!r}; expected 40 hex digits"
        )
    missing = sum(item.size - _present(cache, repo_id, info.sha, item) for item in wanted)
    require_free(cache, missing, f"pulling {repo_id}")
    report = _Report(sum(item.size for item in wanted), progress)
    for item in wanted:
        _fetch(cache, repo_id, info.sha, item, report)
    _point(cache, repo_id, revision, info.sha)
    snapshot = _repo_folder(cache, repo_id) / "snapshots" / info.sha
    if layout == "gguf":
        return snapshot / wanted[0].name
    return snapshot / "original" if layout == "openai" else snapshot


def _model_info(repo_id: str, revision: str) -> ModelInfo:
    from huggingface_hub import HfApi

    with _as_download_error(f"asking for the files of {repo_id}"):
        return HfApi().model_info(repo_id, revision=revision, files_metadata=True)


def _select(repo_id: str, info: ModelInfo, layout: Layout, choice: str | None) -> list[_RemoteFile]:
    """Pick the files of a layout, in a steady order."""
    files = [_RemoteFile(item.rfilename, item.size or 0) for item in info.siblings or []]
    files.sort(key=lambda item: item.name)
    outside = [item.name for item in files if ".." in Path(item.name).parts or item.name[:1] == "/"]
    if outside:
        raise DownloadError(
            f"{repo_id}: the hub names the file {outside[0]!r}; expected relative names"
        )
    if layout == "gguf":
        return _select_gguf(repo_id, files, choice)
    prefix = "original/" if layout == "openai" else ""
    chosen = [
        item
        for item in files
        if item.name.startswith(prefix)
        and "/" not in item.name.removeprefix(prefix)
        and item.name.endswith((".safetensors", ".json", ".jinja"))
    ]
    names = {item.name for item in chosen}
    if f"{prefix}config.json" not in names or not any(n.endswith(".safetensors") for n in names):
        raise UsageError(
            f"{repo_id} has no {layout} layout ({len(files)} files, such as "
            f"{[item.name for item in files[:5]]}); expected {prefix}config.json and safetensors; "
            f"try another layout: {', '.join(LAYOUTS)}"
        )
    return chosen


def _select_gguf(repo_id: str, files: list[_RemoteFile], choice: str | None) -> list[_RemoteFile]:
    models = [f for f in files if f.name.endswith(".gguf") and (choice or "") in f.name]
    groups = sorted({_SPLIT_PART.sub("", item.name) for item in models})
    if len(groups) != 1:
        names = ", ".join(groups) or "none"
        raise UsageError(
            f"{repo_id}: {len(groups)} GGUF files match {choice or 'any name'!r}: {names}; "
            "expected one; name a part of the wanted file's name"
        )
    return models


class _Report:
    """Adds up the bytes that are there and passes them on."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total = total
        self.done = 0
        self.progress = progress

    def add(self, count: int) -> None:
        self.done += count
        if self.progress:
            self.progress(self.done, self.total)


class _CountedFile:
    """A file that reports what is written to it, as far as the hub's downloader uses one."""

    def __init__(self, file: IO[bytes], report: _Report) -> None:
        self.file = file
        self.report = report

    def write(self, data: bytes) -> int:
        self.report.add(len(data))
        return self.file.write(data)

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, position: int) -> int:
        return self.file.seek(position)

    def truncate(self) -> int:
        end = self.file.seek(0, 2)
        position = self.file.truncate(0)
        self.report.add(-end)
        return position


def _fetch(cache: Path, repo_id: str, commit: str, item: _RemoteFile, report: _Report) -> None:
    """Download one file into the cache, going on with a partial one, and check its size.

    The cache's layout is public: `blobs/` by entity tag, `snapshots/<commit>/` linking to them.
    """
    link = _repo_folder(cache, repo_id) / "snapshots" / commit / item.name
    if link.is_file() and link.stat().st_size == item.size:
        report.add(item.size)
        return
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo_id, item.name, revision=commit)
    with _as_download_error(f"downloading {item.name}"):
        etag = get_hf_file_metadata(url).etag
    if not etag or not re.fullmatch(r"[\w.-]+", etag):
        raise DownloadError(
            f"{item.name}: the hub gave the entity tag {etag!r}; expected a plain name"
        )
    blob = _repo_folder(cache, repo_id) / "blobs" / etag
    blob.parent.mkdir(parents=True, exist_ok=True)
    if not (blob.is_file() and blob.stat().st_size == item.size):
        partial = _partial(cache, repo_id, commit, item)
        partial.parent.mkdir(parents=True, exist_ok=True)
        _download(url, partial, item, report)
        partial.replace(blob)
    else:
        report.add(item.size)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(Path(*[".."] * (item.name.count("/") + 2)) / "blobs" / etag)


def _download(url: str, partial: Path, item: _RemoteFile, report: _Report) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    start = partial.stat().st_size if partial.is_file() else 0
    if start > item.size:
        partial.unlink()
        start = 0
    report.add(start)
    if start < item.size or not partial.is_file():
        with (
            _as_download_error(f"downloading {item.name}"),
            _without_bars(),
            partial.open("ab") as file,
        ):
            target: Any = _CountedFile(file, report)
            http_get(
                url,
                target,
                resume_size=start,
                headers=build_hf_headers(),
                expected_size=item.size,
            )
    size = partial.stat().st_size
    if size != item.size:
        partial.unlink()
        raise DownloadError(
            f"{item.name}: got {size} bytes; the hub announced {item.size}; try again later"
        )


def _present(cache: Path, repo_id: str, commit: str, item: _RemoteFile) -> int:
    """Bytes of a file that need not be fetched again."""
    link = _repo_folder(cache, repo_id) / "snapshots" / commit / item.name
    if link.is_file() and link.stat().st_size == item.size:
        return item.size
    partial = _partial(cache, repo_id, commit, item)
    return min(partial.stat().st_size, item.size) if partial.is_file() else 0


def _partial(cache: Path, repo_id: str, commit: str, item: _RemoteFile) -> Path:
    name = f"{commit}.{item.name.replace('/', '--')}.partial"
    return _repo_folder(cache, repo_id) / "aperto-partial" / name


def _repo_folder(cache: Path, repo_id: str) -> Path:
    return cache / f"models--{repo_id.replace('/', '--')}"


def _point(cache: Path, repo_id: str, revision: str, commit: str) -> None:
    """Record which commit a branch stood at."""
    reference = _repo_folder(cache, repo_id) / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit, encoding="utf-8")


@contextmanager
def _as_download_error(what: str) -> Iterator[None]:
    """Turn whatever the hub's client raises (HTTP, transport, system) into a DownloadError."""
    try:
        yield
    except ApertoError:
        raise
    except Exception as problem:
        raise DownloadError(
            f"{what} failed: {type(problem).__name__}: {problem!s:.300}; check the name and the "
            "network, then run the same command again: it goes on where it stopped"
        ) from problem


@contextmanager
def _without_bars() -> Iterator[None]:
    """Silence the client's own progress bars; ours reports."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()
