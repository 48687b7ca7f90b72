"""Writing: every layout to every other and back, without loss and without half-written results."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tracemalloc
from collections import namedtuple
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tests.formats.test_layouts import SHAPES, architecture, assert_same_values
from tests.tiny import write_tiny

from aperto.errors import DiskSpaceError, TensorError, UnsupportedError, UsageError
from aperto.formats import (
    DType,
    QuantizedExperts,
    Tensor,
    TensorSource,
    TokenizerSource,
    mxfp4,
    open_checkpoint,
    quantize_experts,
    requantize,
    write,
    write_checkpoint,
)
from aperto.formats.q8 import encode_q8_0


@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip_through_all_layouts(tmp_path: Path, shape: dict[str, Any]) -> None:
    source = open_checkpoint(write_tiny(tmp_path / "source", tokenizer=True, **shape))
    write_checkpoint(source, tmp_path / "a.gguf", "gguf")
    first = open_checkpoint(tmp_path / "a.gguf")
    write_checkpoint(first, tmp_path / "b", "hf", max_shard_bytes=50_000)
    second = open_checkpoint(tmp_path / "b")
    write_checkpoint(second, tmp_path / "c", "openai")
    third = open_checkpoint(tmp_path / "c")
    write_checkpoint(third, tmp_path / "d.gguf", "gguf")
    fourth = open_checkpoint(tmp_path / "d.gguf")
    assert len(second.files) > 3
    assert source.config == first.config == second.config
    assert source.config.eos_token_ids == third.config.eos_token_ids
    assert architecture(source) == architecture(third) == architecture(fourth)
    assert_same_values(source, first, same_bits=False)
    assert_same_values(source, second, same_bits=True)
    assert_same_values(source, third, same_bits=True)
    assert_same_values(first, fourth, same_bits=True)
    assert first.tokenizer_source() == fourth.tokenizer_source()


def test_the_gguf_package_reads_our_file(tmp_path: Path) -> None:
    """Names, shapes, types and data as the package's own writer stored them."""
    theirs = gguf.GGUFReader(write_tiny(tmp_path / "a.gguf", layout="gguf", tokenizer=True))
    write_checkpoint(
        open_checkpoint(write_tiny(tmp_path / "hf", tokenizer=True)), tmp_path / "b.gguf", "gguf"
    )
    ours = gguf.GGUFReader(tmp_path / "b.gguf")
    stored = {tensor.name: tensor for tensor in ours.tensors}
    assert set(stored) == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        own = stored[tensor.name]
        assert own.tensor_type == tensor.tensor_type, tensor.name
        assert own.shape.tolist() == tensor.shape.tolist(), tensor.name
        np.testing.assert_array_equal(own.data, tensor.data, err_msg=tensor.name)
    # Not written: what has llama.cpp's defaults already.
    missing = set(theirs.fields) - set(ours.fields)
    assert missing <= {"gpt-oss.rope.scaling.yarn_beta_fast", "gpt-oss.rope.scaling.yarn_beta_slow"}
    for key in set(theirs.fields) & set(ours.fields):
        if not key.startswith("GGUF.") and key != "tokenizer.ggml.eos_token_id":
            assert ours.fields[key].contents() == theirs.fields[key].contents(), key
            assert ours.fields[key].types == theirs.fields[key].types, key


def test_transformers_reads_our_folder(tmp_path: Path) -> None:
    from tests.tiny import hf_oracle

    path = write_tiny(tmp_path / "a")
    write_checkpoint(open_checkpoint(path), tmp_path / "b", "hf", max_shard_bytes=50_000)
    ids = list(range(1, 40))
    np.testing.assert_array_equal(hf_oracle(tmp_path / "b")(ids), hf_oracle(path)(ids))


