"""The GGUF container: metadata and tensor table of a mapped file, checked; and their writer."""

from __future__ import annotations

import dataclasses
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aperto.errors import FormatError, UnsupportedError
from aperto.formats.tensor import DType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
MAX_DIMS = 4
MAX_KEY_BYTES = 1 << 16

F32, F16, Q8_0, BF16, MXFP4 = 0, 1, 8, 30, 39
TYPES: dict[int, tuple[str, int, int]] = {
    F32: ("F32", 1, 4),
    F16: ("F16", 1, 2),
    Q8_0: ("Q8_0", 32, 34),
    BF16: ("BF16", 1, 2),
    MXFP4: ("MXFP4", 32, 17),
}
"""Tensor types read without loss: name, values a block, bytes a block."""
TYPE_IDS = {DType(name): type_id for type_id, (name, _, _) in TYPES.items()}

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}


@dataclasses.dataclass(frozen=True, slots=True)
class GgufTensor:
    """One row of the tensor table."""

    name: str
    type_id: int
    type_name: str
    shape: tuple[int, ...]
    """Logical shape, slowest axis first (GGUF stores it the other way round)."""
    offset: int
    """Absolute byte offset in the file."""
    nbytes: int
    block_values: int
    block_bytes: int


class StringArray:
    """A metadata array of strings, decoded only when asked for (vocabularies are long)."""

    def __init__(self, reader: _Reader, count: int) -> None:
        self._reader = reader
        self._start = reader.position
        self._count = count
        for _ in range(count):
            reader.skip(reader.length("string"))

    def __len__(self) -> int:
        return self._count

    def decode(self) -> tuple[str, ...]:
        """Return the strings."""
        reader = _Reader(self._reader.data, self._reader.path, self._start)
        return tuple(reader.string() for _ in range(self._count))


