"""`write_checkpoint`: stream a model to disk in any of the three layouts.

A layout is a plan: files, each a list of pieces with a stored name, type, shape and a function that
reads the data. The plan is sized first, then written piece by piece to a temporary place, and
renamed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from aperto.errors import UnsupportedError, UsageError
from aperto.formats import gguf, jsonconfig, safetensors, vocabulary
from aperto.formats.checkpoint import LAYOUTS, Layout, TensorSource, TokenizerSource
from aperto.formats.disk import require_free, sync_file
from aperto.formats.ggufmeta import gguf_metadata
from aperto.formats.ggufmodel import to_gguf_nibbles
from aperto.formats.hf import INDEX, SINGLE
from aperto.formats.licence import FILES as LICENCES
from aperto.formats.licence import licences
from aperto.formats.lineage import FILE as LINEAGE
from aperto.formats.lineage import GGUF_KEY, Lineage
from aperto.formats.names import Names, all_names, is_expert_weight, is_gate_up, is_matrix
from aperto.formats.openai import is_qkv
from aperto.formats.q8 import encode_q8_0
from aperto.formats.tensor import PLAIN_TYPES, DType, Tensor, TensorInfo, float32_to_bf16

MAX_SHARD_BYTES = 5_000_000_000
_CARRIED = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    *LICENCES,
)
_CHUNK_ELEMENTS = 1 << 20  # converted at a time, in whole rows: under 32 MiB of temporaries
_EXAMINED_ELEMENTS = 1 << 20  # float32 tensors up to this size are stored as BF16 if that is exact

Array = NDArray[Any]
Progress = Callable[[int, int], None]
"""Called with (bytes written, bytes in all)."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    """One stored tensor, not yet read."""

    name: str
    kind: str
    """Safetensors element type, or the DType of a GGUF tensor."""
    shape: tuple[int, ...]
    """As stored: raw bytes for MXFP4 in safetensors, logical in GGUF."""
    nbytes: int
    read: Callable[[], Iterator[Array]]
    """Yields the data in order, in one or more arrays."""


def write_checkpoint(
    source: TensorSource,
    path: str | Path,
    layout: Layout,
    *,
    tokenizer_from: TokenizerSource | None = None,
    dense: DType | None = None,
    lineage: Lineage | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write a model as a folder ("hf", "openai") or a file ("gguf"), tensor by tensor.

    Types are kept unless the layout has no room for them: Q8_0 becomes float32 in safetensors, and
    small tensors become float32 in GGUF, both exactly. `dense` converts embedding, head and
    attention matrices: BF16, F16 or F32, and Q8_0 for GGUF. `tokenizer_from` replaces the source's
    vocabulary. `lineage` says how it was made; by default it is the source's own. What has one
    carries LICENSE and NOTICE: of the folder of the source's vocabulary, or the package's own.
    Nothing appears under `path` until all of it is written.
    Raises UsageError if `path` exists or the request makes no sense, UnsupportedError for plain
    experts in the original layout (quantise them first), DiskSpaceError before anything is written.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        raise UsageError(f"layout is {layout!r}; expected one of {', '.join(LAYOUTS)}")
    if path.exists():
        raise UsageError(f"{path} exists already; expected a new name; delete it or choose another")
    if dense is DType.MXFP4 or (dense is DType.Q8_0 and layout != "gguf"):
        raise UsageError(
            f"dense matrices cannot be {dense} in layout {layout}; expected BF16, F16 or F32"
        )
    tokenizer = tokenizer_from or source.tokenizer_source()
    lineage = lineage or getattr(source, "lineage", None)
    source = _Latest(source)
    pieces = _plan(source, layout, dense)
    total = sum(piece.nbytes for piece in pieces)
    require_free(path.parent, total, f"writing {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    report = _Counter(total, progress)
    if layout == "gguf":
        _write_gguf(source, path, pieces, tokenizer, lineage, report)
    else:
        _write_folder(source, path, layout, pieces, tokenizer, lineage, max_shard_bytes, report)


class _Latest:
    """A source that keeps the last tensor: blocks and scales, gate and up, come from one read."""

    def __init__(self, source: TensorSource) -> None:
        self.config = source.config
        self.generation_config = source.generation_config
        self.names = source.names
        self.info = source.info
        self.tokenizer_source = source.tokenizer_source
        self._source = source
        self._tensor: Tensor | None = None

    def tensor(self, name: str) -> Tensor:
        if self._tensor is None or self._tensor.name != name:
            self._tensor = None  # freed before the next one is read
            self._tensor = self._source.tensor(name)
        return self._tensor


class _Counter:
    """Adds up what was written and passes it on."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total = total
        self.done = 0
        self.progress = progress

    def write(self, file: IO[bytes], piece: _Piece) -> None:
        written = 0
        for array in piece.read():
            data = np.ascontiguousarray(array)
            file.write(data.reshape(-1).view(np.uint8).data)
            written += data.nbytes
            if self.progress:
                self.progress(self.done + written, self.total)
        assert written == piece.nbytes, f"{piece.name}: {written} bytes, {piece.nbytes} planned"
        self.done += written


