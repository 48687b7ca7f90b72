"""Ways to damage a checkpoint on purpose."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aperto.formats import open_checkpoint

Header = dict[str, Any]


def read_all(path: Path) -> None:
    """Open a checkpoint and read everything that a loader would."""
    checkpoint = open_checkpoint(path)
    checkpoint.tokenizer_source()
    checkpoint.fingerprint()
    for name in checkpoint.names():
        checkpoint.tensor(name)


def split_safetensors(path: Path) -> tuple[Header, bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join_safetensors(path: Path, header: bytes | Header, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def edit_header(path: Path, change: Callable[[Header], None]) -> None:
    """Change the header of a safetensors file, leaving its data alone."""
    header, data = split_safetensors(path)
    change(header)
    join_safetensors(path, header, data)


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def set_tensor_bytes(path: Path, name: str, value: bytes) -> None:
    """Overwrite the first bytes of a tensor in a safetensors file."""
    header, data = split_safetensors(path)
    begin = header[name]["data_offsets"][0]
    join_safetensors(path, header, data[:begin] + value + data[begin + len(value) :])


# --- GGUF ---------------------------------------------------------------------------------------

UINT32, STRING, ARRAY = 4, 8, 9


def gguf_string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def gguf_file(
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_tensors: int = 0,
    num_pairs: int = 0,
    body: bytes = b"",
    data: bytes = bytes(64),
) -> bytes:
    """A GGUF file from its parts, right or wrong."""
    head = magic + struct.pack("<IQQ", version, num_tensors, num_pairs) + body
    return head + bytes(-len(head) % 32) + data


def gguf_pair(key: bytes, kind: int, value: bytes) -> bytes:
    return gguf_string(key) + struct.pack("<I", kind) + value


def gguf_tensor(name: bytes, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return gguf_string(name) + sizes + struct.pack("<IQ", kind, offset)
