"""The safetensors container: a checked header over a mapped file, and a streaming writer."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aperto.errors import FormatError, UnsupportedError
from aperto.formats.jsonfile import parse_object

MAX_HEADER_BYTES = 100_000_000

DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "U8": np.dtype("u1"),
}
"""The element types aperto reads; BF16 as its raw bits."""

_ITEM_BYTES = {"BOOL": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1} | {
    "I16": 2,
    "U16": 2,
    "I32": 4,
    "U32": 4,
    "F64": 8,
    "I64": 8,
    "U64": 8,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Offset of its first byte from the end of the header."""
    end: int


class SafetensorsFile:
    """A mapped safetensors file whose header has been checked in full.

    Raises FormatError for a damaged header and UnsupportedError, when such a tensor is read, for
    element types that aperto does not read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size if path.is_file() else -1
        if size < 8:
            raise FormatError(
                f"{path}: found {'no regular file' if size < 0 else f'{size} bytes'}; expected a "
                "safetensors file, which has at least 8; download or convert it again"
            )
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > min(MAX_HEADER_BYTES, size - 8):
                raise FormatError(
                    f"{path}: the header claims {header_bytes} bytes; expected at most "
                    f"{min(MAX_HEADER_BYTES, size - 8)} in a file of {size}; it is truncated, or "
                    "not a safetensors file"
                )
            header = parse_object(file.read(header_bytes), f"{path} (header)")
        self._start = 8 + header_bytes
        self.metadata = _metadata(header.pop("__metadata__", {}), path)
        self.entries: dict[str, Entry] = {
            name: _entry(raw, name, path) for name, raw in header.items()
        }
        self._check_cover(size - self._start)
        self._bytes: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)

    def _check_cover(self, data_bytes: int) -> None:
        """Tensors must tile the data exactly: no overlap, no hole, nothing past the end."""
        position = 0
        for name, entry in sorted(self.entries.items(), key=lambda item: item[1].begin):
            if entry.begin != position:
                kind = "overlaps the one before" if entry.begin < position else "leaves a hole"
                raise FormatError(
                    f"{self.path}: tensor {name!r} begins at byte {entry.begin} and {kind}; "
                    f"expected {position}; the file is damaged"
                )
            position = entry.end
        if position != data_bytes:
            raise FormatError(
                f"{self.path}: the file holds {data_bytes} bytes of tensors; expected {position} "
                "by its header; it is truncated or has bytes appended; download it again"
            )

    def array(self, name: str) -> NDArray[Any]:
        """Return a view of a tensor, read-only; a copy only where the file misaligns it."""
        entry = self.entries[name]
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise UnsupportedError(
                f"{self.path}: tensor {name!r} has element type {entry.dtype}; expected one of "
                f"{', '.join(DTYPES)}; convert the checkpoint to BF16 or MXFP4 first"
            )
        begin = self._start + entry.begin
        raw = self._bytes[begin : self._start + entry.end]
        if begin % dtype.itemsize:
            raw = raw.copy()
        return raw.view(dtype).reshape(entry.shape)


def _metadata(raw: Any, path: Path) -> dict[str, str]:
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise FormatError(f"{path}: __metadata__ is {raw!r:.80}; expected strings by name")
    return raw


def _entry(raw: Any, name: str, path: Path) -> Entry:
    """Check one header entry."""
    where = f"{path}: tensor {name!r}"
    if not isinstance(raw, dict) or set(raw) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where} is {raw!r:.80}; expected dtype, shape and data_offsets")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or not (dtype in DTYPES or dtype in _ITEM_BYTES):
        raise FormatError(f"{where} has element type {dtype!r:.40}; expected a safetensors type")
    if not _are_counts(shape):
        raise FormatError(f"{where} has shape {shape!r:.80}; expected a list of counts")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{where} has offsets {offsets!r:.80}; expected [begin, end] in order")
    item_bytes = DTYPES[dtype].itemsize if dtype in DTYPES else _ITEM_BYTES[dtype]
    expected = math.prod(shape) * item_bytes
    if offsets[1] - offsets[0] != expected:
        raise FormatError(
            f"{where} takes {offsets[1] - offsets[0]} bytes; expected {expected} for {dtype} "
            f"{shape}"
        )
    return Entry(dtype, tuple(shape), offsets[0], offsets[1])


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 62
        for item in value
    )


def header_bytes(
    entries: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> bytes:
    """Build length and header for tensors (dtype, shape) laid out one after the other."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, (dtype, shape) in entries.items():
        end = position + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # Padded so that the data begins at a multiple of 64: mapped views are then aligned.
    text += b" " * (-(8 + len(text)) % 64)
    return len(text).to_bytes(8, "little") + text
