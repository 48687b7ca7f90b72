"""Free disk space, asked before anything large is written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from aperto.errors import DiskSpaceError

RESERVE_BYTES = 64 << 20
"""Left free on purpose, for small files and the file system's own needs."""


def free_bytes(path: Path) -> int:
    """Free bytes on the disk that holds, or will hold, this path."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def require_free(path: Path, needed_bytes: int, what: str) -> None:
    """Raise DiskSpaceError unless `needed_bytes` and a small reserve are free at `path`."""
    free = free_bytes(path)
    if free < needed_bytes + RESERVE_BYTES:
        raise DiskSpaceError(
            f"{what} needs {needed_bytes / 1e9:.2f} GB at {path}; {free / 1e9:.2f} GB are free "
            f"(and {RESERVE_BYTES / 1e9:.2f} GB must stay free); free some space or "
            "choose another disk"
        )


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; what was there before is there until the new one is."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Wait until the file's content is on the disk, so that a rename never outruns it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