class GgufFile:
    """A mapped GGUF file. Raises FormatError or UnsupportedError for anything it cannot trust."""

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size if path.is_file() else 0
        if size < 24:
            raise FormatError(
                f"{path}: found {size} bytes; expected a GGUF file, which has at least 24"
            )
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        reader = _Reader(self._map, path)
        num_tensors, num_pairs = _preamble(reader)
        self.metadata = _metadata(reader, num_pairs)
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if (
            not isinstance(alignment, int)
            or not 1 <= alignment <= 1 << 16
            or alignment & (alignment - 1)
        ):
            raise FormatError(
                f"{path}: general.alignment is {alignment!r:.40}; expected a power of two"
            )
        table = [_tensor_row(reader) for _ in range(num_tensors)]
        start = -(-reader.position // alignment) * alignment
        self.tensors = _placed(table, start, size, alignment, path)

    def raw(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        """Return a tensor's bytes, read-only: [..., bytes of a row], its rows as in the shape."""
        flat = np.frombuffer(self._map, np.uint8, count=tensor.nbytes, offset=tensor.offset)
        row = tensor.shape[-1] // tensor.block_values * tensor.block_bytes
        return flat.reshape(*tensor.shape[:-1], row)


class _Reader:
    """A cursor that never leaves the file."""

    def __init__(self, data: mmap.mmap, path: Path, position: int = 0) -> None:
        self.data = data
        self.path = path
        self.position = position

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def skip(self, count: int) -> None:
        if count > self.left:
            raise FormatError(
                f"{self.path}: byte {self.position}: expected {count} more bytes, found "
                f"{self.left}; the file is truncated or damaged"
            )
        self.position += count

    def take(self, code: str) -> Any:
        start = self.position
        self.skip(struct.calcsize(f"<{code}"))
        return struct.unpack_from(f"<{code}", self.data, start)[0]

    def length(self, what: str, item_bytes: int = 1) -> int:
        """Read a 64-bit count and check that so many items can lie in the rest of the file."""
        count: int = self.take("Q")
        if count * item_bytes > self.left:
            raise FormatError(
                f"{self.path}: byte {self.position - 8}: {what} claims {count} items; at most "
                f"{self.left // item_bytes} fit into the rest of the file; it is damaged"
            )
        return count

    def string(self) -> str:
        count = self.length("string")
        start = self.position
        self.skip(count)
        try:
            return self.data[start : start + count].decode()
        except UnicodeDecodeError as problem:
            raise FormatError(
                f"{self.path}: byte {start}: found text that is not UTF-8"
            ) from problem

    def key(self) -> str:
        start = self.position
        text = self.string()
        if len(text) > MAX_KEY_BYTES:
            raise FormatError(
                f"{self.path}: byte {start}: a name of {len(text)} characters; expected fewer"
            )
        return text


def _preamble(reader: _Reader) -> tuple[int, int]:
    """Check magic and version; return the counts of tensors and of metadata pairs."""
    magic = bytes(reader.data[:4])
    if magic != MAGIC:
        raise FormatError(
            f"{reader.path}: begins with {magic!r}; expected {MAGIC!r}; not a GGUF file"
        )
    reader.skip(4)
    version = reader.take("I")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        kind = "big-endian" if swapped in VERSIONS else f"version {version}"
        raise UnsupportedError(
            f"{reader.path}: found a {kind} GGUF; expected little-endian version 2 or 3"
        )
    # The smallest tensor row takes 32 bytes, the smallest pair 13.
    tensors = reader.length("tensor count", 32)
    return tensors, reader.length("metadata count", 13)


def _metadata(reader: _Reader, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = reader.key()
        if key in metadata:
            raise FormatError(
                f"{reader.path}: the metadata key {key!r:.80} occurs twice; expected it once"
            )
        metadata[key] = _value(reader, reader.take("I"), key)
    return metadata


def _value(reader: _Reader, kind: int, key: str) -> Any:
    if kind in _SCALARS:
        return reader.take(_SCALARS[kind])
    if kind == _STRING:
        return reader.string()
    if kind != _ARRAY:
        raise FormatError(
            f"{reader.path}: metadata {key!r:.80} has value type {kind}; expected 0..12"
        )
    item_kind = reader.take("I")
    if item_kind == _STRING:
        return StringArray(reader, reader.length(f"metadata {key!r:.80}", 8))
    if item_kind not in _SCALARS:
        raise UnsupportedError(
            f"{reader.path}: metadata {key!r:.80} is an array of value type {item_kind}; expected "
            "numbers or strings"
        )
    code = _SCALARS[item_kind]
    length = reader.length(f"metadata {key!r:.80}", struct.calcsize(f"<{code}"))
    start = reader.position
    reader.skip(length * struct.calcsize(f"<{code}"))
    return list(struct.unpack_from(f"<{length}{code}", reader.data, start))


def _tensor_row(reader: _Reader) -> GgufTensor:
    name = reader.key()
    num_dims = reader.take("I")
    if not 1 <= num_dims <= MAX_DIMS:
        raise FormatError(
            f"{reader.path}: tensor {name!r:.80} has {num_dims} axes; expected 1..{MAX_DIMS}"
        )
    shape = tuple(reader.take("Q") for _ in range(num_dims))[::-1]
    type_id = reader.take("I")
    type_name, block_values, block_bytes = TYPES.get(type_id) or foreign_type(
        reader.path, name, type_id
    )
    if shape[-1] % block_values:
        raise FormatError(
            f"{reader.path}: tensor {name!r:.80} has rows of {shape[-1]} values; expected a "
            f"multiple of {block_values} for {type_name}"
        )
    nbytes = math.prod(shape) // block_values * block_bytes
    offset = reader.take("Q")
    return GgufTensor(name, type_id, type_name, shape, offset, nbytes, block_values, block_bytes)


def _placed(
    table: list[GgufTensor], start: int, size: int, alignment: int, path: Path
) -> dict[str, GgufTensor]:
    """Turn relative offsets into absolute ones; refuse overlaps and anything past the end."""
    placed: dict[str, GgufTensor] = {}
    position = start
    for row in sorted(table, key=lambda item: (item.offset, item.nbytes)):
        begin = start + row.offset
        if row.name in placed:
            raise FormatError(f"{path}: tensor {row.name!r:.80} occurs twice; expected it once")
        if row.offset % alignment:
            raise FormatError(
                f"{path}: tensor {row.name!r:.80} lies at offset {row.offset}; expected a "
                f"multiple of {alignment}"
            )
        if begin < position or begin + row.nbytes > size:
            raise FormatError(
                f"{path}: tensor {row.name!r:.80} takes bytes {begin} to {begin + row.nbytes}; "
                f"expected them between {position} and the end, {size}; the file is truncated or "
                "damaged"
            )
        position = begin + row.nbytes
        placed[row.name] = dataclasses.replace(row, offset=begin)
    return placed


def foreign_type(path: Path, name: str, type_id: int) -> tuple[str, int, int]:
    """Look up a tensor type that only the gguf package knows: name, values and bytes a block."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(type_id)
        return kind.name, *GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError) as problem:
        raise UnsupportedError(
            f"{path}: tensor {name!r:.80} has GGUF type {type_id}, which is unknown; expected "
            f"{', '.join(entry[0] for entry in TYPES.values())} or a published quantisation"
        ) from problem


def dequantize(raw: NDArray[np.uint8], tensor: GgufTensor, path: Path) -> NDArray[np.float32]:
    """Return the values of a type that aperto does not keep, as float32 of the tensor's shape."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize as dequantize_rows

    try:
        values = dequantize_rows(raw, GGMLQuantizationType(tensor.type_id))
    except NotImplementedError as problem:
        raise UnsupportedError(
            f"{path}: tensor {tensor.name!r} is {tensor.type_name}, which cannot be "
            "dequantised here; expected MXFP4, Q8_0, BF16, F16, F32, K-quants or legacy quants; "
            "use another file of the model"
        ) from problem
    return np.asarray(values, dtype=np.float32).reshape(tensor.shape)


# --- writing ------------------------------------------------------------------------------------


def preamble_bytes(
    metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, tuple[int, ...]]]
) -> bytes:
    """Build everything before the tensor data; tensors by name as (type id, logical shape).

    Metadata values: bool, int (uint32), float (float32), str, and lists of one of these, where
    `Int32List` gives int32. Each tensor starts at the next multiple of ALIGNMENT.
    """
    parts = [MAGIC, struct.pack("<IQQ", VERSIONS[-1], len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_pack_string(key), _pack_value(value)]
    offset = 0
    for name, (type_id, shape) in tensors.items():
        dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        parts += [_pack_string(name), dims, struct.pack("<IQ", type_id, offset)]
        offset += padded(tensor_bytes(type_id, shape))
    head = b"".join(parts)
    return head + bytes(padded(len(head)) - len(head))


def tensor_bytes(type_id: int, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of one of the lossless types."""
    _, block_values, block_bytes = TYPES[type_id]
    return math.prod(shape) // block_values * block_bytes


def padded(count: int) -> int:
    """Round up to ALIGNMENT."""
    return -(-count // ALIGNMENT) * ALIGNMENT


class Int32List(list[int]):
    """A metadata list that is stored as int32."""


def _pack_string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _pack_value(value: Any) -> bytes:
    if isinstance(value, list | tuple):
        kind = 5 if isinstance(value, Int32List) else _kind(value[0])
        head = struct.pack("<IIQ", _ARRAY, kind, len(value))
        if kind == _STRING:
            return head + b"".join(_pack_string(item) for item in value)
        return head + struct.pack(f"<{len(value)}{_SCALARS[kind]}", *value)
    kind = _kind(value)
    body = _pack_string(value) if kind == _STRING else struct.pack(f"<{_SCALARS[kind]}", value)
    return struct.pack("<I", kind) + body


def _kind(value: Any) -> int:
    """GGUF's number for a Python value's type."""
    return {bool: 7, int: 4, float: 6, str: _STRING}[type(value)]