def test_the_original_implementation_reads_our_folder(tmp_path: Path) -> None:
    from tests.tiny import torch_oracle

    path = write_tiny(tmp_path / "a", layout="openai")
    write_checkpoint(open_checkpoint(path), tmp_path / "b", "openai")
    assert json.loads((tmp_path / "b" / "config.json").read_text()) == json.loads(
        (path / "config.json").read_text()
    )
    ids = list(range(1, 40))
    np.testing.assert_array_equal(torch_oracle(tmp_path / "b")(ids), torch_oracle(path)(ids))


def test_dense_types(tmp_path: Path) -> None:
    source = open_checkpoint(write_tiny(tmp_path / "a"))
    name = "layers.0.attn.q.weight"
    values = source.tensor(name).to_float32()
    write_checkpoint(source, tmp_path / "q8.gguf", "gguf", dense=DType.Q8_0)
    q8 = open_checkpoint(tmp_path / "q8.gguf")
    np.testing.assert_array_equal(q8.tensor(name).data, encode_q8_0(values))
    np.testing.assert_array_equal(
        q8.tensor("layers.0.moe.router.weight").to_float32(),
        source.tensor("layers.0.moe.router.weight").to_float32(),
    )
    write_checkpoint(q8, tmp_path / "exact", "hf")  # Q8_0 has no place there: float32, exactly
    exact = open_checkpoint(tmp_path / "exact")
    assert exact.info(name).dtype is DType.F32
    np.testing.assert_array_equal(exact.tensor(name).data, q8.tensor(name).to_float32())
    write_checkpoint(q8, tmp_path / "bf16", "openai", dense=DType.BF16)
    assert open_checkpoint(tmp_path / "bf16").info(name).dtype is DType.BF16
    write_checkpoint(source, tmp_path / "f16.gguf", "gguf", dense=DType.F16)
    assert open_checkpoint(tmp_path / "f16.gguf").info(name).dtype is DType.F16


def test_q8_file_of_the_gguf_package_is_the_one_we_make(tmp_path: Path) -> None:
    theirs = open_checkpoint(write_tiny(tmp_path / "a.gguf", layout="gguf", q8=True))
    write_checkpoint(
        open_checkpoint(write_tiny(tmp_path / "hf")), tmp_path / "b.gguf", "gguf", dense=DType.Q8_0
    )
    assert_same_values(theirs, open_checkpoint(tmp_path / "b.gguf"), same_bits=True)


def test_fine_tuned_experts_are_quantised_lazily_with_a_report(tmp_path: Path) -> None:
    source = open_checkpoint(write_tiny(tmp_path / "a", expert_dtype="bf16"))
    quantized = quantize_experts(source)
    assert isinstance(quantized, QuantizedExperts)
    assert isinstance(quantized, TensorSource)
    assert quantized.errors == {}
    name = "layers.1.moe.down.weight"
    assert quantized.info(name).dtype is DType.MXFP4
    tensor = quantized.tensor(name)
    original = source.tensor(name).to_float32()
    difference = tensor.to_float32() - original
    report = quantized.errors[name]
    assert report.max_abs == pytest.approx(np.abs(difference).max())
    assert report.relative_rms == pytest.approx(
        np.sqrt((difference**2).mean() / (original**2).mean()), rel=1e-5
    )
    # Gaussian weights in MXFP4: about 0.11; anything near 1 would mean wrong rows.
    assert 0.05 < report.relative_rms < 0.2
    assert "1 expert tensors" in quantized.notes[-1]
    write_checkpoint(quantized, tmp_path / "b", "openai")
    assert_same_values(quantized, open_checkpoint(tmp_path / "b"), same_bits=True)
    done = open_checkpoint(write_tiny(tmp_path / "c"))
    assert quantize_experts(done) is done


