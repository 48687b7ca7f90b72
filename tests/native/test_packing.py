"""Packing: the same bits as GGUF's Q8_0, no weight moved or lost, and no half-written file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.native.harness import random_ids, whole
from tests.native.matrices import KINDS, Product, floats, value_kinds
from tests.tiny import save_tensors, write_tiny

from aperto import _native
from aperto.errors import ConfigError, DiskSpaceError, FormatError, TensorError, UsageError
from aperto.formats import Checkpoint, mxfp4, open_checkpoint, packed, q8
from aperto.native import Model, isa_names

Q8_0 = gguf.GGMLQuantizationType.Q8_0
property_test = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32)


# --- Q8_0 ----------------------------------------------------------------------------------------


@property_test
@given(seeds, st.integers(1, 4), st.integers(1, 5), value_kinds, st.booleans())
def test_q8_0_is_ggufs(seed: int, rows: int, blocks: int, kind: str, bf16: bool) -> None:
    """On weights whose scales f16 can hold, the bytes are those of the gguf package."""
    values = np.clip(floats(np.random.default_rng(seed), kind, rows, 32 * blocks), -8e6, 8e6)
    if bf16:
        bits = (values.view(np.uint32) >> 16).astype(np.uint16)
        values = (bits.astype(np.uint32) << 16).view(np.float32)
    found = np.empty(rows * blocks * 34, np.uint8)
    if bf16:
        _native.quantize_q8_0_bf16(bits, found)
    else:
        _native.quantize_q8_0(values, found)
    found = found.reshape(rows, blocks, 34)
    np.testing.assert_array_equal(found, q8.encode_q8_0(values))
    if kind != "denormals":  # whose infinite inverse the gguf package leaves to chance
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(found.reshape(rows, -1), gguf.quantize(values, Q8_0))


def test_q8_0_halves_round_away_from_zero() -> None:
    row = np.zeros((1, 32), np.float32)
    row[0, :5] = [127.0, 0.5, -0.5, 1.5, 2.5]
    blocks = np.empty(34, np.uint8)
    _native.quantize_q8_0(row, blocks)
    assert blocks[2:7].view(np.int8).tolist() == [127, 1, -1, 2, 3]


# --- tiles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@property_test
@given(seeds, st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_unit_vectors_read_back_the_weights(
    kind: str, seed: int, tiles: int, blocks: int, interleaved: bool
) -> None:
    """Column k of the weights is their product with 127 times unit vector k, rounded once."""
    rng = np.random.default_rng(seed)
    rows, k = 16 * tiles, 32 * blocks
    product = Product.random(rng, kind, rows, k, "normal")
    order = np.arange(rows)
    if interleaved and kind.startswith("mxfp4") and rows % 32 == 0:
        product = Product.pack(kind, rows, k, product.source, interleaved=True)
        # Tiles alternate: 16 even source rows (gate), then 16 odd ones (up).
        order = order.reshape(-1, 16, 2).swapaxes(1, 2).reshape(-1)
    # 127 quantises to 127 with the scale 1; floats take it as it is.
    unit = np.float32(127) * np.eye(k, dtype=np.float32)
    for isa in isa_names():
        found = _native.kernels.matmul(isa, *product.arguments(unit, np.arange(k, dtype=np.int32)))
        expected = (127 * product.dequantized()[order]).astype(np.float32)
        np.testing.assert_array_equal(found.T, expected)


def test_rows_past_the_end_of_a_tile_are_zeros() -> None:
    rng = np.random.default_rng(0)
    for kind in ("q8", "bf16", "f32"):
        short = Product.random(rng, kind, 5, 64, "normal")
        a = rng.normal(size=(3, 64)).astype(np.float32)
        padded = dataclasses.replace(short, rows=16)
        rows = np.arange(3, dtype=np.int32)
        found = _native.kernels.matmul("", *padded.arguments(a, rows))
        assert found[:, :5].all() and not found[:, 5:].any(), kind


def test_scales_too_small_for_the_kernels_become_zeros() -> None:
    """Scale bytes 0 and 1 mean values below 2^-122, which is nothing beside any other weight."""
    blocks = np.full((16, 1, 16), 0x77, np.uint8)
    scales = np.repeat(np.array([0, 1, 2, 250], np.uint8), 4)[:, None]
    product = Product.pack("mxfp4", 16, 32, (blocks, scales))
    unit = np.eye(32, dtype=np.float32)[:1]
    found = _native.kernels.matmul("", *product.arguments(unit, np.zeros(1, np.int32)))[0]
    assert not found[:8].any()
    assert mxfp4.decode(blocks, scales)[:8].max() < 2.0**-122
    np.testing.assert_array_equal(found[8:], mxfp4.decode(blocks, scales)[8:, 0])


def test_arrays_of_the_wrong_form_are_refused() -> None:
    u8 = np.zeros(10, np.uint8)
    with pytest.raises(ValueError, match="width is 40; expected a positive multiple of 32"):
        _native.quantize_q8_0(np.zeros((2, 40), np.float32), u8)
    with pytest.raises(ValueError, match="blocks has 10 bytes; expected 68"):
        _native.quantize_q8_0(np.zeros((2, 32), np.float32), u8)
    with pytest.raises(ValueError, match="tiles has 10 bytes; expected 1024"):
        _native.pack_bf16(np.zeros((2, 32), np.uint16), u8)
    with pytest.raises(ValueError, match="rows is 17; expected a positive multiple of 16"):
        _native.pack_mxfp4(np.zeros((17, 1, 16), np.uint8), np.zeros((17, 1), np.uint8), False, u8)
    with pytest.raises(ValueError, match=r"scales is \[16, 2\]; expected \[16, 1\]"):
        _native.pack_mxfp4(np.zeros((16, 1, 16), np.uint8), np.zeros((16, 2), np.uint8), False, u8)
    with pytest.raises(ValueError, match="unknown weight kind 'q4_tiles'"):
        _native.tiles_bytes("q4_tiles", 16, 32)


# --- the packed file -----------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """A tiny checkpoint that is large enough for a file of its own."""
    monkeypatch.setattr(packed, "SMALL_BYTES", 0)
    monkeypatch.setattr(packed, "free_bytes", lambda path: 10**15)
    return open_checkpoint(write_tiny(tmp_path / "model", windows=(8, 0, 8)))


def files(cache: Path) -> list[str]:
    folder = cache / "packed"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("precision", ["q8", "exact"])
def test_a_file_holds_what_memory_would(
    checkpoint: Checkpoint, precision: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    assert files(tmp_path) == []
    written = packed.open_packed(
        checkpoint, precision, tmp_path, progress=lambda *step: seen.append(step)
    )
    assert written.path is not None and files(tmp_path) == [written.path.name]
    assert written.nbytes == packed.packed_bytes(checkpoint, precision)
    assert seen[-1] == (written.nbytes, written.nbytes)
    assert [step for step, _ in seen] == sorted(step for step, _ in seen)

    before = written.path.stat()
    mapped = packed.open_packed(
        checkpoint, precision, tmp_path, progress=lambda *_: pytest.fail("packed twice")
    )
    assert written.path.stat().st_mtime_ns == before.st_mtime_ns
    monkeypatch.setattr(packed, "SMALL_BYTES", 1 << 30)
    memory = packed.open_packed(checkpoint, precision, tmp_path)
    assert memory.path is None
    assert set(mapped.tensors) == set(memory.tensors)
    for name, (kind, data) in memory.tensors.items():
        assert mapped.tensors[name][0] == kind
        np.testing.assert_array_equal(mapped.tensors[name][1], data)
        assert mapped.tensors[name][1].ctypes.data % 64 == 0  # a cache line

    models = [Model(checkpoint.config, weights.tensors) for weights in (mapped, memory)]
    ids = random_ids(models[0], 40, 0)
    np.testing.assert_array_equal(whole(models[0], ids), whole(models[1], ids))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"X" + data[1:], "not a packed file of aperto"),
        (lambda data: data[:8] + (2**62).to_bytes(8, "little") + data[16:], "not a packed file"),
        (lambda data: data[:16] + b"\xff" + data[17:], "the header is not JSON"),
        (lambda data: data.replace(b'"head"', b'"heap"', 1), "do not fit the model"),
        (lambda data: data[:-1], "do not fit the model"),
        (lambda data: data + b"\0", "do not fit the model"),
        (lambda data: data[:16], "not a packed file"),
        (lambda data: b"", "not a packed file"),
    ],
)
def test_a_damaged_file_is_refused_by_name(
    checkpoint: Checkpoint, tmp_path: Path, damage: Any, message: str
) -> None:
    path = packed.open_packed(checkpoint, "q8", tmp_path).path
    assert path is not None
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FormatError, match=message) as caught:
        packed.open_packed(checkpoint, "q8", tmp_path)
    assert str(path) in str(caught.value)
    # As the message says: removed, it is packed again.
    assert [entry.path for entry in packed.remove(tmp_path, path.stem)] == [path]
    assert packed.open_packed(checkpoint, "q8", tmp_path).path == path


def test_an_interrupted_packing_leaves_nothing(checkpoint: Checkpoint, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed.open_packed(checkpoint, "q8", tmp_path, progress=interrupt)
    assert files(tmp_path) == []
    assert packed.open_packed(checkpoint, "q8", tmp_path).path is not None


def test_weights_that_are_not_finite_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "SMALL_BYTES", 0)
    monkeypatch.setattr(packed, "free_bytes", lambda path: 10**15)
    write_tiny(tmp_path / "model", hidden=64, vocab=384)
    source = tmp_path / "model" / "model.safetensors"
    tensors = read_safetensors(source)
    tensors["lm_head.weight"][200, 3] = 0x7FC0  # NaN
    save_tensors(source, tensors)
    with pytest.raises(TensorError, match=r"head\.weight: found NaN"):
        packed.open_packed(open_checkpoint(tmp_path / "model"), "q8", tmp_path)
    assert files(tmp_path) == []


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors, writable."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    kinds = {"BF16": np.uint16, "U8": np.uint8}
    return {
        name: np.frombuffer(
            data[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]],
            kinds[entry["dtype"]],
        )
        .reshape(entry["shape"])
        .copy()
        for name, entry in header.items()
        if name != "__metadata__"
    }


@pytest.mark.parametrize(
    ("left", "answer", "written"),
    [
        (packed.SHORT_BYTES, None, True),
        (packed.SHORT_BYTES - 1, None, False),
        (packed.SHORT_BYTES - 1, False, False),
        (packed.SHORT_BYTES - 1, True, True),
        (0, True, False),
        (-5, True, False),
    ],
)
def test_a_short_disk_is_asked_about(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left: int,
    answer: bool | None,
    written: bool,
) -> None:
    free = packed.packed_bytes(checkpoint, "q8") + left
    monkeypatch.setattr(packed, "free_bytes", lambda path: free)
    questions: list[str] = []

    def confirm(question: str) -> bool:
        questions.append(question)
        return bool(answer)

    arguments: dict[str, Any] = {} if answer is None else {"confirm": confirm}
    if written:
        assert packed.open_packed(checkpoint, "q8", tmp_path, **arguments).path is not None
    else:
        with pytest.raises(DiskSpaceError, match=rf"{free / 1e9:.1f} GB are free") as caught:
            packed.open_packed(checkpoint, "q8", tmp_path, **arguments)
        assert "aperto cache rm" in str(caught.value) and files(tmp_path) == []
    asked = answer is not None and 0 < left < packed.SHORT_BYTES
    assert len(questions) == asked
    assert all(str(tmp_path / "packed") in question for question in questions)


def test_a_changed_checkpoint_version_or_precision_is_packed_anew(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = packed.open_packed(checkpoint, "q8", tmp_path).path
    assert packed.open_packed(checkpoint, "exact", tmp_path).path != first
    monkeypatch.setattr(packed, "VERSION", packed.VERSION + 1)
    assert packed.open_packed(checkpoint, "q8", tmp_path).path != first
    write_tiny(tmp_path / "model", windows=(8, 0, 8), seed=1)
    changed = open_checkpoint(tmp_path / "model")
    paths = {packed.open_packed(changed, "q8", tmp_path).path, first}
    assert len(paths) == 2 and len(files(tmp_path)) == 4


def test_the_cache_is_listed_and_emptied(checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert packed.list_entries(tmp_path) == []
    with pytest.raises(UsageError, match="no entry 'x'; it is empty"):
        packed.remove(tmp_path, "x")
    small = packed.open_packed(checkpoint, "q8", tmp_path).path
    large = packed.open_packed(checkpoint, "exact", tmp_path).path
    assert small is not None and large is not None
    source = str(checkpoint.path.resolve())
    assert packed.list_entries(tmp_path) == [
        packed.CacheEntry(large, source, "exact", large.stat().st_size),
        packed.CacheEntry(small, source, "q8", small.stat().st_size),
    ]
    small.write_bytes(b"rubbish")
    assert packed.list_entries(tmp_path)[1].source == "unknown"
    with pytest.raises(UsageError, match=large.stem):
        packed.remove(tmp_path, "nothing-like-it")
    assert [entry.path for entry in packed.remove(tmp_path, small.name)] == [small]
    assert [entry.path for entry in packed.remove(tmp_path, source)] == [large]
    assert packed.remove(tmp_path, "all") == [] and files(tmp_path) == []


# --- binding -------------------------------------------------------------------------------------


def test_weights_that_do_not_fit_the_model_are_refused(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    tensors = packed.open_packed(checkpoint, "q8", tmp_path).tensors
    exact = packed.open_packed(checkpoint, "exact", tmp_path).tensors
    short = tensors["head"][1][:-1]
    for change, message in (
        ({"head": None}, "tensor 'head' is missing"),
        (
            {"head": ("q8_tiles", short)},
            rf"'head' has {len(short)} bytes; expected {len(short) + 1}",
        ),
        ({"head": exact["head"]}, "must both be Q8 or both be float"),
        ({"embedding": tensors["head"]}, "'embedding' is not in rows"),
        ({"norm": tensors["head"]}, "'norm' is not f32"),
        ({"head": ("f32", short)}, "'head' is not in dense tiles"),
        ({"layers.0.moe.down": tensors["head"]}, "is not in MXFP4 tiles"),
        ({"layers.1.moe.router": tensors["head"]}, "has .* bytes; expected"),
        ({"norm": ("f64", short)}, "unknown weight kind 'f64'"),
    ):
        damaged = {**tensors, **change}
        damaged = {name: tensor for name, tensor in damaged.items() if tensor is not None}
        with pytest.raises(ConfigError, match=message):
            Model(checkpoint.config, damaged)
    for options, message in (
        ({"num_threads": 0}, r"num_threads is 0; expected 1\.\.1024"),
        ({"max_batch_tokens": 0}, "max_batch_tokens is 0; expected at least 1"),
        ({"kv_type": "f8"}, "'f8'; expected f16 or f32"),
        ({"isa": "sse9"}, "instruction set 'sse9' is unknown"),
    ):
        with pytest.raises(ConfigError, match=message):
            Model(checkpoint.config, tensors, **options)
