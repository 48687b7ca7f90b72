"""OpenAI's original layout: config.json and safetensors with fused query, key and value rows."""

from __future__ import annotations

from pathlib import Path

from aperto.config import ModelConfig
from aperto.errors import FormatError
from aperto.formats import jsonconfig
from aperto.formats.checkpoint import Checkpoint, Stored
from aperto.formats.hf import Shards, folder_tokenizer, mxfp4_pair, plain
from aperto.formats.jsonfile import read_object
from aperto.formats.lineage import read_lineage
from aperto.formats.names import all_names, is_expert_weight, tensor_shapes
from aperto.formats.safetensors import SafetensorsFile
from aperto.formats.tensor import DType, Tensor


def open_openai(folder: Path) -> Checkpoint:
    """Open a folder in the original layout."""
    generation = folder / "generation_config.json"
    generation_config = read_object(generation) if generation.is_file() else {}
    path = folder / "config.json"
    config = jsonconfig.from_openai(read_object(path), generation_config, path)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FormatError(
            f"{folder}: found no .safetensors file; expected the weights beside config.json"
        )
    shards = Shards([SafetensorsFile(file) for file in files], folder)
    stored = _stored(config, shards)
    notes = shards.finish()
    return Checkpoint(
        path=folder,
        layout="openai",
        config=config,
        stored=stored,
        files=(path, *files),
        notes=notes,
        generation_config=generation_config,
        tokenizer=lambda: folder_tokenizer(folder),
        lineage=read_lineage(folder),
    )


def qkv_rows(config: ModelConfig, canonical: str) -> slice:
    """Return the rows of the fused tensor that hold this q, k or v tensor."""
    q, kv = config.q_size, config.kv_size
    part = canonical.split(".")[-2]
    return {"q": slice(0, q), "k": slice(q, q + kv), "v": slice(q + kv, q + 2 * kv)}[part]


def is_qkv(canonical: str) -> bool:
    """Whether this tensor is a slice of the fused one."""
    return ".attn." in canonical and canonical.split(".")[-2] in ("q", "k", "v")


def _stored(config: ModelConfig, shards: Shards) -> dict[str, Stored]:
    shapes = tensor_shapes(config)
    stored: dict[str, Stored] = {}
    for row in all_names(config):
        name, shape = row.canonical, shapes[row.canonical]
        if is_expert_weight(name):
            stored[name] = mxfp4_pair(
                shards, name, f"{row.openai}.blocks", f"{row.openai}.scales", shape
            )
        elif is_qkv(name):
            stored[name] = _qkv_part(config, shards, name, row.openai, shape)
        else:
            stored[name] = plain(shards, name, row.openai, shape)
    return stored


def _qkv_part(
    config: ModelConfig, shards: Shards, canonical: str, name: str, shape: tuple[int, ...]
) -> Stored:
    """Describe a row slice of the fused tensor; a view, not a copy."""
    fused = (config.q_size + 2 * config.kv_size, *shape[1:])
    file = shards.take(name, fused, ("BF16", "F16", "F32"))
    dtype = DType(file.entries[name].dtype)
    rows = qkv_rows(config, canonical)
    return Stored(dtype, file.path, lambda: Tensor(canonical, dtype, shape, file.array(name)[rows]))
