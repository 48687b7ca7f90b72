"""The state of a training run on disk: written whole or not at all, and read back to the bit."""

from __future__ import annotations

import errno
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aperto.errors import DiskSpaceError, FormatError, UsageError
from aperto.formats.disk import replace_file, require_free, sync_file

SETTINGS = "run.json"
STATE = "state.pt"
LOG = "log.jsonl"


class RunFolder:
    """A folder with what a run was asked for, how far it is, and what was logged.

    Args:
        path: the folder; `begin` makes it where there is none.
        settings: everything the result depends on, as JSON values. A folder that was begun with
            other settings is refused, so that a resumed run is the run that was begun.

    Raises:
        UsageError: the folder holds another run, or other files.
        FormatError: the folder's settings cannot be read.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._wanted = wanted = json.loads(json.dumps(settings))
        file = path / SETTINGS
        if not file.exists():
            if path.exists() and any(path.iterdir()):
                raise UsageError(
                    f"{path} is not empty and holds no run; expected a new folder, or one that "
                    "training left; choose another --out"
                )
            return
        found = _settings(file)
        changed = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        if changed:
            differences = "; ".join(
                f"{key} was {json.dumps(found.get(key))}, asked for is "
                f"{json.dumps(wanted.get(key))}"
                for key in changed
            )
            raise UsageError(
                f"{path} holds another run: {differences}; give the same options to resume it, "
                "or another --out"
            )

    def begin(self) -> None:
        """Make the folder and note the settings, unless that was done before."""
        file = self.path / SETTINGS
        if not file.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self._wanted, indent=2, sort_keys=True) + "\n"
            replace_file(file, text.encode())

    def load(self) -> dict[str, Any] | None:
        """The last state that was saved, if there is one. Raises FormatError on a damaged file."""
        file = self.path / STATE
        if not file.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
        except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as problem:
            raise FormatError(
                f"{file}: cannot be read ({problem}); expected a state that training saved; "
                "remove the file to begin again"
            ) from problem
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Put a state in place of the last one; a crash in between leaves the last one.

        Raises:
            DiskSpaceError: the disk is full; the last state is untouched.
        """
        file, fresh = self.path / STATE, self.path / f".{STATE}.new"
        size = sum(t.nbytes for t in _tensors(state))
        try:
            require_free(self.path, size, "the state of the run")
            torch.save(dict(state), fresh)
            sync_file(fresh)
            fresh.replace(file)
            sync_file(self.path)
        except (OSError, RuntimeError) as problem:
            fresh.unlink(missing_ok=True)
            if isinstance(problem, OSError) and problem.errno != errno.ENOSPC:
                raise
            raise DiskSpaceError(
                f"{file}: the state could not be written ({problem}); what was saved before is "
                "untouched; free some space and give the same command again to resume"
            ) from problem

    def append_log(self, entry: Mapping[str, Any]) -> None:
        """Add one line to the log."""
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def cut_log(self, steps: int) -> None:
        """Leave out the log's lines of steps after the first `steps`; they are taken again."""
        file = self.path / LOG
        if file.exists():
            lines = file.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= steps]
            replace_file(file, "".join(f"{line}\n" for line in kept).encode())

    def log(self) -> list[dict[str, Any]]:
        """Every line of the log."""
        file = self.path / LOG
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _settings(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise FormatError(f"{file}: not JSON ({problem}); choose another --out") from problem
    return found


def _step_of(line: str) -> float:
    """The step of a line; a line that was cut off by a crash is after every step."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return float("inf")


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for item in value for t in _tensors(item)] if isinstance(value, list) else []
