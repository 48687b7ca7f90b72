"""A model loaded for the terminal, with progress, and with the user asked where disk is short."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import aperto
from aperto.cli.asking import confirm
from aperto.cli.progress import byte_progress
from aperto.config import Settings
from aperto.errors import MemoryLimitError
from aperto.local_model import LocalModel


def load_local(
    name: str, settings: Settings, adapters: Mapping[str, Path] | None = None
) -> LocalModel:
    """Load a model by name or path with the user's settings; to be closed by the caller.

    adapters: adapters' folders and intervention files by name.
    Raises ModelNotFoundError, CheckpointError, MemoryLimitError and DiskSpaceError.
    """
    with byte_progress(f"loading {name}") as progress:
        try:
            return aperto.load(
                name,
                precision=settings.precision,
                threads=settings.threads or None,
                context=settings.context or None,
                progress=progress,
                confirm=confirm,
                adapters=adapters,
            )
        except MemoryLimitError as error:
            raise MemoryLimitError(f"{error}; aperto info {name} shows what would fit") from error
