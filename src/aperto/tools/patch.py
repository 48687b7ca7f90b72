"""The patch language of gpt-oss and Codex: parsing a patch and applying it to a file's lines.

*** Begin Patch
*** Add File: PATH          every following line begins with +
*** Delete File: PATH
*** Update File: PATH       followed by hunks
*** Move to: PATH           optionally, right after Update File
@@ [a line above the hunk]  begins a hunk; its lines begin with a space, - or +
*** End of File             the hunk's last line is the file's
*** End Patch
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Sequence

from aperto.tools.tool import ToolFailureError

_BEGIN, _END, _END_OF_FILE = "*** Begin Patch", "*** End Patch", "*** End of File"
_ADD, _DELETE, _UPDATE = "*** Add File: ", "*** Delete File: ", "*** Update File: "
_MOVE = "*** Move to: "
_SHOWN_LINES = 12
_TYPOGRAPHY = str.maketrans(
    dict.fromkeys("‐‑‒–—―−", "-")
    | dict.fromkeys("‘’‚‛", "'")
    | dict.fromkeys("“”„‟", '"')
    | dict.fromkeys("\u00a0\u2002\u2003\u2007\u2009\u202f\u3000", " ")
)


@dataclasses.dataclass(frozen=True, slots=True)
class Hunk:
    """One change inside a file."""

    anchors: tuple[str, ...]
    """Lines that stand above the change, outermost first; none where it speaks for itself."""
    lines: tuple[tuple[str, str], ...]
    """Mark and text: a space before a line that stays, - before one that goes, + a new one."""
    at_end: bool
    """Whether the last of them is the file's last line."""

    @property
    def old(self) -> tuple[str, ...]:
        """Lines as they are: those that stay and those that go."""
        return tuple(text for mark, text in self.lines if mark != "+")


@dataclasses.dataclass(frozen=True, slots=True)
class AddFile:
    """A file that is to be made."""

    path: str
    """Where."""
    lines: tuple[str, ...]
    """Its content."""


@dataclasses.dataclass(frozen=True, slots=True)
class DeleteFile:
    """A file that is to go."""

    path: str
    """Which."""


@dataclasses.dataclass(frozen=True, slots=True)
class UpdateFile:
    """A file that is to be changed, moved, or both."""

    path: str
    """Which."""
    move_to: str | None
    """Where to, if it moves."""
    hunks: tuple[Hunk, ...]
    """The changes, in the order of the file."""


Operation = AddFile | DeleteFile | UpdateFile


def parse_patch(text: str) -> list[Operation]:
    """The operations of a patch. Raises ToolFailureError with the line that is wrong."""
    lines = text.strip().splitlines()
    if lines and lines[0].strip().startswith("```"):
        lines = lines[1:-1]
    if not lines or lines[0].strip() != _BEGIN:
        raise ToolFailureError(f"the first line is {_first(lines)!r}; expected {_BEGIN!r}")
    if lines[-1].strip() != _END:
        raise ToolFailureError(f"the last line is {lines[-1]!r}; expected {_END!r}")
    operations = _Parser(lines[1:-1]).operations()
    if not operations:
        raise ToolFailureError("the patch changes no file")
    return operations


def _first(lines: Sequence[str]) -> str:
    return lines[0] if lines else ""


class _Parser:
    """Reads the lines between the patch's first and last."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = lines
        self._at = 0

    def operations(self) -> list[Operation]:
        found: list[Operation] = []
        while self._at < len(self._lines):
            line = self._lines[self._at]
            self._at += 1
            if line.startswith(_ADD):
                found.append(AddFile(_path(line, _ADD), self._added()))
            elif line.startswith(_DELETE):
                found.append(DeleteFile(_path(line, _DELETE)))
            elif line.startswith(_UPDATE):
                found.append(self._update(_path(line, _UPDATE)))
            elif line.strip():
                raise self._wrong(line, "a line such as '*** Update File: PATH'")
        return found

    def _wrong(self, line: str, expected: str) -> ToolFailureError:
        # The patch's first line counts as line 1.
        return ToolFailureError(
            f"line {self._at + 1} of the patch is {line!r}; expected {expected}"
        )

    def _body(self) -> str | None:
        """The next line of the current file's section, None at its end."""
        if self._at >= len(self._lines):
            return None
        line = self._lines[self._at]
        if line.startswith((_ADD, _DELETE, _UPDATE)):
            return None
        self._at += 1
        return line

    def _added(self) -> tuple[str, ...]:
        added = []
        while (line := self._body()) is not None:
            if not line.startswith("+"):
                raise self._wrong(line, "every line of a new file to begin with '+'")
            added.append(line[1:])
        return tuple(added)

    def _update(self, path: str) -> UpdateFile:
        move_to = None
        if self._at < len(self._lines) and self._lines[self._at].startswith(_MOVE):
            move_to = _path(self._lines[self._at], _MOVE)
            self._at += 1
        hunks: list[Hunk] = []
        while (line := self._body()) is not None:
            hunks.append(self._hunk(line))
        if not hunks and move_to is None:
            raise ToolFailureError(f"the update of {path} has no hunk; expected one that begins @@")
        return UpdateFile(path, move_to, tuple(hunks))

    def _hunk(self, line: str | None) -> Hunk:
        anchors: list[str] = []
        changes: list[tuple[str, str]] = []
        while line is not None and line.startswith("@@"):
            if anchor := line[2:].strip().removesuffix("@@").strip():
                anchors.append(anchor)
            line = self._body()
        at_end = False
        while line is not None and not at_end:
            at_end = line.startswith(_END_OF_FILE)
            if not at_end:
                changes.append(self._change(line))
            if at_end or self._begins_hunk():
                break
            line = self._body()
        if not changes:
            raise self._wrong(line or "", "lines of a hunk after @@")
        return Hunk(tuple(anchors), tuple(changes), at_end)

    def _change(self, line: str) -> tuple[str, str]:
        if line[:1] not in (" ", "+", "-", ""):
            raise self._wrong(line, "a line that begins with a space, '-' or '+'")
        return line[:1] or " ", line[1:]

    def _begins_hunk(self) -> bool:
        return self._at < len(self._lines) and self._lines[self._at].startswith("@@")


