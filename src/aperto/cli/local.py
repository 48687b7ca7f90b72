"""A model loaded for the terminal, with progress, and with the user asked where disk is short."""

from __future__ import annotations

import aperto
from aperto.cli.asking import confirm
from aperto.cli.progress import byte_progress
from aperto.config import Settings
from aperto.errors import MemoryLimitError
from aperto.local_model import LocalModel


def load_local(name: str, settings: Settings) -> LocalModel:
    """Load a model by name or path with the user's settings; to be closed by the caller.

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
            )
        except MemoryLimitError as error:
            raise MemoryLimitError(f"{error}; aperto info {name} shows what would fit") from error
