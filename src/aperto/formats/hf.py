"""The Hugging Face layout: config.json and one or more safetensors shards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from aperto.config import ModelConfig
from aperto.errors import FormatError, TensorError, UnsupportedError
from aperto.formats import jsonconfig
from aperto.formats.checkpoint import (
    Checkpoint,
    Stored,
    TokenizerSource,
    missing_error,
    shape_error,
)
from aperto.formats.jsonfile import read_object
from aperto.formats.lineage import read_lineage
from aperto.formats.names import all_names, is_expert_weight, tensor_shapes
from aperto.formats.safetensors import SafetensorsFile
from aperto.formats.tensor import BLOCK, DType, Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

# Scales of a quantised KV cache and stored rope tables: no part of the model's own arithmetic.
_IGNORED = re.compile(r"\.([qkv]_scale|[qkv]_proj\.[qkv]_scale|rotary_emb\.inv_freq)$")


class Shards:
    """Several safetensors files as one mapping of stored names."""

    def __init__(self, files: list[SafetensorsFile], path: Path) -> None:
        self.path = path
        self.files = files
        self.holder: dict[str, SafetensorsFile] = {}
        for file in files:
            for name in file.entries:
                if name in self.holder:
                    raise FormatError(
                        f"{file.path}: tensor {name!r} is also in {self.holder[name].path.name}; "
                        "expected each tensor once"
                    )
                self.holder[name] = file
        self.used: set[str] = set()

    def take(self, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> SafetensorsFile:
        """Check that a tensor is there with this shape and one of these types; mark it as used."""
        file = self.holder.get(name)
        if file is None:
            raise missing_error(self.path, name)
        entry = file.entries[name]
        if entry.dtype not in dtypes:
            raise TensorError(
                f"{file.path}: tensor {name!r} has element type {entry.dtype}; expected "
                f"{' or '.join(dtypes)}"
            )
        if entry.shape != shape:
            raise shape_error(file.path, name, entry.shape, shape)
        self.used.add(name)
        return file

    def finish(self) -> tuple[str, ...]:
        """Refuse tensors that nobody took, which would change the model; note harmless ones."""
        left = [name for name in self.holder if name not in self.used]
        unknown = [name for name in left if not _IGNORED.search(name)]
        if unknown:
            raise UnsupportedError(
                f"{self.path}: found {len(unknown)} tensors that gpt-oss does not have, such as "
                f"{unknown[0]!r}; expected none: leaving them out would change the answers; merge "
                "adapters into the weights first"
            )
        return (f"ignored {len(left)} tensors such as {left[0]!r}",) if left else ()


def open_hf(folder: Path) -> Checkpoint:
    """Open a folder in the Hugging Face layout."""
    generation = folder / "generation_config.json"
    generation_config = read_object(generation) if generation.is_file() else {}
    raw = read_object(folder / "config.json")
    config = jsonconfig.from_hf(raw, generation_config, str(folder / "config.json"))
    shards = _open_shards(folder)
    tied = bool(raw.get("tie_word_embeddings")) and "lm_head.weight" not in shards.holder
    stored = _stored(config, shards, tied)
    notes = shards.finish()
    if any(is_expert_weight(n) and s.dtype is not DType.MXFP4 for n, s in stored.items()):
        notes += ("the experts are stored unquantised; running needs them quantised to MXFP4",)
    return Checkpoint(
        path=folder,
        layout="hf",
        config=config,
        stored=stored,
        files=(folder / "config.json", *(file.path for file in shards.files)),
        notes=notes,
        generation_config=generation_config,
        tokenizer=lambda: folder_tokenizer(folder),
        lineage=read_lineage(folder),
    )


def folder_tokenizer(folder: Path) -> TokenizerSource:
    """Return the folder's tokenizer.json, or the bundled vocabulary."""
    file = folder / "tokenizer.json"
    return TokenizerSource("hf", path=file) if file.is_file() else TokenizerSource("bundled")


def _open_shards(folder: Path) -> Shards:
    """Open the shards that the index names, or the single file."""
    if not (folder / INDEX).is_file():
        return Shards([SafetensorsFile(folder / SINGLE)], folder)
    weight_map = read_object(folder / INDEX).get("weight_map")
    where = folder / INDEX
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(
            f"{where}: weight_map is {weight_map!r:.80}; expected files by tensor name"
        )
    for name, file in weight_map.items():
        if (
            not isinstance(file, str)
            or Path(file).name != file
            or not file.endswith(".safetensors")
        ):
            raise FormatError(
                f"{where}: tensor {name!r} is said to be in {file!r:.120}; expected the plain name "
                "of a .safetensors file in the same folder"
            )
    files = [SafetensorsFile(folder / file) for file in sorted(set(weight_map.values()))]
    shards = Shards(files, folder)
    for name, file in weight_map.items():
        if name not in shards.holder or shards.holder[name].path.name != file:
            raise TensorError(
                f"{folder / file}: tensor {name!r} is missing; the index expects it here"
            )
    return shards


def _stored(config: ModelConfig, shards: Shards, tied: bool) -> dict[str, Stored]:
    shapes = tensor_shapes(config)
    stored: dict[str, Stored] = {}
    for row in all_names(config):
        shape = shapes[row.canonical]
        if is_expert_weight(row.canonical):
            stored[row.canonical] = _experts(shards, row.canonical, row.hf, shape)
        else:
            name = "model.embed_tokens.weight" if tied and row.hf == "lm_head.weight" else row.hf
            stored[row.canonical] = plain(shards, row.canonical, name, shape)
    return stored


def plain(shards: Shards, canonical: str, name: str, shape: tuple[int, ...]) -> Stored:
    """Describe a tensor that is stored as it is."""
    file = shards.take(name, shape, ("BF16", "F16", "F32"))
    dtype = DType(file.entries[name].dtype)
    return Stored(dtype, file.path, lambda: Tensor(canonical, dtype, shape, file.array(name)))


def _experts(shards: Shards, canonical: str, stem: str, shape: tuple[int, ...]) -> Stored:
    """Describe expert matrices: MXFP4, or plain ones as fine-tunes store them, transposed."""
    if stem in shards.holder:
        num_experts, rows, width = shape
        file = shards.take(stem, (num_experts, width, rows), ("BF16", "F16", "F32"))
        dtype = DType(file.entries[stem].dtype)
        return Stored(
            dtype,
            file.path,
            lambda: Tensor(canonical, dtype, shape, np.swapaxes(file.array(stem), 1, 2)),
        )
    return mxfp4_pair(shards, canonical, f"{stem}_blocks", f"{stem}_scales", shape)


def mxfp4_pair(
    shards: Shards, canonical: str, blocks: str, scales: str, shape: tuple[int, ...]
) -> Stored:
    """Describe a tensor stored as MXFP4 blocks and scales."""
    num_experts, rows, width = shape
    grid = (num_experts, rows, width // BLOCK)
    data_file = shards.take(blocks, (*grid, BLOCK // 2), ("U8",))
    scale_file = shards.take(scales, grid, ("U8",))

    def load() -> Tensor:
        data: Any = data_file.array(blocks)
        return Tensor(canonical, DType.MXFP4, shape, data, scale_file.array(scales))

    return Stored(DType.MXFP4, data_file.path, load)
