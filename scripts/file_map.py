"""Print one line for every source file: its path and the first sentence of its own header.

The README holds the output between cog markers; `make check` proves that it is current.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("src/aperto", "native", "recipes", "bench", "scripts")


def summary(path: Path) -> str:
    """First sentence of a Python docstring, or of the comment that opens a C++ or shell file."""
    text = path.read_text()
    if path.suffix == ".py":
        lines = (ast.get_docstring(ast.parse(text)) or "").splitlines()
    else:
        lines = []
        for line in text.splitlines():
            if not line.startswith(("//", "#")) or line.startswith(("#include", "#pragma")):
                break
            if not line.startswith("#!"):
                lines.append(line.lstrip("/# "))
    paragraph = " ".join(line.strip() for line in lines).strip()
    return paragraph.split(". ")[0].rstrip(".:")


def entries(folder: Path) -> Iterator[tuple[Path, str]]:
    """Source files below a folder; a .cc file is described by its header."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".py", ".h", ".cpp", ".sh"} or (
            path.suffix == ".cc" and not path.with_suffix(".h").exists()
        ):
            described = summary(path)
            if described:
                yield path, described


def file_map() -> str:
    """The whole map as a Markdown text block."""
    lines = []
    for name in FOLDERS:
        folder = ROOT / name
        if not folder.is_dir():
            continue
        rows = [(str(p.relative_to(folder)), text) for p, text in entries(folder)]
        width = max(len(path) for path, _ in rows)
        lines += [f"{name}/", *(f"  {path:<{width}}  {text}" for path, text in rows), ""]
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    print(file_map())
