"""Capability suites: loaders of publishers' files, prompts, graders, and their Inspect tasks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from aperto.errors import UsageError
from aperto.vet.tasks.catalogue import SUITES


@dataclasses.dataclass(frozen=True, slots=True)
class TaskEntry:
    """One name of `aperto eval`."""

    summary: str
    factory: Callable[..., Any]
    """Makes the Inspect task; takes data_dir, limit, epochs, effort, seed."""
    published_key: str | None
    """Suite in `published.toml` to set beside it."""
    needs_data: str | None
    """Source it needs; None where it needs none."""


def registry() -> Mapping[str, TaskEntry]:
    """All tasks by name; Inspect is imported only when one is made."""
    return {
        name: TaskEntry(
            suite.summary, functools.partial(_task, name), suite.published, suite.source
        )
        for name, suite in SUITES.items()
    }


def entry(name: str) -> TaskEntry:
    """The task of this name.

    Raises UsageError that lists what there is.
    """
    found = registry()
    if name not in found:
        raise UsageError(f"no suite {name!r}; there are {', '.join(sorted(found))}")
    return found[name]


def _task(name: str, **options: Any) -> Any:
    from aperto.vet.tasks.bridge import task_of

    return task_of(SUITES[name], **options)