def _path(line: str, mark: str) -> str:
    path = line.removeprefix(mark).strip()
    if not path:
        raise ToolFailureError(f"{line!r} names no file")
    return path


def apply_hunks(path: str, text: str, hunks: Sequence[Hunk]) -> str:
    """The text with the hunks applied, one after the other, each below the one before.

    Line ends and a missing last line end stay as they are. Raises ToolFailureError where a hunk's
    lines are not found.
    """
    ending = "\r\n" if "\r\n" in text else "\n"
    lines = text.replace("\r\n", "\n").split("\n")
    has_last_end = lines[-1] == ""
    if has_last_end:
        lines.pop()
    done: list[str] = []
    for hunk in hunks:
        at, length = _place(path, lines, hunk)
        done += lines[:at]
        done += _kept_as_it_was(lines[at : at + length], hunk)
        lines = lines[at + length :]
    whole = done + lines
    return ending.join(whole) + (ending if has_last_end and whole else "")


def _place(path: str, lines: Sequence[str], hunk: Hunk) -> tuple[int, int]:
    """Where the hunk's old lines stand, and how many they are."""
    start = 0
    for anchor in hunk.anchors:
        found = _find(lines, (anchor,), start, at_end=False) if anchor else None
        if found is None:
            found = _find_part(lines, anchor, start)
        if found is None:
            raise ToolFailureError(f"{path}: there is no line {anchor!r} to find the hunk by")
        start = found + 1
    if not hunk.old:
        return (start if hunk.anchors else len(lines)), 0
    # An anchor may itself be the first of the hunk's lines.
    for begin in dict.fromkeys((start, max(0, start - 1))):
        found = _find(lines, hunk.old, begin, at_end=hunk.at_end)
        if found is not None:
            return found, len(hunk.old)
    shown = "\n".join(hunk.old[:_SHOWN_LINES])
    where = " at the end of the file" if hunk.at_end else ""
    raise ToolFailureError(
        f"{path}: these lines are not found{where}, at or below the last change:\n{shown}\n"
        "Read the file again and give the lines exactly as they are."
    )


def _find(lines: Sequence[str], wanted: Sequence[str], start: int, *, at_end: bool) -> int | None:
    """First place of some lines: exact, else alike but for blanks or typography."""
    last = len(lines) - len(wanted)
    places = range(max(start, last), last + 1) if at_end else range(start, last + 1)
    for alike in _LIKENESSES:
        target = [alike(line) for line in wanted]
        candidates = [alike(line) for line in lines]
        for place in places:
            if candidates[place : place + len(target)] == target:
                return place
    return None


def _find_part(lines: Sequence[str], anchor: str, start: int) -> int | None:
    """First line that contains an anchor, which may leave out its indent or its end."""
    return next((i for i in range(start, len(lines)) if anchor in lines[i]), None)


def _plain(line: str) -> str:
    return unicodedata.normalize("NFKC", line.translate(_TYPOGRAPHY)).strip()


def _same(line: str) -> str:
    return line


_LIKENESSES: tuple[Callable[[str], str], ...] = (_same, str.rstrip, str.strip, _plain)


def _kept_as_it_was(found: Sequence[str], hunk: Hunk) -> list[str]:
    """The new lines, where those that stay keep the exact text that the file has."""
    actual = iter(found)
    kept = []
    for mark, text in hunk.lines:
        if mark == "+":
            kept.append(text)
        elif mark == "-":
            next(actual)
        else:
            kept.append(next(actual))
    return kept
