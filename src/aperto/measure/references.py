"""What a checkpoint may carry to be checked against: a manifest of hashes, and reference logits.

Both are JSON files beside the weights (for a single file `x.gguf`: `x.gguf.tensor_hashes.json`):

    tensor_hashes.json      {"format": "aperto-tensor-hashes-1", "tensors": {name: sha256}}
    reference_logits.json   {"format": "aperto-reference-logits-1", "cases": [
                              {"prompt_ids": [...], "positions": [...],
                               "q8": {"sha256": ..., "top": [[[token id, logit], ...], ...]},
                               "exact": {...}}]}

A tensor's hash covers its type, its shape and its canonical bytes, so it is the same in every
layout that stores the tensor in the same type. A case's hash covers the float32 logits
[positions, vocab], little endian; `top` holds the largest logits of each position.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aperto.config import PRECISIONS, Precision
from aperto.errors import FormatError
from aperto.formats import Checkpoint, Tensor

MANIFEST = "tensor_hashes.json"
MANIFEST_FORMAT = "aperto-tensor-hashes-1"
REFERENCES = "reference_logits.json"
REFERENCES_FORMAT = "aperto-reference-logits-1"
NUM_TOP = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Logits:
    """Logits as a reference keeps them."""

    sha256: str
    """Hash of the float32 logits [positions, vocab], in hex."""
    top: tuple[tuple[tuple[int, float], ...], ...]
    """(token id, logit) of the largest ones, best first, for each position."""

    @classmethod
    def of(cls, values: NDArray[np.float32]) -> Logits:
        """Summarise logits [positions, vocab]."""
        order = np.argsort(-values, axis=1, kind="stable")[:, :NUM_TOP]
        top = tuple(
            tuple((int(i), float(row[i])) for i in ids)
            for ids, row in zip(order, values, strict=True)
        )
        return cls(hashlib.sha256(np.ascontiguousarray(values, "<f4").tobytes()).hexdigest(), top)


@dataclasses.dataclass(frozen=True, slots=True)
class ReferenceCase:
    """One prompt with the logits that were once computed for it."""

    prompt_ids: tuple[int, ...]
    """Token ids of the prompt."""
    positions: tuple[int, ...]
    """Positions whose logits are kept, in order."""
    logits: Mapping[Precision, Logits]
    """The logits by precision."""


def companion(path: Path, name: str) -> Path:
    """The file of this name that belongs to a checkpoint's folder or file."""
    return path / name if path.is_dir() else path.with_name(f"{path.name}.{name}")


def tensor_sha256(tensor: Tensor) -> str:
    """Hash of a tensor's type, shape and canonical bytes, in hex."""
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    for array in (tensor.data, tensor.scales):
        if array is not None:
            for part in array if array.ndim > 2 else [array]:  # experts may be strided views
                digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read_manifest(path: Path) -> dict[str, str] | None:
    """Hashes by canonical name; None where the checkpoint has no manifest.

    Raises FormatError for a file that is no manifest.
    """
    raw = _read(companion(path, MANIFEST), MANIFEST_FORMAT)
    if raw is None:
        return None
    tensors = raw.get("tensors")
    if not isinstance(tensors, dict) or not all(isinstance(h, str) for h in tensors.values()):
        raise _damaged(companion(path, MANIFEST), "an object `tensors` of names and hashes")
    return tensors


def write_manifest(checkpoint: Checkpoint) -> Path:
    """Write the hashes of all tensors beside a checkpoint; returns the file."""
    hashes = {name: tensor_sha256(checkpoint.tensor(name)) for name in checkpoint.names()}
    return _write(checkpoint.path, MANIFEST, {"format": MANIFEST_FORMAT, "tensors": hashes})


def read_references(path: Path) -> tuple[ReferenceCase, ...] | None:
    """Reference logits of a checkpoint; None where it has none.

    Raises FormatError for a file that holds something else.
    """
    file = companion(path, REFERENCES)
    raw = _read(file, REFERENCES_FORMAT)
    if raw is None:
        return None
    try:
        return tuple(_case(case) for case in raw["cases"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file, "cases as its format says") from error


def write_references(path: Path, cases: Sequence[ReferenceCase]) -> Path:
    """Write reference logits beside a checkpoint; returns the file."""
    entries = [
        {
            "prompt_ids": list(case.prompt_ids),
            "positions": list(case.positions),
            **{precision: dataclasses.asdict(own) for precision, own in case.logits.items()},
        }
        for case in cases
    ]
    return _write(path, REFERENCES, {"format": REFERENCES_FORMAT, "cases": entries})


def _case(raw: Mapping[str, Any]) -> ReferenceCase:
    logits = {
        precision: Logits(
            str(raw[precision]["sha256"]),
            tuple(
                tuple((int(i), float(value)) for i, value in position)
                for position in raw[precision]["top"]
            ),
        )
        for precision in PRECISIONS
        if precision in raw
    }
    ids = tuple(int(i) for i in raw["prompt_ids"])
    positions = tuple(int(i) for i in raw["positions"])
    if not ids or not positions or not all(0 <= p < len(ids) for p in positions):
        raise ValueError("positions outside the prompt")
    return ReferenceCase(ids, positions, logits)


def _read(file: Path, expected_format: str) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        raw = json.loads(file.read_bytes())
    except ValueError as error:
        raise _damaged(file, "JSON") from error
    if not isinstance(raw, dict) or raw.get("format") != expected_format:
        raise _damaged(file, f'an object with "format": "{expected_format}"')
    return raw


def _damaged(file: Path, expected: str) -> FormatError:
    return FormatError(f"{file}: found something else; expected {expected}; remove or restore it")


def _write(path: Path, name: str, content: Mapping[str, Any]) -> Path:
    file = companion(path, name)
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return file
