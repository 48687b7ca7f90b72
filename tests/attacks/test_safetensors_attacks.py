"""Damaged and hostile safetensors files and folders: one typed error each, never more."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.attacks.files import (
    Header,
    edit_header,
    edit_json,
    join_safetensors,
    read_all,
    set_tensor_bytes,
    split_safetensors,
)
from tests.tiny import write_tiny

from aperto.errors import CheckpointError, FormatError, TensorError, UnsupportedError
from aperto.formats import open_checkpoint

NORM = "model.norm.weight"
SCALES = "model.layers.0.mlp.experts.down_proj_scales"
BLOCKS = "model.layers.0.mlp.experts.down_proj_blocks"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "m")


@pytest.fixture
def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def test_the_undamaged_file_is_read(folder: Path) -> None:
    read_all(folder)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 0.5, 0.999])
def test_truncated(folder: Path, weights: Path, keep: float) -> None:
    data = weights.read_bytes()
    weights.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(FormatError, match="expected"):
        open_checkpoint(folder)


def test_bytes_appended(folder: Path, weights: Path) -> None:
    weights.write_bytes(weights.read_bytes() + b"x")
    with pytest.raises(FormatError, match="bytes appended"):
        open_checkpoint(folder)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**12, 100_000_001])
def test_huge_header_length(folder: Path, weights: Path, length: int) -> None:
    weights.write_bytes(struct.pack("<Q", length) + weights.read_bytes()[8:])
    with pytest.raises(FormatError, match="header claims"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": 1, "a": 2}',
        b'{"a": 1}',
        b'{"a": {}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "more": 1}}',
        b'{"__metadata__": {"a": 1}}',
        b'{"__metadata__": 7}',
        b'{"a": {"dtype": 7, "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": 3}',
        b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, Infinity]}}',
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_bad_headers(folder: Path, weights: Path, header: bytes) -> None:
    join_safetensors(weights, header, bytes(4))
    with pytest.raises(FormatError):
        open_checkpoint(folder)


def test_duplicate_keys(folder: Path, weights: Path) -> None:
    header, data = split_safetensors(weights)
    text = json.dumps(header)
    once = json.dumps(NORM) + ": " + json.dumps(header[NORM])
    join_safetensors(weights, (text[:-1] + ", " + once + "}").encode(), data)
    with pytest.raises(FormatError, match="occurs twice"):
        open_checkpoint(folder)


def test_overlapping_tensors(folder: Path, weights: Path) -> None:
    def overlap(header: Header) -> None:
        header[NORM]["data_offsets"] = [offset - 2 for offset in header[NORM]["data_offsets"]]

    edit_header(weights, overlap)
    with pytest.raises(FormatError, match="overlaps"):
        open_checkpoint(folder)


def test_hole_between_tensors(folder: Path, weights: Path) -> None:
    edit_header(weights, lambda header: header.pop(NORM))
    with pytest.raises(FormatError, match=r"hole|file holds"):
        open_checkpoint(folder)


def test_offsets_past_the_end(folder: Path, weights: Path) -> None:
    header, data = split_safetensors(weights)
    last = max(
        (n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][1]
    )
    begin, end = header[last]["data_offsets"]
    header[last] |= {"data_offsets": [begin, begin + 10 * (end - begin)]}
    header[last]["shape"][0] *= 10
    join_safetensors(weights, header, data)
    with pytest.raises(FormatError, match="truncated"):
        open_checkpoint(folder)


def test_wrong_element_type(folder: Path, weights: Path) -> None:
    edit_header(weights, lambda header: header[NORM].update(dtype="I16"))
    with pytest.raises(TensorError, match=r"I16; expected BF16 or F16 or F32"):
        open_checkpoint(folder)


def test_experts_of_a_wrong_type(folder: Path, weights: Path) -> None:
    edit_header(weights, lambda header: header[BLOCKS].update(dtype="I8"))
    with pytest.raises(TensorError, match="expected U8"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", [NORM, SCALES, "model.layers.1.self_attn.q_proj.weight"])
def test_wrong_shape(folder: Path, weights: Path, name: str) -> None:
    def reshape(header: Header) -> None:
        shape = header[name]["shape"]
        header[name]["shape"] = [shape[0] // 2, 2, *shape[1:]]

    edit_header(weights, reshape)
    with pytest.raises(TensorError, match="has shape"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", [NORM, SCALES, "model.layers.1.self_attn.sinks"])
def test_missing_tensor(folder: Path, weights: Path, name: str) -> None:
    drop(weights, name)
    with pytest.raises(TensorError, match=f"'{name}' is missing"):
        open_checkpoint(folder)


def drop(path: Path, name: str) -> None:
    """Remove a tensor and its bytes."""
    header, data = split_safetensors(path)
    begin, end = header.pop(name)["data_offsets"]
    for key, entry in header.items():
        if key != "__metadata__" and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [offset - (end - begin) for offset in entry["data_offsets"]]
    join_safetensors(path, header, data[:begin] + data[end:])


def test_unknown_tensor(folder: Path, weights: Path) -> None:
    header, data = split_safetensors(weights)
    entry = {"dtype": "U8", "shape": [1], "data_offsets": [len(data), len(data) + 1]}
    header["model.layers.0.self_attn.q_proj.lora_A.weight"] = entry
    join_safetensors(weights, header, data + b"\0")
    with pytest.raises(UnsupportedError, match="lora_A"):
        open_checkpoint(folder)


@pytest.mark.parametrize("scale", [253, 254, 255])
def test_scale_beyond_float32_or_nan_is_found_when_the_tensor_is_read(
    folder: Path, weights: Path, scale: int
) -> None:
    set_tensor_bytes(weights, SCALES, bytes([scale]))
    checkpoint = open_checkpoint(folder)
    checkpoint.tensor("layers.1.moe.down.weight")
    with pytest.raises(TensorError, match=rf"layers\.0\.moe\.down\.weight.* is {scale}; expected"):
        checkpoint.tensor("layers.0.moe.down.weight")


@pytest.mark.parametrize("bits", [0x7FC0, 0x7F80, 0xFF80, 0x7F81])
def test_weights_that_are_not_finite(folder: Path, weights: Path, bits: int) -> None:
    set_tensor_bytes(weights, NORM, struct.pack("<H", bits))
    with pytest.raises(TensorError, match="finite"):
        open_checkpoint(folder).tensor("norm.weight")


def test_directories_in_place_of_files(folder: Path, weights: Path) -> None:
    weights.unlink()
    with pytest.raises(FormatError, match="no regular file"):
        open_checkpoint(folder)
    weights.mkdir()
    with pytest.raises(FormatError, match="no regular file"):
        open_checkpoint(folder)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="expected a checkpoint"):
        open_checkpoint(tmp_path)


# --- index --------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "s", shards=2)


@pytest.mark.parametrize(
    "target",
    ["../m/model.safetensors", "/etc/passwd", "a/../b.safetensors", "..", "", "x.bin", 7, None],
)
def test_index_points_outside_the_folder(sharded: Path, target: Any) -> None:
    write_tiny(sharded.parent / "m")
    edit_json(
        sharded / "model.safetensors.index.json",
        lambda index: index["weight_map"].update({NORM: target}),
    )
    with pytest.raises(FormatError, match="plain name"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("value", [None, [], {}, "x", 3])
def test_index_without_a_map(sharded: Path, value: Any) -> None:
    edit_json(
        sharded / "model.safetensors.index.json", lambda index: index.update(weight_map=value)
    )
    with pytest.raises(FormatError, match="weight_map"):
        open_checkpoint(sharded)


def test_shard_missing(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FormatError, match="00002-of-00002"):
        open_checkpoint(sharded)


def test_tensor_in_another_shard_than_the_index_says(sharded: Path) -> None:
    def swap(index: dict[str, Any]) -> None:
        other = {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)} - {
            index["weight_map"][NORM]
        }
        index["weight_map"][NORM] = other.pop()

    edit_json(sharded / "model.safetensors.index.json", swap)
    with pytest.raises(TensorError, match="the index expects it here"):
        open_checkpoint(sharded)


def test_tensor_in_two_shards(sharded: Path) -> None:
    first, second = (sharded / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    second.write_bytes(first.read_bytes())
    with pytest.raises(FormatError, match="is also in"):
        open_checkpoint(sharded)


# --- config.json --------------------------------------------------------------------------------

NUMBERS = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_experts_per_tok",
    "num_local_experts",
    "sliding_window",
    "max_position_embeddings",
]


@pytest.mark.parametrize("value", [-1, 0, 10**30, 1.5, "8", True, [8], {}])
@pytest.mark.parametrize("field", NUMBERS)
def test_numbers_out_of_range(folder: Path, field: str, value: Any) -> None:
    edit_json(folder / "config.json", lambda config: config.update({field: value}))
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


@pytest.mark.parametrize("field", [n for n in NUMBERS if n != "max_position_embeddings"])
def test_missing_fields(folder: Path, field: str) -> None:
    def forget(config: dict[str, Any]) -> None:
        del config[field]
        config.pop("experts_per_token", None)

    edit_json(folder / "config.json", forget)
    with pytest.raises(FormatError, match=f"{field} is nothing"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer_types", ["full_attention"]),
        ("layer_types", ["full_attention", "linear_attention"]),
        ("layer_types", ["full_attention", 7]),
        ("layer_types", ["full_attention", ["full_attention"]]),
        ("layer_types", "full_attention"),
        ("rope_scaling", None),
        ("rope_scaling", []),
        ("rope_scaling", {"rope_type": "yarn"}),
        ("rope_scaling", {"rope_type": "yarn", "factor": -2}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2, "truncate": "no"}),
        ("block_configs", []),
        ("block_configs", [1, 2]),
        ("block_configs", [{"num_local_experts": 4}, {}]),
        ("block_configs", {"0": {}}),
        ("eos_token_id", "x"),
        ("pad_token_id", -3),
        ("swiglu_limit", "seven"),
        ("rms_norm_eps", -1),
        ("quantization_config", "mxfp4"),
        ("num_experts_per_tok", 5),
        ("num_key_value_heads", 3),
        ("hidden_size", 48),
        ("head_dim", 24),
    ],
)
def test_bad_fields(folder: Path, field: str, value: Any) -> None:
    (folder / "generation_config.json").unlink()
    edit_json(folder / "config.json", lambda config: config.update({field: value}))
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00", "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_json_files_that_are_none(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(FormatError, match=name):
        open_checkpoint(folder)


def test_json_file_that_is_far_too_large(folder: Path) -> None:
    with (folder / "config.json").open("ab") as file:
        file.truncate(1 << 40)  # sparse: takes no space
    with pytest.raises(FormatError, match="at most"):
        open_checkpoint(folder)


# --- original layout ----------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("num_experts"),
        lambda config: config.update(num_hidden_layers=10**9),
        lambda config: config.update(layers=[]),
        lambda config: config.update(layers=[1, 2]),
        lambda config: config.update(layers=[{"sliding_window": -1}, {}]),
        lambda config: config.update(rope_scaling_factor=-1),
        lambda config: config.update(rope_scaling_factor=1e300),
        lambda config: config.update(swiglu_limit=None, num_key_value_heads=4),
    ],
)
def test_original_layout_with_a_bad_configuration(tmp_path: Path, change: Change) -> None:
    folder = write_tiny(tmp_path / "m", layout="openai")
    edit_json(folder / "config.json", change)
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


def test_original_layout_without_weights(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "m", layout="openai")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FormatError, match=r"no \.safetensors"):
        open_checkpoint(folder)


def test_original_layout_with_a_nan_scale(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "m", layout="openai")
    set_tensor_bytes(folder / "model.safetensors", "block.0.mlp.mlp1_weight.scales", b"\xff")
    with pytest.raises(TensorError, match="255"):
        read_all(folder)
