"""Yes-or-no questions to the user."""

from __future__ import annotations

import sys

import typer


def confirm(question: str) -> bool:
    """Ask on standard error; no where there is no terminal to answer at."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    return typer.confirm(question, err=True)
