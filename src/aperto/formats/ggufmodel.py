"""gpt-oss inside a GGUF file: metadata to configuration, split experts to canonical rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aperto.config import LayerConfig, ModelConfig, RopeConfig
from aperto.errors import FormatError, UnsupportedError
from aperto.formats import jsonconfig, vocabulary
from aperto.formats.checkpoint import (
    Checkpoint,
    Stored,
    TokenizerSource,
    missing_error,
    shape_error,
)
from aperto.formats.gguf import GgufFile, GgufTensor, StringArray, dequantize
from aperto.formats.jsonfile import Fields
from aperto.formats.lineage import GGUF_KEY, parse_lineage
from aperto.formats.names import Names, all_names, is_gate_up, tensor_shapes
from aperto.formats.tensor import PLAIN_TYPES, DType, Tensor

ARCHITECTURE = "gpt-oss"
_PREFIX = f"{ARCHITECTURE}."
_SPLIT = re.compile(r"^(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})$")
_LOSSLESS = frozenset(DType)

Array = NDArray[Any]


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file, or all parts of a split one given its first."""
    files = [GgufFile(part) for part in _parts(path)]
    metadata = files[0].metadata
    architecture = metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise UnsupportedError(
            f"{path}: general.architecture is {architecture!r:.80}; aperto runs {ARCHITECTURE} only"
        )
    table = _Table(files, path)
    config = _config(metadata, table, path)
    stored = _stored(config, table)
    return Checkpoint(
        path=path,
        layout="gguf",
        config=config,
        stored=stored,
        files=tuple(file.path for file in files),
        notes=table.finish(),
        generation_config={"eos_token_id": list(config.eos_token_ids)}
        if config.eos_token_ids
        else {},
        tokenizer=lambda: _tokenizer(metadata, path),
        lineage=parse_lineage(metadata.get(GGUF_KEY), str(path)),
    )


def _parts(path: Path) -> list[Path]:
    match = _SPLIT.match(path.stem)
    if not match:
        return [path]
    parts = int(match["parts"])
    names = [
        f"{match['stem']}-{part:05d}-of-{parts:05d}.gguf" for part in range(1, min(parts, 9999) + 1)
    ]
    paths = [path.with_name(name) for name in names]
    for part in paths:
        if not part.is_file():
            raise FormatError(
                f"{part}: this part is missing; expected {parts} parts; download it again"
            )
    return paths


class _Table:
    """The tensors of all parts; remembers which were used and which lose precision."""

    def __init__(self, files: list[GgufFile], path: Path) -> None:
        self.path = path
        self.holder: dict[str, tuple[GgufFile, GgufTensor]] = {}
        for file in files:
            for name, tensor in file.tensors.items():
                if name in self.holder:
                    raise FormatError(
                        f"{file.path}: tensor {name!r} is in another part too; expected it once"
                    )
                self.holder[name] = (file, tensor)
        self.used: set[str] = set()
        self.lossy: dict[str, int] = {}

    def take(self, name: str, shape: tuple[int, ...]) -> tuple[GgufFile, GgufTensor]:
        if name not in self.holder:
            raise missing_error(self.path, name)
        file, tensor = self.holder[name]
        if tensor.shape != shape:
            raise shape_error(file.path, name, tensor.shape, shape)
        self.used.add(name)
        if tensor.type_name not in _LOSSLESS:
            self.lossy[tensor.type_name] = self.lossy.get(tensor.type_name, 0) + 1
        return file, tensor

    def finish(self) -> tuple[str, ...]:
        unknown = [
            name for name in self.holder if name not in self.used and name != "rope_freqs.weight"
        ]
        if unknown:
            raise UnsupportedError(
                f"{self.path}: found {len(unknown)} tensors that gpt-oss does not have, such as "
                f"{unknown[0]!r}; expected none: leaving them out would change the answers"
            )
        return tuple(
            f"{count} tensors are {kind}, a lossy type: they are dequantised to float32, and what "
            "the quantisation lost stays lost; experts are quantised to MXFP4 again to run"
            for kind, count in sorted(self.lossy.items())
        )


# --- configuration ------------------------------------------------------------------------------