@pytest.mark.parametrize("layout", ["hf", "gguf"])
@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16, DType.F32])
def test_quantised_experts_are_what_the_codec_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Any, dtype: DType
) -> None:
    """Any storage type and order, in runs of rows that fill neither an expert nor a strip."""
    source = with_experts(
        open_checkpoint(write_tiny(tmp_path / f"a.{layout}", layout=layout, expert_dtype="bf16")),
        dtype,
    )
    monkeypatch.setattr(requantize, "_CHUNK_ROWS", 40)
    quantized = QuantizedExperts(source)
    for name in ("layers.0.moe.gate_up.weight", "layers.1.moe.down.weight"):
        values = source.tensor(name).to_float32()
        blocks, scales = mxfp4.encode(values)
        tensor = quantized.tensor(name)
        np.testing.assert_array_equal(tensor.data, blocks)
        np.testing.assert_array_equal(tensor.scales, scales)
        expected = mxfp4.error(values, mxfp4.decode(blocks, scales))
        # The sums inside a block are float32 (a few roundings of 2^-24), the rest is double.
        assert quantized.errors[name].relative_rms == pytest.approx(expected.relative_rms, rel=1e-6)
        assert quantized.errors[name].max_abs == expected.max_abs


def with_experts(source: TensorSource, dtype: DType) -> TensorSource:
    """The same model, its plain experts in another plain type."""

    class Converted:
        def __getattr__(self, name: str) -> Any:
            return getattr(source, name)

        def info(self, name: str) -> Any:
            info = source.info(name)
            is_expert = name.endswith(("gate_up.weight", "down.weight"))
            return dataclasses.replace(info, dtype=dtype) if is_expert else info

        def tensor(self, name: str) -> Tensor:
            tensor = source.tensor(name)
            if self.info(name).dtype is tensor.dtype:
                return tensor
            values = tensor.to_float32()
            data = values if dtype is DType.F32 else values.astype(np.float16)
            return dataclasses.replace(tensor, dtype=dtype, data=data)

    return Converted()


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_experts_that_are_not_finite_are_refused_by_name(tmp_path: Path, bad: float) -> None:
    name = "layers.1.moe.down.weight"
    source = open_checkpoint(write_tiny(tmp_path / "a", expert_dtype="bf16"))
    values = source.tensor(name).to_float32()
    values[2, 5, 7] = bad

    class Damaged:
        def __getattr__(self, name: str) -> Any:
            return getattr(source, name)

        def tensor(self, name: str) -> Tensor:
            return Tensor(name, DType.F32, values.shape, values)

    with pytest.raises(TensorError, match=r"layers\.1\.moe\.down\.weight, expert 2.*finite"):
        QuantizedExperts(Damaged()).tensor(name)


@pytest.mark.parametrize(("layout", "dense"), [("gguf", DType.Q8_0), ("hf", DType.F32)])
def test_memory_does_not_grow_with_the_matrix(tmp_path: Path, layout: Any, dense: DType) -> None:
    """Matrices of 2^22 values, 2^20 of which are converted at a time.

    Those take at most 8 arrays of float32 in Q8_0 (the whole matrix took 25 bytes a value, 100
    MiB), and 3 where they only change their type (16 MiB for the values of the whole).
    """
    source = open_checkpoint(write_tiny(tmp_path / "a", vocab=1 << 16))
    tracemalloc.start()
    try:
        write_checkpoint(source, tmp_path / "b", layout, dense=dense)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (8 if dense is DType.Q8_0 else 3) * (4 << 20)