# --- plans --------------------------------------------------------------------------------------


def _plan(source: TensorSource, layout: Layout, dense: DType | None) -> list[_Piece]:
    make = {"hf": _hf_pieces, "openai": _openai_pieces, "gguf": _gguf_pieces}[layout]
    rows = {row.canonical: row for row in all_names(source.config)}
    pieces: list[_Piece] = []
    for name in rows:
        if layout == "openai" and is_qkv(name) and ".q." not in name:
            continue  # written together with q
        pieces += make(source, rows, name, dense)
    return pieces


def _target(source: TensorSource, info: TensorInfo, dense: DType | None) -> DType:
    """Choose the type in which a plain tensor is stored in safetensors."""
    if dense and is_matrix(info.name):
        return dense
    if info.dtype is DType.Q8_0:
        return DType.F32
    if info.dtype is DType.F32 and math.prod(info.shape) <= _EXAMINED_ELEMENTS:
        bits = source.tensor(info.name).data.view(np.uint32)
        return DType.BF16 if not (bits & np.uint32(0xFFFF)).any() else DType.F32
    return info.dtype


def _converted(tensor: Tensor, dtype: DType) -> Iterator[Array]:
    """Yield a tensor's data in another plain type, or Q8_0: raw, as stored, some rows at a time.

    Raises TensorError for values that the type cannot hold.
    """
    num_rows, *row_shape = tensor.shape
    step = max(1, _CHUNK_ELEMENTS // math.prod(row_shape))
    for begin in range(0, num_rows, step):
        data = tensor.data[begin : begin + step]
        shape = (len(data), *row_shape)
        yield _convert(dataclasses.replace(tensor, data=data, shape=shape), dtype)


def _convert(tensor: Tensor, dtype: DType) -> Array:
    if tensor.dtype is dtype:
        return tensor.data
    values = tensor.to_float32()
    match dtype:
        case DType.BF16:
            return float32_to_bf16(values)
        case DType.Q8_0:
            return encode_q8_0(values)
        case DType.F16:
            with np.errstate(over="ignore"):
                half = values.astype(np.float16)
            if not np.isfinite(half).all():
                raise UnsupportedError(
                    f"{tensor.name}: values up to {np.abs(values).max():.4g} do not fit into F16; "
                    "store it as BF16"
                )
            return half
        case _:
            return values


def _plain_piece(
    name: str, dtype: DType, shape: tuple[int, ...], read: Callable[[], Iterator[Array]]
) -> _Piece:
    return _Piece(name, str(dtype), shape, math.prod(shape) * PLAIN_TYPES[dtype].itemsize, read)


def _mxfp4_pieces(source: TensorSource, name: str, blocks: str, scales: str) -> list[_Piece]:
    shape = source.info(name).shape
    grid = (*shape[:-1], shape[-1] // 32)

    def read_scales() -> Iterator[Array]:
        data = source.tensor(name).scales
        assert data is not None
        yield data

    return [
        _Piece(
            blocks,
            "U8",
            (*grid, 16),
            math.prod(grid) * 16,
            lambda: iter([source.tensor(name).data]),
        ),
        _Piece(scales, "U8", grid, math.prod(grid), read_scales),
    ]


def _hf_pieces(
    source: TensorSource, rows: dict[str, Names], name: str, dense: DType | None
) -> list[_Piece]:
    info, stored = source.info(name), rows[name].hf
    if info.dtype is DType.MXFP4:
        return _mxfp4_pieces(source, name, f"{stored}_blocks", f"{stored}_scales")
    dtype = _target(source, info, dense)
    if not is_expert_weight(name):
        return [
            _plain_piece(stored, dtype, info.shape, lambda: _converted(source.tensor(name), dtype))
        ]

    num_experts, out_rows, width = info.shape

    def transposed() -> Iterator[Array]:
        tensor = source.tensor(name)
        for data in tensor.data:
            if tensor.dtype is not dtype:
                expert = dataclasses.replace(tensor, data=data, shape=(out_rows, width))
                data = np.concatenate(list(_converted(expert, dtype)))
            yield data.T

    return [_plain_piece(stored, dtype, (num_experts, width, out_rows), transposed)]


def _openai_pieces(
    source: TensorSource, rows: dict[str, Names], name: str, dense: DType | None
) -> list[_Piece]:
    info, stored = source.info(name), rows[name].openai
    if info.dtype is DType.MXFP4:
        return _mxfp4_pieces(source, name, f"{stored}.blocks", f"{stored}.scales")
    if is_expert_weight(name):
        raise UnsupportedError(
            f"{name} is {info.dtype}; the original layout holds experts as MXFP4 only; "
            "quantise them first"
        )
    if not is_qkv(name):
        dtype = _target(source, info, dense)
        return [
            _plain_piece(stored, dtype, info.shape, lambda: _converted(source.tensor(name), dtype))
        ]
    parts = [name.replace(".q.", f".{part}.") for part in ("q", "k", "v")]
    targets = {_target(source, source.info(part), dense) for part in parts}
    dtype = targets.pop() if len(targets) == 1 else DType.F32
    shapes = [source.info(part).shape for part in parts]
    shape = (sum(own[0] for own in shapes), *shapes[0][1:])
    return [
        _plain_piece(
            stored,
            dtype,
            shape,
            lambda: (data for part in parts for data in _converted(source.tensor(part), dtype)),
        )
    ]


def _gguf_pieces(
    source: TensorSource, rows: dict[str, Names], name: str, dense: DType | None
) -> list[_Piece]:
    info, stored = source.info(name), rows[name].gguf
    if is_expert_weight(name):
        dtype = info.dtype
    elif is_matrix(name):
        dtype = dense or info.dtype
    else:
        dtype = DType.F32  # llama.cpp computes with these in float32 and expects them so
    shape = info.shape
    if not is_gate_up(name):
        return [_gguf_piece(stored, dtype, shape, lambda: _gguf_data(source.tensor(name), dtype))]
    half = (shape[0], shape[1] // 2, *shape[2:])
    return [
        _gguf_piece(
            stored.format(part=part),
            dtype,
            half,
            functools.partial(_every_other_row, source, name, dtype, start),
        )
        for start, part in enumerate(("gate", "up"))
    ]


def _gguf_piece(
    name: str, dtype: DType, shape: tuple[int, ...], read: Callable[[], Iterator[Array]]
) -> _Piece:
    return _Piece(name, str(dtype), shape, gguf.tensor_bytes(gguf.TYPE_IDS[dtype], shape), read)


def _every_other_row(source: TensorSource, name: str, dtype: DType, start: int) -> Iterator[Array]:
    return _gguf_data(source.tensor(name), dtype, slice(start, None, 2))


def _gguf_data(tensor: Tensor, dtype: DType, rows: slice | None = None) -> Iterator[Array]:
    """Yield data as GGUF stores it; experts one at a time, of gate_up every other row."""
    if len(tensor.shape) < 3:
        for data in _converted(tensor, dtype):
            yield data if rows is None else data[:, rows]
        return
    own = rows or slice(None)
    for expert in range(tensor.shape[0]):
        if tensor.scales is None:
            yield tensor.data[expert, own]
        else:
            blocks = to_gguf_nibbles(tensor.data[expert, own])
            yield np.concatenate([tensor.scales[expert, own, :, None], blocks], axis=-1)


# --- files --------------------------------------------------------------------------------------


def _write_gguf(
    source: TensorSource,
    path: Path,
    pieces: list[_Piece],
    tokenizer: TokenizerSource,
    lineage: Lineage | None,
    report: _Counter,
) -> None:
    metadata = gguf_metadata(source, tokenizer, {piece.kind for piece in pieces}, path.stem)
    if lineage is not None:
        metadata[GGUF_KEY] = lineage.to_json()
        metadata |= {f"aperto.{k.lower()}": text for k, text in _licences(source).items()}
    table = {piece.name: (gguf.TYPE_IDS[DType(piece.kind)], piece.shape) for piece in pieces}
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(gguf.preamble_bytes(metadata, table))
            for piece in pieces:
                report.write(file, piece)
                file.write(bytes(gguf.padded(piece.nbytes) - piece.nbytes))
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o644)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _write_folder(
    source: TensorSource,
    path: Path,
    layout: Layout,
    pieces: list[_Piece],
    tokenizer: TokenizerSource,
    lineage: Lineage | None,
    max_shard_bytes: int,
    report: _Counter,
) -> None:
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        shards = _shards(pieces, max_shard_bytes)
        names = _shard_names(len(shards))
        for name, shard in zip(names, shards, strict=True):
            _write_safetensors(partial / name, shard, report)
        if len(shards) > 1 and layout == "hf":
            _write_index(partial / INDEX, names, shards)
        _write_json_files(source, partial, layout)
        _write_tokenizer(source, partial, tokenizer)
        if lineage is not None:
            (partial / LINEAGE).write_text(lineage.to_json(), encoding="utf-8")
            for name, text in _licences(source).items():
                (partial / name).write_text(text, encoding="utf-8")
        for name in names:
            sync_file(partial / name)
        partial.chmod(0o755)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _licences(source: TensorSource) -> dict[str, str]:
    """The texts that go with what is derived from a model."""
    file = source.tokenizer_source().path
    return licences(file.parent if file else None)


def _shards(pieces: list[_Piece], limit: int) -> list[list[_Piece]]:
    """Fill shards in order up to a limit; a larger piece gets one of its own."""
    shards: list[list[_Piece]] = [[]]
    size = 0
    for piece in pieces:
        if shards[-1] and size + piece.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(piece)
        size += piece.nbytes
    return shards


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    return [f"model-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1)]


def _write_safetensors(path: Path, pieces: list[_Piece], report: _Counter) -> None:
    entries = {piece.name: (piece.kind, piece.shape) for piece in pieces}
    with path.open("wb") as file:
        file.write(safetensors.header_bytes(entries, {"format": "pt"}))
        for piece in pieces:
            report.write(file, piece)


def _write_index(path: Path, names: list[str], shards: list[list[_Piece]]) -> None:
    total = sum(piece.nbytes for shard in shards for piece in shard)
    weight_map = {
        piece.name: name for name, shard in zip(names, shards, strict=True) for piece in shard
    }
    _write_json(path, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_json_files(source: TensorSource, folder: Path, layout: Layout) -> None:
    config = source.config
    if layout == "hf":
        mxfp4 = source.info("layers.0.moe.down.weight").dtype is DType.MXFP4
        raw = jsonconfig.to_hf(config, experts_are_mxfp4=mxfp4)
    else:
        raw = jsonconfig.to_openai(config)
    _write_json(folder / "config.json", raw)
    generation = dict(source.generation_config)
    if config.eos_token_ids:
        generation["eos_token_id"] = list(config.eos_token_ids)
    if generation:
        _write_json(folder / "generation_config.json", generation)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tokenizer(source: TensorSource, folder: Path, tokenizer: TokenizerSource) -> None:
    """Carry the vocabulary along, and from a folder also the files beside it."""
    if tokenizer.kind == "gguf":
        (folder / "tokenizer.json").write_text(
            vocabulary.tokenizer_json(tokenizer), encoding="utf-8"
        )
        eos = source.config.eos_token_ids
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        if eos and eos[0] < len(tokenizer.tokens):
            settings["eos_token"] = tokenizer.tokens[eos[0]]
        _write_json(folder / "tokenizer_config.json", settings)
    elif tokenizer.kind == "hf":
        assert tokenizer.path is not None
        shutil.copyfile(tokenizer.path, folder / "tokenizer.json")
        for name in _CARRIED:
            if (tokenizer.path.parent / name).is_file():
                shutil.copyfile(tokenizer.path.parent / name, folder / name)
