"""`open_checkpoint`: recognise the layout of a folder or file, then let its reader open it."""

from __future__ import annotations

from pathlib import Path

from aperto.errors import FormatError, ModelNotFoundError
from aperto.formats.checkpoint import Checkpoint
from aperto.formats.ggufmodel import open_gguf
from aperto.formats.hf import open_hf
from aperto.formats.jsonfile import read_object
from aperto.formats.openai import open_openai


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a folder or file in any of the three layouts.

    A folder is read by its config.json: with `model_type` it has the Hugging Face layout, without
    it OpenAI's original one; a folder without config.json may hold `original/` or GGUF files.
    Raises ModelNotFoundError if the path does not exist and CheckpointError (FormatError,
    TensorError, UnsupportedError) if what is there is damaged, inconsistent or unknown.
    """
    path = Path(path)
    if not path.exists():
        raise ModelNotFoundError(
            f"{path} does not exist; expected a checkpoint folder or .gguf file"
        )
    if path.is_file():
        if path.suffix == ".gguf":
            return open_gguf(path)
        if path.suffix == ".safetensors" and (path.parent / "config.json").is_file():
            return open_checkpoint(path.parent)
        raise FormatError(
            f"{path}: found a file that is no .gguf and has no config.json beside it; expected a "
            "checkpoint folder or a .gguf file"
        )
    if (path / "config.json").is_file():
        is_hf = "model_type" in read_object(path / "config.json")
        return open_hf(path) if is_hf else open_openai(path)
    if (path / "original" / "config.json").is_file():
        return open_openai(path / "original")
    return open_gguf(_only_gguf(path))


def _only_gguf(folder: Path) -> Path:
    """Return the folder's GGUF file; of a split one, the first part."""
    files = sorted(folder.glob("*.gguf"))
    starts = [file for file in files if "-of-" not in file.stem or "-00001-of-" in file.stem]
    if len(starts) != 1:
        found = ", ".join(file.name for file in starts) or "neither config.json nor a .gguf file"
        raise FormatError(
            f"{folder}: found {found}; expected a checkpoint: config.json with safetensors, or one "
            ".gguf file; name the file to open"
        )
    return starts[0]