def _config(metadata: Mapping[str, Any], table: _Table, path: Path) -> ModelConfig:
    own = {
        key.removeprefix(_PREFIX): value
        for key, value in metadata.items()
        if key.startswith(_PREFIX)
    }
    fields = Fields(own, str(path))
    extra = Fields(dict(metadata), str(path))
    num_layers = fields.count("block_count", high=jsonconfig.MAX_LAYERS)
    heads = fields.count("attention.head_count", high=jsonconfig.MAX_WIDTH)
    hidden = fields.count("embedding_length", high=jsonconfig.MAX_WIDTH)
    embedding = table.holder.get("token_embd.weight")
    if embedding is None:
        raise missing_error(path, "token_embd.weight")
    eos = extra.raw.get("aperto.eos_token_ids", extra.raw.get("tokenizer.ggml.eos_token_id"))
    return jsonconfig.build_config(
        str(path),
        vocab_size=embedding[1].shape[0],
        hidden_size=hidden,
        intermediate_size=fields.count("expert_feed_forward_length", high=jsonconfig.MAX_WIDTH),
        head_dim=fields.count(
            "attention.key_length", high=jsonconfig.MAX_WIDTH, default=max(hidden // heads, 1)
        ),
        num_attention_heads=heads,
        num_key_value_heads=fields.count(
            "attention.head_count_kv", high=jsonconfig.MAX_WIDTH, default=heads
        ),
        layers=_layers(fields, num_layers),
        rope=_rope(fields, extra),
        max_context=fields.count("context_length", default=131072),
        swiglu_limit=extra.number("aperto.swiglu_limit", default=7.0),
        rms_norm_eps=_shortest(
            fields.number("attention.layer_norm_rms_epsilon", high=1.0, default=1e-5)
        ),
        eos_token_ids=jsonconfig.eos_ids({}, {"eos_token_id": eos}, str(path)),
        pad_token_id=jsonconfig.pad_id(
            Fields({"pad": extra.raw.get("tokenizer.ggml.padding_token_id")}, str(path)), "pad"
        ),
    )


def _shortest(value: float) -> float:
    """Return the shortest decimal that has this float32 value: 1e-5, not 9.99999974e-06."""
    return float(str(np.float32(value)))


def _layers(fields: Fields, num_layers: int) -> tuple[LayerConfig, ...]:
    experts = _each(fields, "expert_count", num_layers, low=1)
    top_k = _each(fields, "expert_used_count", num_layers, low=1)
    windows = _each(fields, "attention.sliding_window", num_layers, low=0)
    if not isinstance(fields.raw.get("attention.sliding_window"), list):
        # One window: which layers have it is a period (the last of each is full) or a list.
        pattern = fields.raw.get("attention.sliding_window_pattern", 2)
        if isinstance(pattern, list):
            flags = _each(fields, "attention.sliding_window_pattern", num_layers, low=0)
        else:
            period = fields.count("attention.sliding_window_pattern", low=0, default=2)
            flags = [int(period == 0 or i % period < period - 1) for i in range(num_layers)]
        windows = [window if flag else 0 for window, flag in zip(windows, flags, strict=True)]
    return tuple(LayerConfig(*item) for item in zip(windows, experts, top_k, strict=True))


def _each(fields: Fields, name: str, num_layers: int, low: int) -> list[int]:
    """Read a number that stands once, or once a layer."""
    value = fields.raw.get(name)
    if not isinstance(value, list):
        return [fields.count(name, low=low)] * num_layers
    if len(value) != num_layers:
        raise fields.error(name, value, f"{num_layers} numbers")
    return [Fields({name: int(item)}, fields.where).count(name, low=low) for item in value]


def _rope(fields: Fields, extra: Fields) -> RopeConfig:
    theta = _shortest(fields.number("rope.freq_base", low=1.0, high=1e12, default=150000.0))
    kind = fields.raw.get("rope.scaling.type", "none")
    if kind == "none":
        return RopeConfig(theta=theta, factor=1.0)
    if kind != "yarn":
        raise UnsupportedError(
            f"{fields.where}: rope.scaling.type is {kind!r:.40}; expected yarn or none"
        )
    return RopeConfig(
        theta=theta,
        factor=_shortest(fields.number("rope.scaling.factor", low=1.0)),
        beta_fast=_shortest(fields.number("rope.scaling.yarn_beta_fast", default=32.0)),
        beta_slow=_shortest(fields.number("rope.scaling.yarn_beta_slow", default=1.0)),
        original_context=fields.count("rope.scaling.original_context_length", default=4096),
        truncate=extra.flag("aperto.rope_truncate", False),
    )


def _tokenizer(metadata: Mapping[str, Any], path: Path) -> TokenizerSource:
    model = metadata.get("tokenizer.ggml.model", "none")
    if model in ("none", "no_vocab"):
        return TokenizerSource("bundled")
    if model != "gpt2":
        raise UnsupportedError(
            f"{path}: tokenizer.ggml.model is {model!r:.40}; expected gpt2 (byte-level BPE)"
        )
    tokens, merges = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.merges")
    types = metadata.get("tokenizer.ggml.token_type", [])
    if not isinstance(tokens, StringArray) or not isinstance(types, list):
        raise FormatError(
            f"{path}: tokenizer.ggml.tokens and token_type are no lists; expected the vocabulary"
        )
    if types and len(types) != len(tokens):
        raise FormatError(
            f"{path}: {len(types)} token types for {len(tokens)} tokens; expected as many"
        )
    return TokenizerSource(
        "gguf",
        tokens=tokens.decode(),
        merges=merges.decode() if isinstance(merges, StringArray) else (),
        token_types=tuple(types) or (vocabulary.NORMAL,) * len(tokens),
    )


# --- tensors ------------------------------------------------------------------------------------


def _stored(config: ModelConfig, table: _Table) -> dict[str, Stored]:
    shapes = tensor_shapes(config)
    tied = "output.weight" not in table.holder
    stored: dict[str, Stored] = {}
    for row in all_names(config):
        shape = shapes[row.canonical]
        if is_gate_up(row.canonical):
            stored[row.canonical] = _gate_up(table, row, shape)
        else:
            name = "token_embd.weight" if tied and row.gguf == "output.weight" else row.gguf
            stored[row.canonical] = _single(table, row.canonical, name, shape)
    return stored


def _kept_type(tensor: GgufTensor) -> DType:
    """Return the type in which the tensor is handed out."""
    return DType(tensor.type_name) if tensor.type_name in _LOSSLESS else DType.F32


def _single(table: _Table, canonical: str, name: str, shape: tuple[int, ...]) -> Stored:
    file, tensor = table.take(name, shape)
    dtype = _kept_type(tensor)

    def load() -> Tensor:
        array = _typed(file, tensor)
        if dtype is DType.MXFP4:
            return _mxfp4(canonical, shape, array)
        return Tensor(canonical, dtype, shape, array)

    return Stored(dtype, file.path, load)


def _typed(file: GgufFile, tensor: GgufTensor) -> Array:
    """View a tensor as [shape], or as [..., blocks of a row, bytes of a block]."""
    raw = file.raw(tensor)
    if tensor.type_name not in _LOSSLESS:
        return dequantize(raw, tensor, file.path)
    dtype = DType(tensor.type_name)
    if dtype in PLAIN_TYPES:
        return raw.view(PLAIN_TYPES[dtype])
    return raw.reshape(*tensor.shape[:-1], -1, tensor.block_bytes)


def _gate_up(table: _Table, row: Names, shape: tuple[int, ...]) -> Stored:
    """Describe gate and up, two tensors or halves of a fused one, as interleaved rows."""
    half = (shape[0], shape[1] // 2, *shape[2:])
    fused = row.gguf.format(part="gate_up")
    if fused in table.holder:
        file, tensor = table.take(fused, shape)
        kinds = {tensor.type_name}
        dtype = _kept_type(tensor)

        def parts() -> tuple[Array, Array]:
            both = _typed(file, tensor)
            return both[:, : half[1]], both[:, half[1] :]

    else:
        file, tensor = table.take(row.gguf.format(part="gate"), half)
        up_file, up_tensor = table.take(row.gguf.format(part="up"), half)
        kinds = {tensor.type_name, up_tensor.type_name}
        dtype = _kept_type(tensor) if len(kinds) == 1 else DType.F32

        def parts() -> tuple[Array, Array]:
            if len(kinds) == 1:
                return _typed(file, tensor), _typed(up_file, up_tensor)
            return _values(file, tensor), _values(up_file, up_tensor)

    return Stored(dtype, file.path, _interleaver(row.canonical, dtype, shape, parts))


def _interleaver(
    canonical: str, dtype: DType, shape: tuple[int, ...], parts: Callable[[], tuple[Array, Array]]
) -> Callable[[], Tensor]:
    def load() -> Tensor:
        gate, up = parts()
        rows = np.empty((gate.shape[0], 2 * gate.shape[1], *gate.shape[2:]), gate.dtype)
        rows[:, 0::2] = gate
        rows[:, 1::2] = up
        return (
            _mxfp4(canonical, shape, rows)
            if dtype is DType.MXFP4
            else Tensor(canonical, dtype, shape, rows)
        )

    return load


def _values(file: GgufFile, tensor: GgufTensor) -> Array:
    """Read a tensor of any type as float32."""
    array, dtype = _typed(file, tensor), _kept_type(tensor)
    if dtype is DType.MXFP4:
        return _mxfp4(tensor.name, tensor.shape, array).to_float32()
    return Tensor(tensor.name, dtype, tensor.shape, array).to_float32()


def _mxfp4(canonical: str, shape: tuple[int, ...], stored: Array) -> Tensor:
    """Split uint8 [experts, rows, K/32, 17] into scales and blocks of canonical nibble order."""
    blocks = np.empty((*stored.shape[:-1], 16), np.uint8)
    for expert, own in enumerate(stored):  # one at a time, to bound the temporaries
        blocks[expert] = from_gguf_nibbles(own[..., 1:])
    return Tensor(canonical, DType.MXFP4, shape, blocks, np.ascontiguousarray(stored[..., 0]))


def from_gguf_nibbles(blocks: Array) -> Array:
    """Re-order [..., 16]: byte j = elements j and j+16 becomes byte j = elements 2j and 2j+1."""
    low, high = blocks & np.uint8(15), blocks >> np.uint8(4)
    joined: Array = np.concatenate(
        [half[..., 0::2] | (half[..., 1::2] << np.uint8(4)) for half in (low, high)], axis=-1
    )
    return joined


def to_gguf_nibbles(blocks: Array) -> Array:
    """Undo `from_gguf_nibbles`."""
    codes = np.stack([blocks & np.uint8(15), blocks >> np.uint8(4)], axis=-1)
    codes = codes.reshape(*blocks.shape[:-1], 32)
    packed: Array = codes[..., :16] | (codes[..., 16:] << np.uint8(4))
    return packed
