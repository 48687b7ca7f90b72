"""A progress bar on standard error, where that is a terminal.

A bar appears with the first report, so that a question asked before it stands undisturbed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def byte_progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that takes (bytes done, bytes in all) and draws them."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    shown = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*shown, console=console, transient=True)
    task = progress.add_task(title, total=None)

    def report(done: int, total: int) -> None:
        progress.start()
        progress.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        progress.stop()


def duration(seconds: float) -> str:
    """A time for reading."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


@contextmanager
def step_progress() -> Iterator[Callable[[int, int, str], None]]:
    """Yield a function that takes (steps done, steps in all, what comes next) and shows them."""
    if not sys.stderr.isatty():
        yield lambda done, total, what: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    shown = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    progress = Progress(*shown, console=Console(stderr=True), transient=True)
    task = progress.add_task("", total=None)

    def report(done: int, total: int, what: str) -> None:
        progress.start()
        progress.update(task, completed=done, total=total, description=what)

    try:
        yield report
    finally:
        progress.stop()
