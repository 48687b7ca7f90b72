"""The tool `apply_patch`: edits files below one folder, all of a patch or nothing of it."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from aperto.errors import ConfigError
from aperto.harmony.messages import FunctionTool, Message, ToolNamespace
from aperto.tools.patch import (
    AddFile,
    DeleteFile,
    Operation,
    UpdateFile,
    apply_hunks,
    parse_patch,
)
from aperto.tools.tool import ToolFailureError, answer, arguments_of

MAX_FILE_BYTES = 16 << 20
"""Larger files are not edited."""
_DESCRIPTION = """Edits files. The patch has this form:
*** Begin Patch
*** Add File: new.txt
+each line of a new file begins with +
*** Update File: src/app.py
*** Move to: src/main.py
@@ def greet():
 a line that stays begins with a space
-a line that goes
+a line that comes
*** Delete File: old.txt
*** End Patch
Paths are relative. Give three lines of context around a change, and after @@ the line of the
function or class it is in where the context alone is not unique."""
_FUNCTION = FunctionTool(
    "apply_patch",
    _DESCRIPTION,
    {
        "type": "object",
        "properties": {"patch": {"type": "string", "description": "The whole patch."}},
        "required": ["patch"],
    },
)


class ApplyPatchTool:
    """Applies patches below a folder; links that lead out of it are not followed.

    Args:
        root: the folder; every path of a patch is relative to it.

    Raises:
        ConfigError: the folder does not exist.
    """

    name = "apply_patch"
    """Its name in specifications and its function."""
    namespace: ToolNamespace | None = None
    """None: it is announced as a function."""
    functions: tuple[FunctionTool, ...] = (_FUNCTION,)
    """What the developer message announces."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise ConfigError(f"{root} is no folder; expected the one that apply_patch may edit")
        self._root = root.resolve()
        self._lock = threading.Lock()

    def accepts(self, recipient: str) -> bool:
        """Calls of ``functions.apply_patch`` and ``apply_patch``."""
        return recipient.removeprefix("functions.") == self.name

    def run(self, call: Message) -> tuple[Message, ...]:
        """Apply the patch of a call: plain, or as JSON ``{"patch": …}``."""
        with self._lock:
            try:
                text = self._apply(parse_patch(_patch_of(call)))
            except ToolFailureError as error:
                text = f"Error: {error}\nNothing was changed."
            except OSError as error:
                text = f"Error: {error.strerror}: {error.filename}\nNothing was changed."
        return answer(call, text)

    def close(self) -> None:
        """Nothing is held."""

    def _apply(self, operations: list[Operation]) -> str:
        plan = _Plan(self._root)
        lines = [plan.add(operation) for operation in operations]
        plan.carry_out()
        return "\n".join(["Done.", *lines])


class _Plan:
    """What the files shall be, worked out before any of them is touched."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._wanted: dict[Path, bytes | None] = {}
        self._modes: dict[Path, int] = {}

    def add(self, operation: Operation) -> str:
        """Work out one operation; a line that says what it does."""
        path = self._inside(operation.path)
        if isinstance(operation, AddFile):
            self._need_free(path, operation.path)
            text = "".join(f"{line}\n" for line in operation.lines)
            self._wanted[path] = text.encode()
            return f"A {operation.path}"
        if isinstance(operation, DeleteFile):
            self._read(path, operation.path)
            self._wanted[path] = None
            return f"D {operation.path}"
        return self._update(path, operation)

    def _update(self, path: Path, operation: UpdateFile) -> str:
        try:
            text = self._read(path, operation.path).decode()
        except UnicodeDecodeError:
            raise ToolFailureError(f"{operation.path} is not text") from None
        changed = apply_hunks(operation.path, text, operation.hunks).encode()
        if operation.move_to is None:
            self._wanted[path] = changed
            return f"M {operation.path}"
        target = self._inside(operation.move_to)
        if target != path:
            self._need_free(target, operation.move_to)
            self._wanted[path] = None
            if path.exists():
                self._modes[target] = path.stat().st_mode & 0o777
        self._wanted[target] = changed
        return f"M {operation.path} -> {operation.move_to}"

    def _inside(self, name: str) -> Path:
        """The path of a file, which must lie below the root when links are followed."""
        if Path(name).is_absolute() or "\0" in name:
            raise ToolFailureError(f"{name!r} is not a relative path")
        path = self._root / name
        try:
            resolved = path.parent.resolve() / path.name
        except (OSError, RuntimeError) as error:
            raise ToolFailureError(f"{name}: {error}") from None
        if path.name in ("", "..") or not resolved.is_relative_to(self._root):
            raise ToolFailureError(f"{name} is outside of the folder that may be edited")
        if resolved.is_symlink():
            raise ToolFailureError(f"{name} is a link; name the file it leads to")
        return resolved

    def _need_free(self, path: Path, name: str) -> None:
        planned = self._wanted.get(path, b"" if path.exists() else None)
        if planned is not None:
            raise ToolFailureError(f"{name} exists already; update it instead")

    def _read(self, path: Path, name: str) -> bytes:
        if path in self._wanted:
            data = self._wanted[path]
            if data is None:
                raise ToolFailureError(f"{name} is deleted by this same patch")
            return data
        if not path.is_file():
            raise ToolFailureError(f"there is no file {name}")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ToolFailureError(f"{name} is larger than {MAX_FILE_BYTES} bytes")
        return path.read_bytes()

    def carry_out(self) -> None:
        """Write, move and delete; after an error on the way everything is as it was."""
        before = {path: path.read_bytes() if path.exists() else None for path in self._wanted}
        made: list[Path] = []
        done: dict[Path, bytes | None] = {}
        try:
            for path, data in self._wanted.items():
                made += _make_folders(path.parent)
                _replace(path, data, self._modes.get(path))
                done[path] = before[path]
        except OSError:
            _undo(done, made)
            raise


def _undo(done: Mapping[Path, bytes | None], made: list[Path]) -> None:
    for path, data in done.items():
        _replace(path, data, None)
    for folder in reversed(made):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; the new ones, outermost first."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _replace(path: Path, data: bytes | None, mode: int | None) -> None:
    """Give a file its content in one step, or take it away."""
    if data is None:
        path.unlink(missing_ok=True)
        return
    if mode is None:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".aperto-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    """Permissions new files do not get."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022


def _patch_of(call: Message) -> str:
    text = call.text.strip()
    if not text.startswith("{"):
        return text
    arguments = arguments_of(call)
    patch = arguments.get("patch", arguments.get("input"))
    if not isinstance(patch, str):
        raise ToolFailureError(f"patch is {patch!r}; expected the patch as text")
    return patch
