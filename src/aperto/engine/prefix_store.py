"""Keys and values of prefixes as files, so that a restart need not compute them again.

A prefix that ends after `end` pages lies in pieces, each named by the hash of all tokens before its
end: one `.block` for each BLOCK_PAGES pages of the groups that see the whole context, which longer
prefixes share, and one `.end` with the pages after the last block and the pages that windows need
to go on. Pieces are written beside their name and renamed, never changed, and checked when read:
any number of processes may use a folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import struct
import time
from collections.abc import Sequence as Seq
from pathlib import Path

from aperto.errors import UsageError

_log = logging.getLogger(__name__)

BLOCK_PAGES = 32
"""Pages of one block: 1024 tokens, 24 MiB of the 20b model."""
FORMAT_VERSION = 1
"""Part of every key: other layouts of pages or files are never found."""

_MAGIC = b"APERTOKV"
_HEADER = struct.Struct("<8s16s32sQ")  # magic, checksum, hash of the prefix, bytes of pages
_SUFFIXES = (".block", ".end")
_ABOUT = "about.json"
_LEAST_FREE_BYTES = 1 << 30
_PAUSE_S = 60.0
_STALE_S = 3600.0
_SETTLED_S = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class PrefixOwner:
    """What keys and values depend on beside the tokens."""

    source: str
    """The checkpoint, for people to read."""
    precision: str
    """q8 or exact."""
    fingerprint: str
    """Identity of the checkpoint's files and of the code that computes."""


@dataclasses.dataclass(frozen=True, slots=True)
class PageLayout:
    """How a model's pages are cut."""

    windows: tuple[int, ...]
    """Window of each group in tokens, 0 for the whole context."""
    page_tokens: int
    """Tokens of a page."""
    page_bytes: tuple[int, ...]
    """Bytes of a page of each group."""

    def first_needed(self, group: int, end: int) -> int:
        """First page that a text which goes on after `end` pages still reads."""
        window = self.windows[group]
        return 0 if window == 0 else max(0, end * self.page_tokens - window + 1) // self.page_tokens


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """One file of a prefix."""

    name: str
    """File name."""
    key: bytes
    """Hash of all tokens before its end."""
    slots: tuple[tuple[int, int], ...]
    """(group, logical page) of the pages in it, in order."""
    nbytes: int
    """Bytes of these pages."""


@dataclasses.dataclass(frozen=True, slots=True)
class PromptEntry:
    """The saved prefixes of one model."""

    path: Path
    """Their folder."""
    source: str
    """The checkpoint they were computed with."""
    precision: str
    """q8 or exact."""
    nbytes: int
    """Size on disk."""


