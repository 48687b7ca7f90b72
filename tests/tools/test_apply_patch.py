"""Patches: what they do, what they refuse, and that a failing one changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aperto.harmony.messages import call
from aperto.tools import apply_patch
from aperto.tools.apply_patch import ApplyPatchTool
from aperto.tools.patch import apply_hunks, parse_patch

APP = """import os


class Greeter:
    def greet(self):
        print("Hi")
        return 1

    def part(self):
        print("Bye")
        return 1
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "app.py").write_text(APP)
    (folder / "old.txt").write_text("old\n")
    (tmp_path / "outside.txt").write_text("outside\n")
    (folder / "link").symlink_to(tmp_path)
    (folder / "file-link").symlink_to(tmp_path / "outside.txt")
    return folder


def patch(root: Path, *body: str, as_json: bool = True) -> str:
    text = "\n".join(["*** Begin Patch", *body, "*** End Patch"])
    content = json.dumps({"patch": text}) if as_json else text
    return ApplyPatchTool(root).run(call("functions.apply_patch", content))[0].text


def files(root: Path) -> dict[str, str]:
    """Every file below a folder's parent."""
    paths = [path for path in root.parent.rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(root.parent)): path.read_text() for path in paths}


@pytest.mark.parametrize("as_json", [True, False])
def test_all_operations_in_one_patch(root: Path, as_json: bool) -> None:
    (root / "src" / "app.py").chmod(0o755)
    said = patch(
        root,
        "*** Add File: docs/new.md",
        "+# New",
        "+",
        "*** Update File: src/app.py",
        "*** Move to: src/main.py",
        "@@ def part(self):",
        '-        print("Bye")',
        '+        print("Goodbye")',
        "         return 1",
        "*** Delete File: old.txt",
        as_json=as_json,
    )
    assert said == "Done.\nA docs/new.md\nM src/app.py -> src/main.py\nD old.txt"
    assert files(root) == {
        "outside.txt": "outside\n",
        "root/docs/new.md": "# New\n\n",
        "root/src/main.py": APP.replace("Bye", "Goodbye"),
    }
    assert (root / "src" / "main.py").stat().st_mode & 0o777 == 0o755


def test_anchors_lead_to_the_right_one_of_equal_places(root: Path) -> None:
    patch(
        root,
        "*** Update File: src/app.py",
        "@@ class Greeter:",
        "@@     def part(self):",
        "-        return 1",
        "+        return 2",
    )
    assert (root / "src/app.py").read_text() == APP[: APP.rindex("1")] + "2\n"


def test_end_of_file_and_several_hunks(root: Path) -> None:
    said = patch(
        root,
        "*** Update File: src/app.py",
        "@@",
        "-import os",
        "+import sys",
        "@@",
        "-        return 1",
        "+        return 3",
        "*** End of File",
    )
    assert said.startswith("Done.")
    text = (root / "src/app.py").read_text()
    assert text == APP.replace("import os", "import sys")[: -len("1\n")] + "3\n"


def test_blanks_and_typography_may_differ_and_the_file_keeps_its_own(root: Path) -> None:
    (root / "text.txt").write_text("  “quoted” – dash   \nsecond\n")
    patch(root, "*** Update File: text.txt", "@@", ' "quoted" - dash', "-second", "+third")
    assert (root / "text.txt").read_text() == "  “quoted” – dash   \nthird\n"


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_stay(root: Path, ending: str, last: bool) -> None:
    (root / "dos.txt").write_bytes((f"a{ending}b" + (ending if last else "")).encode())
    patch(root, "*** Update File: dos.txt", "@@", " a", "-b", "+c")
    assert (root / "dos.txt").read_bytes() == (f"a{ending}c" + (ending if last else "")).encode()


def test_lines_without_context_go_to_the_end(root: Path) -> None:
    patch(root, "*** Update File: old.txt", "@@", "+newer")
    assert (root / "old.txt").read_text() == "old\nnewer\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (["*** Update File: src/app.py", "@@", "-not there", "+x"], "not found"),
        (["*** Update File: src/app.py", "@@ class Missing:", "-x"], "no line 'class Missing:'"),
        (["*** Update File: none.py", "@@", "-x"], "no file none.py"),
        (["*** Update File: src", "@@", "-x"], "no file src"),
        (["*** Update File: src/app.py"], "no hunk"),
        (["*** Update File: src/app.py", "@@"], "lines of a hunk"),
        (["*** Update File: src/app.py", "@@", "xyz"], "begins with a space"),
        (["*** Add File: old.txt", "+x"], "exists already"),
        (["*** Add File: new.txt", "x"], "begin with '+'"),
        (["*** Delete File: none.txt"], "no file"),
        (["*** Delete File: old.txt", "*** Rename File: a"], "line 5 of the patch"),
        (["*** Delete File: "], "names no file"),
        ([], "changes no file"),
        (["*** Add File: ../escape.txt", "+x"], "outside"),
        (["*** Add File: /tmp/escape.txt", "+x"], "not a relative path"),
        (["*** Add File: link/escape.txt", "+x"], "outside"),
        (["*** Add File: src/../../escape.txt", "+x"], "outside"),
        (["*** Update File: file-link", "@@", "-outside", "+x"], "is a link"),
        (["*** Delete File: link/outside.txt"], "outside"),
        (["*** Update File: old.txt", "*** Move to: ../escape.txt"], "outside"),
        (["*** Update File: old.txt", "*** Move to: src/app.py"], "exists already"),
        (["*** Delete File: old.txt", "*** Update File: old.txt", "@@", "-old"], "same patch"),
        (["*** Add File: src/app.py/x", "+x"], "Error"),
    ],
)
def test_a_patch_that_fails_changes_nothing(root: Path, body: list[str], message: str) -> None:
    before = files(root)
    good = ["*** Add File: first.txt", "+first"]
    said = patch(root, *(good if body else []), *body)
    assert said.startswith("Error: ")
    assert said.endswith("Nothing was changed.")
    assert message in said
    assert files(root) == before


@pytest.mark.parametrize(
    "text", ["", "no patch", "*** Begin Patch\n*** Add File: a\n+x", '{"patch": 3}']
)
def test_what_is_no_patch_is_told(root: Path, text: str) -> None:
    said = ApplyPatchTool(root).run(call("apply_patch", text))[0]
    assert said.text.startswith("Error: ")
    assert said.name == "apply_patch"


def test_an_error_of_the_disk_is_undone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, replace = files(root), apply_patch._replace
    calls = []

    def failing(path: Path, data: bytes | None, mode: int | None) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device", str(path))
        replace(path, data, mode)

    monkeypatch.setattr(apply_patch, "_replace", failing)
    said = patch(
        root,
        "*** Add File: deep/er/new.txt",
        "+new",
        "*** Delete File: old.txt",
        "*** Add File: third.txt",
        "+x",
    )
    assert "No space left" in said
    assert files(root) == before
    assert not (root / "deep").exists()


LINES = st.lists(st.sampled_from(["a", "b", "", "  x", "+", "-", "@@"]), max_size=8)


@given(old=LINES, new=LINES)
def test_a_patch_of_the_whole_file_makes_it_new(old: list[str], new: list[str]) -> None:
    body = [f"-{line}" for line in old] + [f"+{line}" for line in new]
    if not body:
        return
    text = "\n".join(["*** Begin Patch", "*** Update File: f", "@@", *body, "*** End Patch"])
    (operation,) = parse_patch(text)
    before = "".join(f"{line}\n" for line in old)
    after = apply_hunks("f", before, operation.hunks)  # type: ignore[union-attr]
    assert after.splitlines() == new
