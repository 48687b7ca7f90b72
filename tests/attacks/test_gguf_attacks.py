"""Damaged and hostile GGUF files: one typed error each, no crash, no hang, no huge allocation."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from tests.attacks.files import (
    ARRAY,
    STRING,
    UINT32,
    gguf_file,
    gguf_pair,
    gguf_string,
    gguf_tensor,
    read_all,
)
from tests.tiny import write_tiny

from aperto.errors import CheckpointError, FormatError, TensorError, UnsupportedError
from aperto.formats import open_checkpoint

F32, MXFP4 = 0, 39
HUGE = 2**63


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "m.gguf", layout="gguf", tokenizer=True)


def refuse(
    tmp_path: Path, data: bytes, match: str, kind: type[CheckpointError] = FormatError
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(kind, match=match):
        open_checkpoint(path)


def test_the_undamaged_file_is_read(file: Path) -> None:
    read_all(file)


@pytest.mark.parametrize("keep", [0, 3, 4, 23, 24, 60, 500, 0.3, 0.9, 0.999])
def test_truncated(tmp_path: Path, file: Path, keep: float) -> None:
    data = file.read_bytes()
    end = int(keep * len(data)) if isinstance(keep, float) else keep
    refuse(tmp_path, data[:end], "expected|at most")


def test_magic_and_version(tmp_path: Path) -> None:
    refuse(tmp_path, gguf_file(magic=b"GGML"), "not a GGUF file")
    refuse(tmp_path, gguf_file(version=1), "version 1", UnsupportedError)
    refuse(tmp_path, gguf_file(version=99), "version 99", UnsupportedError)
    refuse(tmp_path, gguf_file(version=0x03000000), "big-endian", UnsupportedError)


def test_huge_counts(tmp_path: Path) -> None:
    refuse(tmp_path, gguf_file(num_tensors=HUGE), "tensor count claims")
    refuse(tmp_path, gguf_file(num_pairs=HUGE), "metadata count claims")
    refuse(tmp_path, gguf_file(num_pairs=1, body=struct.pack("<Q", HUGE)), "string claims")
    for item_kind in (UINT32, STRING):
        array = struct.pack("<IQ", item_kind, HUGE)
        refuse(tmp_path, gguf_file(num_pairs=1, body=gguf_pair(b"k", ARRAY, array)), "claims")
    text = struct.pack("<Q", HUGE)
    refuse(tmp_path, gguf_file(num_pairs=1, body=gguf_pair(b"k", STRING, text)), "string claims")


def test_nested_arrays_and_unknown_value_types(tmp_path: Path) -> None:
    nested = struct.pack("<IQ", ARRAY, 1) * 5
    body = gguf_pair(b"k", ARRAY, nested)
    refuse(tmp_path, gguf_file(num_pairs=1, body=body), "array of value type 9", UnsupportedError)
    refuse(tmp_path, gguf_file(num_pairs=1, body=gguf_pair(b"k", 77, b"")), "value type 77")


def test_bad_text_and_duplicate_keys(tmp_path: Path) -> None:
    pair = gguf_pair(b"\xff\xfe", UINT32, struct.pack("<I", 1))
    refuse(tmp_path, gguf_file(num_pairs=1, body=pair), "UTF-8")
    pair = gguf_pair(b"k", UINT32, struct.pack("<I", 1))
    refuse(tmp_path, gguf_file(num_pairs=2, body=pair * 2), "occurs twice")
    long_key = gguf_pair(b"k" * 70_000, UINT32, struct.pack("<I", 1))
    refuse(tmp_path, gguf_file(num_pairs=1, body=long_key), "characters")


@pytest.mark.parametrize("alignment", [0, 3, 2**31])
def test_bad_alignment(tmp_path: Path, alignment: int) -> None:
    body = gguf_pair(b"general.alignment", UINT32, struct.pack("<I", alignment))
    refuse(tmp_path, gguf_file(num_pairs=1, body=body), "power of two")


@pytest.mark.parametrize(
    ("tensor", "match", "kind"),
    [
        (gguf_tensor(b"t", (), F32, 0), "0 axes", FormatError),
        (gguf_tensor(b"t", (1, 1, 1, 1, 1), F32, 0), "5 axes", FormatError),
        (gguf_string(b"t") + struct.pack("<I", 2**32 - 1), "4294967295 axes", FormatError),
        (gguf_tensor(b"t", (2**62, 2**62), F32, 0), "takes bytes", FormatError),
        (gguf_tensor(b"t", (HUGE, HUGE, HUGE, HUGE), F32, 0), "takes bytes", FormatError),
        (gguf_tensor(b"t", (8,), F32, 5), "multiple of 32", FormatError),
        (gguf_tensor(b"t", (8,), F32, 64), "takes bytes", FormatError),
        (gguf_tensor(b"t", (8,), F32, HUGE), "takes bytes", FormatError),
        (gguf_tensor(b"t", (33,), MXFP4, 0), "multiple of 32 for MXFP4", FormatError),
        (gguf_tensor(b"t", (8,), 999, 0), "type 999, which is unknown", UnsupportedError),
        (gguf_tensor(b"t" * 70_000, (8,), F32, 0), "characters", FormatError),
    ],
)
def test_bad_tensor_rows(
    tmp_path: Path, tensor: bytes, match: str, kind: type[CheckpointError]
) -> None:
    refuse(tmp_path, gguf_file(num_tensors=1, body=tensor), match, kind)


def test_overlapping_and_repeated_tensors(tmp_path: Path) -> None:
    pair = gguf_tensor(b"a", (16,), F32, 0) + gguf_tensor(b"b", (8,), F32, 32)
    refuse(tmp_path, gguf_file(num_tensors=2, body=pair), "takes bytes")
    pair = gguf_tensor(b"a", (8,), F32, 0) + gguf_tensor(b"a", (8,), F32, 32)
    refuse(tmp_path, gguf_file(num_tensors=2, body=pair), "occurs twice")


def test_other_architecture(tmp_path: Path) -> None:
    body = gguf_pair(b"general.architecture", STRING, gguf_string(b"llama"))
    refuse(tmp_path, gguf_file(num_pairs=1, body=body), "'llama'", UnsupportedError)
    refuse(tmp_path, gguf_file(), "None", UnsupportedError)


def test_directory_and_device(tmp_path: Path) -> None:
    (tmp_path / "d.gguf").mkdir()
    with pytest.raises(FormatError):
        open_checkpoint(tmp_path / "d.gguf")


def replaced(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) == 1 and len(old) == len(new)
    path.write_bytes(data.replace(old, new))


def test_missing_and_unknown_tensors(file: Path) -> None:
    replaced(file, b"output_norm.weight", b"output_norx.weight")
    with pytest.raises(TensorError, match=r"'output_norm\.weight' is missing"):
        open_checkpoint(file)


def test_unknown_tensor(tmp_path: Path, file: Path) -> None:
    # Without its head a file means a tied one; a misnamed head must not pass for that.
    data = file.read_bytes()
    old, new = gguf_string(b"output.weight"), gguf_string(b"outpux.weight")
    assert data.count(old) == 1
    refuse(tmp_path, data.replace(old, new), "outpux", UnsupportedError)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gpt-oss.block_count", 10**6),
        ("gpt-oss.block_count", 3),
        ("gpt-oss.attention.head_count", 0),
        ("gpt-oss.expert_count", 8),
        ("gpt-oss.embedding_length", 48),
        ("gpt-oss.attention.key_length", 2**32 - 1),
        ("gpt-oss.expert_used_count", 9),
    ],
)
def test_bad_numbers(file: Path, key: str, value: int) -> None:
    field = gguf.GGUFReader(file).fields[key]
    offset = int(field.offset + sum(part.nbytes for part in field.parts[:-1]))
    data = bytearray(file.read_bytes())
    data[offset : offset + 4] = struct.pack("<I", value)
    file.write_bytes(data)
    with pytest.raises(CheckpointError):
        open_checkpoint(file)


@pytest.mark.parametrize("scale", [254, 255])
def test_scale_beyond_float32_or_nan(file: Path, scale: int) -> None:
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    data = bytearray(file.read_bytes())
    data[tensors["blk.1.ffn_up_exps.weight"].data_offset] = scale
    file.write_bytes(data)
    checkpoint = open_checkpoint(file)
    with pytest.raises(TensorError, match=rf"layers\.1\.moe\.gate_up\.weight.* is {scale};"):
        checkpoint.tensor("layers.1.moe.gate_up.weight")


def test_values_that_are_not_finite(file: Path) -> None:
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    data = bytearray(file.read_bytes())
    offset = int(tensors["output_norm.weight"].data_offset)
    data[offset : offset + 4] = np.float32(np.inf).tobytes()
    file.write_bytes(data)
    with pytest.raises(TensorError, match="finite"):
        open_checkpoint(file).tensor("norm.weight")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b"gpt2", b"spm2", "spm2"),
        (b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz", "no lists"),
    ],
)
def test_bad_vocabulary(file: Path, old: bytes, new: bytes, match: str) -> None:
    replaced(file, old, new)
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(file).tokenizer_source()


def test_claimed_number_of_parts(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "m-00001-of-99999.gguf"
    path.write_bytes(file.read_bytes())
    with pytest.raises(FormatError, match="part is missing"):
        open_checkpoint(path)