class PrefixStore:
    """The saved prefixes of one model in a folder that others share.

    Lookups are quick and made by one thread; `read`, `write` and `touch` go to the disk and may be
    called from another one. Nothing here raises for want of disk space or for damaged files: the
    former is logged and nothing saved for a minute, the latter are logged and removed.
    """

    def __init__(
        self, folder: Path, limit_bytes: int, owner: PrefixOwner, layout: PageLayout
    ) -> None:
        """Open or make the folder. Raises OSError where that cannot be."""
        self.layout = layout
        self.limit_bytes = limit_bytes
        self._root = folder
        self._owner = owner
        about = [FORMAT_VERSION, BLOCK_PAGES, dataclasses.astuple(owner)[1:]]
        identity = json.dumps([*about, dataclasses.astuple(layout)])
        self._seed = hashlib.blake2b(identity.encode(), digest_size=32).digest()
        self.folder = folder / self._seed.hex()[:16]
        self._names: set[str] = set()
        self._seen_ns = -1
        self._paused_until = 0.0
        self._open_folder()

    # --- names ---------------------------------------------------------------------------------

    def keys(self, pages: Seq[bytes], variant: str = "") -> list[bytes]:
        """Hash of the text up to and with each page, given the bytes of the pages' tokens.

        variant: whatever else changes keys and values, such as an adapter.
        """
        key = hashlib.blake2b(self._seed + variant.encode(), digest_size=32).digest()
        keys = []
        for page in pages:
            key = hashlib.blake2b(key + page, digest_size=32).digest()
            keys.append(key)
        return keys

    def pieces(self, keys: Seq[bytes], end: int) -> list[Piece]:
        """The files of a prefix of `end` pages, blocks first."""
        groups = range(len(self.layout.windows))
        full = [group for group in groups if self.layout.windows[group] == 0]
        num_blocks = end // BLOCK_PAGES if full else 0
        pieces = []
        for start in range(0, num_blocks * BLOCK_PAGES, BLOCK_PAGES):
            stop = start + BLOCK_PAGES
            block = [(group, idx) for group in full for idx in range(start, stop)]
            pieces.append(self._piece(keys[stop - 1], ".block", block))
        rest = [
            (group, idx)
            for group in groups
            for idx in range(
                num_blocks * BLOCK_PAGES if group in full else self.layout.first_needed(group, end),
                end,
            )
        ]
        return [*pieces, self._piece(keys[end - 1], ".end", rest)]

    def _piece(self, key: bytes, suffix: str, slots: list[tuple[int, int]]) -> Piece:
        nbytes = sum(self.layout.page_bytes[group] for group, _ in slots)
        return Piece(key.hex() + suffix, key, tuple(slots), nbytes)

    def has(self, piece: Piece) -> bool:
        """Whether a piece was there when last looked."""
        self._look()
        return piece.name in self._names

    def longest(self, keys: Seq[bytes], least: int) -> int:
        """Pages of the longest saved prefix with all its pieces, at least `least`; else 0."""
        self._look()
        for end in range(len(keys), max(least, 1) - 1, -1):
            if keys[end - 1].hex() + ".end" in self._names and all(
                piece.name in self._names for piece in self.pieces(keys, end)
            ):
                return end
        return 0

    def _look(self) -> None:
        """List the folder again where it has changed."""
        try:
            changed_ns = self.folder.stat().st_mtime_ns
            # Two changes within one tick of the clock look like one.
            is_settled = time.time_ns() - changed_ns > _SETTLED_S * 1e9
            if changed_ns != self._seen_ns or not is_settled:
                self._names = {entry.name for entry in os.scandir(self.folder)}
                self._seen_ns = changed_ns
        except OSError:  # removed by `aperto cache rm`
            self._names, self._seen_ns = set(), -1

    # --- files ---------------------------------------------------------------------------------

    def read(self, piece: Piece) -> memoryview | None:
        """The pages of a piece; None where it is gone, damaged (then it is removed) or unread."""
        path = self.folder / piece.name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("%s cannot be read (%s); its text is computed again", path, error)
            return None
        pages = memoryview(data)[_HEADER.size :]
        if len(pages) == piece.nbytes and data[: _HEADER.size] == _header(piece, pages):
            return pages
        _log.warning("%s is damaged; it is removed and its text computed again", path)
        self.remove(piece)
        return None

    def write(self, piece: Piece, pages: memoryview) -> bool:
        """Save a piece, removing what was not used for longest where the limit asks for it."""
        if time.monotonic() < self._paused_until:
            return False
        path = self.folder / piece.name
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            self._open_folder()
            self._make_room(_HEADER.size + len(pages))
            if shutil.disk_usage(self.folder).free < len(pages) + _LEAST_FREE_BYTES:
                raise OSError(None, "less than 1 GiB of the disk would stay free")
            with os.fdopen(
                os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb"
            ) as f:
                f.write(_header(piece, pages))
                f.write(pages)
            partial.rename(path)
        except OSError as error:
            _log.warning(
                "prompts cannot be saved in %s (%s); tried again in a minute",
                self.folder,
                error.strerror or error,
            )
            self._paused_until = time.monotonic() + _PAUSE_S
            _unlink(partial)
            return False
        return True

    def touch(self, pieces: Seq[Piece]) -> None:
        """Note that a prefix was used: its end is the first to go, its first block the last."""
        now = time.time_ns()
        for age, piece in enumerate(pieces):
            try:
                os.utime(self.folder / piece.name, ns=(now - age * 1000, now - age * 1000))
            except OSError:  # evicted meanwhile
                continue

    def remove(self, piece: Piece) -> None:
        """Delete a piece; nothing happens where it is gone."""
        _unlink(self.folder / piece.name)

    def _open_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = self.folder / _ABOUT
        if not about.exists():
            text = json.dumps({"source": self._owner.source, "precision": self._owner.precision})
            partial = about.with_name(f"{_ABOUT}.{os.getpid()}.partial")
            partial.write_text(text, encoding="utf-8")
            partial.rename(about)

    def _make_room(self, nbytes: int) -> None:
        """Delete what was not used for longest, of all models, until nbytes are below the limit."""
        files = sorted(_files(self._root))
        used = sum(size for _, size, _ in files)
        for _, size, path in files:
            if used + nbytes <= self.limit_bytes:
                return
            _unlink(path)
            used -= size


def list_prompts(folder: Path) -> list[PromptEntry]:
    """The models whose prefixes are saved in a folder, largest first."""
    entries = []
    for about in folder.glob(f"*/{_ABOUT}"):
        try:
            text = json.loads(about.read_text(encoding="utf-8"))
            source, precision = str(text["source"]), str(text["precision"])
        except (OSError, ValueError, KeyError, TypeError):
            source = precision = "unknown"
        nbytes = sum(_size(path) for path in about.parent.iterdir())
        entries.append(PromptEntry(about.parent, source, precision, nbytes))
    return sorted(entries, key=lambda entry: -entry.nbytes)


def remove_prompts(folder: Path, name: str) -> list[PromptEntry]:
    """Delete the saved prefixes of entries by folder name or checkpoint, or of "all".

    Raises UsageError when nothing matches.
    """
    entries = list_prompts(folder)
    chosen = [entry for entry in entries if name in ("all", entry.path.name, entry.source)]
    if not chosen and name != "all":
        known = ", ".join(entry.path.name for entry in entries) or "nothing"
        raise UsageError(f"there are no saved prompts {name!r} in {folder}; it holds: {known}")
    for entry in chosen:
        shutil.rmtree(entry.path)
    return chosen


def _header(piece: Piece, pages: memoryview) -> bytes:
    checksum = hashlib.blake2b(piece.key, digest_size=16)
    checksum.update(pages)
    return _HEADER.pack(_MAGIC, checksum.digest(), piece.key, len(pages))


def _files(root: Path) -> list[tuple[int, int, Path]]:
    """(time of last use, bytes, path) of all pieces; what crashed writers left is deleted."""
    files = []
    for about in root.glob(f"*/{_ABOUT}"):
        for path in about.parent.iterdir():
            try:
                status = path.stat()
            except OSError:  # another process was quicker
                continue
            if path.suffix in _SUFFIXES:
                files.append((status.st_mtime_ns, status.st_size, path))
            elif path.suffix == ".partial" and time.time() - status.st_mtime > _STALE_S:
                _unlink(path)
    return files


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # removed by another process
        return 0


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s cannot be removed: %s", path, error.strerror)
