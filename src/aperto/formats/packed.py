"""Weights in the layout of the kernels: packed once, kept in a cache file, mapped from then on.

A packed file is 16 bytes (magic, header length), a JSON header, then the tensors at multiples of
4096 bytes. It is a second copy of the model on disk, which is what makes loading instant.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import mmap
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aperto import native
from aperto.config import Precision
from aperto.errors import DiskSpaceError, FormatError, TensorError, UsageError
from aperto.formats.checkpoint import Checkpoint, TensorSource
from aperto.formats.disk import free_bytes
from aperto.formats.names import layer_name
from aperto.formats.requantize import QuantizedExperts, quantize_experts
from aperto.formats.tensor import DType, Tensor

Bytes = NDArray[np.uint8]
Progress = Callable[[int, int], None]
"""Called with (bytes packed, bytes in all)."""
Confirm = Callable[[str], bool]
"""Asked a question when disk space is short; True goes ahead."""

VERSION = 1
"""Raised whenever the kernels' layout changes; files of another version are ignored."""
SMALL_BYTES = 256 << 20
"""Models up to this size are packed in memory at each load: no file is worth it."""
SHORT_BYTES = 10 << 30
"""Less free space than this after writing counts as short, and is asked about."""

_log = logging.getLogger(__name__)

_MAGIC = b"APERTOPK"
_ALIGNMENT = 4096
_CHUNK_ROWS = 2048
_SUFFIX = ".packed"
_PACK: dict[str, Callable[[Any, Any], None]] = {
    "q8": native.pack_q8,
    "bf16": native.pack_bf16,
    "f32": native.pack_f32,
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Part:
    """A run of a packed tensor's bytes and how to make them."""

    offset: int
    nbytes: int
    fill: Callable[[Bytes], None]


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """One packed tensor, not yet made."""

    name: str
    kind: str
    nbytes: int
    parts: Callable[[], Iterator[_Part]]


@dataclasses.dataclass(frozen=True, slots=True)
class PackedWeights:
    """Weights ready for `aperto.native.Model`."""

    tensors: dict[str, tuple[str, Bytes]]
    """Name -> (kind, bytes)."""
    path: Path | None
    """The cache file they are mapped from; None when they lie in memory."""
    nbytes: int
    """Bytes of all tensors."""


@dataclasses.dataclass(frozen=True, slots=True)
class CacheEntry:
    """One file of the packed cache."""

    path: Path
    """The file."""
    source: str
    """The checkpoint it was packed from."""
    precision: str
    """q8 or exact."""
    nbytes: int
    """Size on disk."""


def open_packed(
    checkpoint: Checkpoint,
    precision: Precision,
    cache_dir: Path,
    *,
    progress: Progress | None = None,
    confirm: Confirm | None = None,
) -> PackedWeights:
    """Map the packed weights of a checkpoint, packing them first where that was not done yet.

    Models over 256 MiB get a file in `cache_dir`/packed. When less than 10 GiB would stay free,
    `confirm` is asked; without it, or when it declines, DiskSpaceError is raised with the numbers.
    Plain experts, as fine-tunes store them, are quantised to MXFP4, and the error is logged.
    Raises TensorError for weights that are not finite.
    """
    source = quantize_experts(checkpoint)
    plans = list(_plan(source, precision))
    total = sum(plan.nbytes for plan in plans)
    if total <= SMALL_BYTES:
        packed = PackedWeights(_pack_in_memory(plans, progress), None, total)
    else:
        path = _cache_path(checkpoint, precision, cache_dir)
        if not path.is_file():
            _require_space(path, total, confirm)
            _write(path, plans, checkpoint, precision, progress)
        packed = PackedWeights(_map(path, plans), path, total)
    if isinstance(source, QuantizedExperts) and source.errors:
        _log.warning("%s: %s", checkpoint.path, source.notes[-1])
    return packed


def packed_bytes(checkpoint: Checkpoint, precision: Precision) -> int:
    """Bytes the packed weights take in memory, and on disk if they are cached."""
    return sum(plan.nbytes for plan in _plan(quantize_experts(checkpoint), precision))


def list_entries(cache_dir: Path) -> list[CacheEntry]:
    """List the packed cache, largest first; unreadable files are listed with an unknown source."""
    entries = []
    for path in sorted((cache_dir / "packed").glob(f"*{_SUFFIX}")):
        try:
            header = _read_header(path)[0]
        except FormatError:
            header = {}
        source, precision = header.get("source", "unknown"), header.get("precision", "unknown")
        entries.append(CacheEntry(path, source, precision, path.stat().st_size))
    return sorted(entries, key=lambda entry: -entry.nbytes)


def remove(cache_dir: Path, name: str) -> list[CacheEntry]:
    """Delete entries whose file name, stem or source is `name`, or all for "all"; return them.

    Raises UsageError when nothing matches.
    """
    entries = list_entries(cache_dir)
    chosen = [
        entry
        for entry in entries
        if name in ("all", entry.path.name, entry.path.stem, entry.source)
    ]
    if not chosen and name != "all":
        known = ", ".join(entry.path.stem for entry in entries)
        holds = f"it holds: {known}" if known else "it is empty"
        raise UsageError(f"the packed cache has no entry {name!r}; {holds}")
    for entry in chosen:
        entry.path.unlink()
    return chosen


# --- what is packed how --------------------------------------------------------------------------


def _plan(tensors: TensorSource, precision: Precision) -> Iterator[_Plan]:
    yield _rows(tensors, precision)
    for index, layer in enumerate(tensors.config.layers):
        for packed, suffix in (
            ("attn.norm", "attn.norm.weight"),
            ("attn.out.bias", "attn.out.bias"),
            ("attn.sinks", "attn.sinks"),
            ("moe.norm", "moe.norm.weight"),
            ("moe.router.bias", "moe.router.bias"),
            ("moe.down.bias", "moe.down.bias"),
        ):
            yield _floats(tensors, layer_name(index, packed), [layer_name(index, suffix)])
        biases = [layer_name(index, f"attn.{part}.bias") for part in "qkv"]
        yield _floats(tensors, layer_name(index, "attn.qkv.bias"), biases)
        yield _gate_up_bias(tensors, index)
        weights = [layer_name(index, f"attn.{part}.weight") for part in "qkv"]
        yield _dense(tensors, layer_name(index, "attn.qkv"), weights, precision)
        out = layer_name(index, "attn.out")
        yield _dense(tensors, out, [f"{out}.weight"], precision)
        router = layer_name(index, "moe.router")
        yield _dense(tensors, router, [f"{router}.weight"], "exact")
        for part in ("moe.gate_up", "moe.down"):
            yield _experts(tensors, layer_name(index, part), layer.num_experts)
    yield _floats(tensors, "norm", ["norm.weight"])
    yield _dense(tensors, "head", ["head.weight"], precision)


def _floats(tensors: TensorSource, name: str, sources: list[str]) -> _Plan:
    sizes = [int(np.prod(tensors.info(source).shape)) * 4 for source in sources]

    def parts() -> Iterator[_Part]:
        values = [tensors.tensor(source).to_float32().ravel() for source in sources]
        data = np.concatenate(values).view(np.uint8)
        yield _Part(0, data.nbytes, lambda target: np.copyto(target, data))

    return _Plan(name, "f32", sum(sizes), parts)


def _gate_up_bias(tensors: TensorSource, index: int) -> _Plan:
    """Biases in the order of the packed rows: 16 of gate, 16 of up, and so on."""
    source = layer_name(index, "moe.gate_up.bias")
    experts, rows = tensors.info(source).shape

    def parts() -> Iterator[_Part]:
        bias = tensors.tensor(source).to_float32()
        tiles = bias.reshape(experts, rows // 32, 16, 2).swapaxes(2, 3)
        data = np.ascontiguousarray(tiles).reshape(-1).view(np.uint8)
        yield _Part(0, data.nbytes, lambda target: np.copyto(target, data))

    return _Plan(source, "f32", experts * rows * 4, parts)


def _row_kind(tensors: TensorSource, sources: list[str], precision: Precision) -> str:
    if precision == "q8":
        return "q8"
    bf16 = all(tensors.info(source).dtype == DType.BF16 for source in sources)
    return "bf16" if bf16 else "f32"


def _rows(tensors: TensorSource, precision: Precision) -> _Plan:
    """The embedding, row by row as it is looked up."""
    source = "embedding.weight"
    rows, width = tensors.info(source).shape
    kind = _row_kind(tensors, [source], precision)
    row_bytes = {"q8": width // 32 * 34, "bf16": width * 2, "f32": width * 4}[kind]

    def parts() -> Iterator[_Part]:
        tensor = tensors.tensor(source)
        for begin, end in _chunks(rows):

            def fill(target: Bytes, begin: int = begin, end: int = end) -> None:
                np.copyto(target, _convert(tensor, begin, end, kind).view(np.uint8).ravel())

            yield _Part(begin * row_bytes, (end - begin) * row_bytes, fill)

    return _Plan("embedding", f"{kind}_rows", rows * row_bytes, parts)


def _dense(tensors: TensorSource, name: str, sources: list[str], precision: Precision) -> _Plan:
    """Matrices of one width, one above the other, in tiles."""
    shapes = [tensors.info(source).shape for source in sources]
    kind = _row_kind(tensors, sources, precision)
    width = shapes[0][1]
    sizes = [native.tiles_bytes(f"{kind}_tiles", rows, width) for rows, _ in shapes]
    pack = _PACK[kind]

    def parts() -> Iterator[_Part]:
        start = 0
        for source, (rows, _), size in zip(sources, shapes, sizes, strict=True):
            tensor = tensors.tensor(source)
            for begin, end in _chunks(rows):

                def fill(
                    target: Bytes, tensor: Tensor = tensor, begin: int = begin, end: int = end
                ) -> None:
                    pack(_convert(tensor, begin, end, kind), target)

                offset = start + native.tiles_bytes(f"{kind}_tiles", begin, width)
                nbytes = native.tiles_bytes(f"{kind}_tiles", end - begin, width)
                yield _Part(offset, nbytes, fill)
            start += size

    return _Plan(name, f"{kind}_tiles", sum(sizes), parts)


def _experts(tensors: TensorSource, name: str, num_experts: int) -> _Plan:
    source = f"{name}.weight"
    info = tensors.info(source)
    _, rows, width = info.shape
    size = native.tiles_bytes("mxfp4_tiles", rows, width)
    interleaved = name.endswith("gate_up")

    def parts() -> Iterator[_Part]:
        tensor = tensors.tensor(source)
        blocks, scales = tensor.data, tensor.scales
        assert scales is not None
        for expert in range(num_experts):

            def fill(target: Bytes, expert: int = expert) -> None:
                native.pack_mxfp4(
                    np.ascontiguousarray(blocks[expert]),
                    np.ascontiguousarray(scales[expert]),
                    interleaved,
                    target,
                )

            yield _Part(expert * size, size, fill)

    return _Plan(name, "mxfp4_tiles", num_experts * size, parts)


def _chunks(rows: int) -> Iterator[tuple[int, int]]:
    """Runs of rows; all but the last are whole tiles."""
    for begin in range(0, rows, _CHUNK_ROWS):
        yield begin, min(begin + _CHUNK_ROWS, rows)


def _convert(tensor: Tensor, begin: int, end: int, kind: str) -> NDArray[Any]:
    """Rows of a matrix as Q8_0 blocks, bfloat16 bits or floats. Raises TensorError for NaN."""
    data = tensor.data[begin:end]
    if tensor.dtype == DType.BF16 and kind != "f32":
        if ((data & np.uint16(0x7F80)) == 0x7F80).any():
            _refuse(tensor)
        bits = np.ascontiguousarray(data)
        return bits if kind == "bf16" else _quantized(bits, native.quantize_q8_0_bf16)
    if tensor.dtype == DType.Q8_0 and kind == "q8":
        scales = data[..., :2].copy().view(np.float16)
        if not np.isfinite(scales).all():
            _refuse(tensor)
        return np.ascontiguousarray(data)
    rows = dataclasses.replace(tensor, data=data, shape=(end - begin, *tensor.shape[1:]))
    values = np.ascontiguousarray(rows.to_float32())
    if not np.isfinite(values).all():
        _refuse(tensor)
    return values if kind == "f32" else _quantized(values, native.quantize_q8_0)


def _quantized(values: NDArray[Any], quantize: Callable[[Any, Any], None]) -> Bytes:
    rows, width = values.shape
    blocks = np.empty(rows * width // 32 * 34, np.uint8)
    quantize(values, blocks)
    return blocks.reshape(rows, width // 32, 34)


def _refuse(tensor: Tensor) -> None:
    raise TensorError(
        f"{tensor.name}: found NaN or infinite values; expected finite weights; the file is "
        "damaged or its training diverged"
    )


# --- memory and files ----------------------------------------------------------------------------


class _Meter:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.done, self.progress = total, 0, progress

    def add(self, nbytes: int) -> None:
        self.done += nbytes
        if self.progress is not None:
            self.progress(self.done, self.total)


def _pack_in_memory(plans: list[_Plan], progress: Progress | None) -> dict[str, tuple[str, Bytes]]:
    meter = _Meter(sum(plan.nbytes for plan in plans), progress)
    tensors = {}
    for plan in plans:
        data = np.zeros(plan.nbytes, np.uint8)
        for part in plan.parts():
            part.fill(data[part.offset : part.offset + part.nbytes])
        tensors[plan.name] = (plan.kind, data)
        meter.add(plan.nbytes)
    return tensors


def _cache_path(checkpoint: Checkpoint, precision: Precision, cache_dir: Path) -> Path:
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", checkpoint.path.resolve().stem).strip("-") or "model"
    identity = checkpoint.fingerprint()[:16]
    return cache_dir / "packed" / f"{slug}-{identity}-{precision}-v{VERSION}{_SUFFIX}"


def _require_space(path: Path, needed: int, confirm: Confirm | None) -> None:
    free = free_bytes(path)
    left = free - needed
    if left >= SHORT_BYTES:
        return
    numbers = f"{needed / 1e9:.1f} GB at {path}; {free / 1e9:.1f} GB are free there"
    if (
        left > 0
        and confirm is not None
        and confirm(f"Packing the weights writes {numbers}. Go on?")
    ):
        return
    raise DiskSpaceError(
        f"packing the weights writes {numbers}; expected to leave {SHORT_BYTES / 1e9:.0f} GB free; "
        "remove entries with `aperto cache rm`, set cache_dir to another disk, or agree when asked"
    )


def _offsets(plans: list[_Plan], start: int) -> list[int]:
    offsets = []
    for plan in plans:
        offsets.append(start)
        start += -(-plan.nbytes // _ALIGNMENT) * _ALIGNMENT
    return offsets


def _write(
    path: Path,
    plans: list[_Plan],
    checkpoint: Checkpoint,
    precision: Precision,
    progress: Progress | None,
) -> None:
    """Pack into a temporary file beside `path` and rename it once it is complete."""
    header: dict[str, Any] = {
        "version": VERSION,
        "source": str(checkpoint.path.resolve()),
        "fingerprint": checkpoint.fingerprint(),
        "precision": precision,
        "tensors": {plan.name: {"kind": plan.kind, "nbytes": plan.nbytes} for plan in plans},
    }
    text = json.dumps(header).encode()
    start = -(-(len(_MAGIC) + 8 + len(text)) // _ALIGNMENT) * _ALIGNMENT
    meter = _Meter(sum(plan.nbytes for plan in plans), progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(_MAGIC + len(text).to_bytes(8, "little") + text)
            for plan, offset in zip(plans, _offsets(plans, start), strict=True):
                _write_parts(file.fileno(), plan, offset, meter)
            file.truncate(_offsets(plans, start)[-1] + plans[-1].nbytes)
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_parts(descriptor: int, plan: _Plan, offset: int, meter: _Meter) -> None:
    """Fill and write the parts of one tensor on all CPUs."""

    def run(part: _Part) -> int:
        data = np.zeros(part.nbytes, np.uint8)
        part.fill(data)
        view, at = memoryview(data.data), offset + part.offset
        while view:
            written = os.pwrite(descriptor, view, at)
            view, at = view[written:], at + written
        return part.nbytes

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for nbytes in pool.map(run, plan.parts()):
            meter.add(nbytes)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the JSON header and where the tensors start. Raises FormatError."""
    with path.open("rb") as file:
        head = file.read(len(_MAGIC) + 8)
        length = int.from_bytes(head[len(_MAGIC) :], "little")
        if head[: len(_MAGIC)] != _MAGIC or length > path.stat().st_size:
            raise FormatError(
                f"{path}: not a packed file of aperto; remove it with `aperto cache rm {path.stem}`"
            )
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise FormatError(
                f"{path}: the header is not JSON: {error}; remove the file"
            ) from error
    return header, -(-(len(head) + length) // _ALIGNMENT) * _ALIGNMENT


def _map(path: Path, plans: list[_Plan]) -> dict[str, tuple[str, Bytes]]:
    header, start = _read_header(path)
    expected = {plan.name: {"kind": plan.kind, "nbytes": plan.nbytes} for plan in plans}
    offsets = _offsets(plans, start)
    size = path.stat().st_size
    if header.get("tensors") != expected or size != offsets[-1] + plans[-1].nbytes:
        raise FormatError(
            f"{path}: found {size} bytes that do not fit the model; expected "
            f"{offsets[-1] + plans[-1].nbytes}; remove it with `aperto cache rm {path.stem}` and "
            "it is packed again"
        )
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with contextlib.suppress(OSError):  # advice only
        mapping.madvise(mmap.MADV_WILLNEED)
    data = np.frombuffer(mapping, np.uint8)
    return {
        plan.name: (plan.kind, data[offset : offset + plan.nbytes])
        for plan, offset in zip(plans, offsets, strict=True)
    }