def test_q8_0_in_runs_of_rows_is_q8_0_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the last run is shorter, and back to float32 in a folder."""
    monkeypatch.setattr(write, "_CHUNK_ELEMENTS", 1000)
    source = open_checkpoint(write_tiny(tmp_path / "a"))
    write_checkpoint(source, tmp_path / "b.gguf", "gguf", dense=DType.Q8_0)
    q8 = open_checkpoint(tmp_path / "b.gguf")
    write_checkpoint(q8, tmp_path / "c", "openai")
    exact = open_checkpoint(tmp_path / "c")
    for name in ("embedding.weight", "layers.0.attn.k.weight", "layers.1.attn.out.weight"):
        expected = encode_q8_0(source.tensor(name).to_float32())
        np.testing.assert_array_equal(q8.tensor(name).data, expected)
        np.testing.assert_array_equal(exact.tensor(name).data, q8.tensor(name).to_float32())


@pytest.mark.parametrize("layout", ["hf", "gguf"])
def test_plain_experts_are_kept_as_they_are(tmp_path: Path, layout: Any) -> None:
    source = open_checkpoint(write_tiny(tmp_path / "a", expert_dtype="bf16"))
    write_checkpoint(source, tmp_path / f"b.{layout}", layout)
    assert_same_values(source, open_checkpoint(tmp_path / f"b.{layout}"), same_bits=layout == "hf")


def test_plain_experts_have_no_place_in_the_original_layout(tmp_path: Path) -> None:
    source = open_checkpoint(write_tiny(tmp_path / "a", expert_dtype="bf16"))
    with pytest.raises(UnsupportedError, match="quantise them first"):
        write_checkpoint(source, tmp_path / "b", "openai")


def test_tokenizer_files_are_carried_along(tmp_path: Path) -> None:
    source = open_checkpoint(write_tiny(tmp_path / "a", tokenizer=True))
    (tmp_path / "a" / "chat_template.jinja").write_text("template")
    write_checkpoint(source, tmp_path / "b", "hf")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    generation = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [383, 382]
    other = TokenizerSource("hf", path=tmp_path / "a" / "tokenizer.json")
    plain = open_checkpoint(write_tiny(tmp_path / "c"))
    write_checkpoint(plain, tmp_path / "d.gguf", "gguf", tokenizer_from=other)
    assert len(open_checkpoint(tmp_path / "d.gguf").tokenizer_source().tokens) == 384


def test_tokenizer_made_from_gguf_lists_encodes_the_same(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    source = open_checkpoint(write_tiny(tmp_path / "a", tokenizer=True))
    write_checkpoint(source, tmp_path / "b.gguf", "gguf")
    write_checkpoint(open_checkpoint(tmp_path / "b.gguf"), tmp_path / "c", "hf")
    text = "<|start|>user<|message|>The final answer, ünï 1234\n\n<|end|>"
    ids = [
        PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")).encode(text)
        for folder in (tmp_path / "a", tmp_path / "c")
    ]
    assert ids[0] == ids[1]


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    source = open_checkpoint(write_tiny(tmp_path / "a"))
    write_checkpoint(source, tmp_path / "b", "hf", progress=lambda *step: seen.append(step))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] == sum(source.info(name).nbytes for name in source.names())


def test_too_small_disk_is_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_checkpoint(write_tiny(tmp_path / "a"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(DiskSpaceError, match="needs"):
        write_checkpoint(source, tmp_path / "b", "hf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("layout", ["hf", "openai", "gguf"])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, layout: Any) -> None:
    source = open_checkpoint(write_tiny(tmp_path / "a"))

    class Failing:
        def __getattr__(self, name: str) -> Any:
            return getattr(source, name)

        def tensor(self, name: str) -> Tensor:
            if name == "layers.1.moe.down.weight":
                raise TensorError("broken on purpose")
            return source.tensor(name)

    with pytest.raises(TensorError, match="on purpose"):
        write_checkpoint(Failing(), tmp_path / "b", layout)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


@pytest.mark.parametrize("layout", ["hf", "openai", "gguf"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, layout: Any, share: float) -> None:
    """Ctrl-C at any step, the last one too: it goes through, and no file is left of any name."""
    source = open_checkpoint(write_tiny(tmp_path / "a"))

    def interrupt(done: int, total: int) -> None:
        assert not (tmp_path / "b").exists()
        if done >= share * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(source, tmp_path / "b", layout, progress=interrupt)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_bad_requests(tmp_path: Path) -> None:
    source = open_checkpoint(write_tiny(tmp_path / "a"))
    with pytest.raises(UsageError, match="exists already"):
        write_checkpoint(source, tmp_path / "a", "hf")
    with pytest.raises(UsageError, match="layout"):
        write_checkpoint(source, tmp_path / "b", "onnx")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Q8_0"):
        write_checkpoint(source, tmp_path / "b", "hf", dense=DType.Q8_0)
