"""GGUF."""
from pathlib import Path
from aperto.errors import UnsupportedError
from aperto.formats.checkpoint import Checkpoint


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file."""
    raise UnsupportedError(f"{path}: GGUF")
