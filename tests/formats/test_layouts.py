"""Three layouts, one checkpoint: same names, same configuration, same values."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tests.tiny import gguf_vocabulary, write_tiny

from aperto.config import LayerConfig
from aperto.errors import FormatError, ModelNotFoundError, UnsupportedError
from aperto.formats import Checkpoint, DType, TensorSource, open_checkpoint

SHAPES: list[dict[str, Any]] = [
    {},
    {"windows": (0, 8, 4), "experts": (4, 8, 2), "top_k": (2, 3, 1)},
    {"windows": (0, 8, 8)},
    {"windows": (0, 0)},
    {"original_context": 64, "beta_fast": 4.0},
    {"rope_factor": 1.0, "max_context": 4096},
    {"hidden": 96, "intermediate": 128, "heads": 6, "kv_heads": 3, "head_dim": 16},
]


def architecture(checkpoint: Checkpoint) -> Any:
    """The configuration without what the original layout has no place for."""
    return dataclasses.replace(checkpoint.config, eos_token_ids=(), pad_token_id=None)


def assert_same_values(left: TensorSource, right: TensorSource, *, same_bits: bool) -> None:
    assert left.names() == right.names()
    for name in left.names():
        a, b = left.tensor(name), right.tensor(name)
        assert a.shape == b.shape == left.info(name).shape == a.to_float32().shape
        assert a.dtype == left.info(name).dtype and a.nbytes == left.info(name).nbytes
        np.testing.assert_array_equal(a.to_float32(), b.to_float32(), err_msg=name)
        if same_bits or a.dtype is DType.MXFP4:
            assert a.dtype == b.dtype, name
            np.testing.assert_array_equal(a.data, b.data, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES)
def test_same_model_in_three_layouts(tmp_path: Path, shape: dict[str, Any]) -> None:
    hf = open_checkpoint(write_tiny(tmp_path / "hf", **shape))
    openai = open_checkpoint(write_tiny(tmp_path / "openai", layout="openai", **shape))
    split = open_checkpoint(write_tiny(tmp_path / "split.gguf", layout="gguf", **shape))
    fused = open_checkpoint(
        write_tiny(tmp_path / "fused.gguf", layout="gguf", fused_gate_up=True, **shape)
    )
    assert [c.layout for c in (hf, openai, split, fused)] == ["hf", "openai", "gguf", "gguf"]
    for other in (openai, split, fused):
        assert architecture(other) == architecture(hf)
    assert_same_values(hf, openai, same_bits=True)
    assert_same_values(hf, split, same_bits=False)
    assert_same_values(hf, fused, same_bits=False)


def test_layers_come_from_the_configuration(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m", windows=(0, 8, 4), experts=(4, 8, 2), top_k=(2, 3, 1))
    expected = (LayerConfig(0, 4, 2), LayerConfig(8, 8, 3), LayerConfig(4, 2, 1))
    assert open_checkpoint(path).config.layers == expected
    path = write_tiny(tmp_path / "n", windows=(0, 0, 8))
    assert [layer.window for layer in open_checkpoint(path).config.layers] == [0, 0, 8]


def test_windows_alternate_where_the_configuration_is_silent(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m", windows=(8, 0, 8))
    config = json.loads((path / "config.json").read_text())
    del config["layer_types"]
    (path / "config.json").write_text(json.dumps(config))
    assert [layer.window for layer in open_checkpoint(path).config.layers] == [8, 0, 8]


def test_both_rope_spellings_and_shards(tmp_path: Path) -> None:
    old = open_checkpoint(write_tiny(tmp_path / "old"))
    new = open_checkpoint(
        write_tiny(
            tmp_path / "new", rope_spelling="rope_parameters", shards=3, original_context=4096
        )
    )
    assert old.config == new.config
    assert len(new.files) == 4
    assert_same_values(old, new, same_bits=True)


def test_published_sizes_are_read_from_published_fields(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m")
    config = open_checkpoint(path).config
    assert (config.vocab_size, config.hidden_size, config.head_dim) == (384, 64, 32)
    assert config.eos_token_ids == (383, 382)
    assert config.pad_token_id == 0
    assert config.rope.factor == 32.0 and not config.rope.truncate
    assert config.max_context == 131072


def base_of(array: np.ndarray) -> Any:
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return array


@pytest.mark.parametrize("layout", ["hf", "openai"])
def test_safetensors_are_views_into_the_file(tmp_path: Path, layout: Any) -> None:
    checkpoint = open_checkpoint(write_tiny(tmp_path / "m", layout=layout))
    for name in checkpoint.names():
        tensor = checkpoint.tensor(name)
        assert not isinstance(base_of(tensor.data), np.ndarray), name
        assert not tensor.data.flags.writeable
        assert tensor.data.flags.aligned


def test_gguf_matrices_are_views_into_the_file(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_tiny(tmp_path / "m.gguf", layout="gguf", q8=True))
    for name in ("embedding.weight", "layers.0.attn.k.weight", "norm.weight"):
        tensor = checkpoint.tensor(name)
        assert not isinstance(base_of(tensor.data), np.ndarray), name
    assert checkpoint.info("head.weight").dtype is DType.Q8_0


def test_plain_experts_are_read_in_canonical_rows(tmp_path: Path) -> None:
    hf = open_checkpoint(write_tiny(tmp_path / "hf", expert_dtype="bf16"))
    split = open_checkpoint(write_tiny(tmp_path / "m.gguf", layout="gguf", expert_dtype="bf16"))
    assert hf.info("layers.0.moe.gate_up.weight").dtype is DType.BF16
    assert any("unquantised" in note for note in hf.notes)
    assert_same_values(hf, split, same_bits=False)


def test_tied_head_and_ignored_tensors(tmp_path: Path) -> None:
    from tests.tiny import hf_tensors, make_weights, save_tensors

    path = write_tiny(tmp_path / "m")
    weights = hf_tensors(make_weights(_tiny_config(), 0))
    del weights["lm_head.weight"]
    weights["model.layers.0.self_attn.k_proj.k_scale"] = np.ones(1, np.float32)
    save_tensors(path / "model.safetensors", weights)
    config = json.loads((path / "config.json").read_text()) | {"tie_word_embeddings": True}
    (path / "config.json").write_text(json.dumps(config))
    checkpoint = open_checkpoint(path)
    assert "k_scale" in checkpoint.notes[0]
    embedding, head = checkpoint.tensor("embedding.weight"), checkpoint.tensor("head.weight")
    np.testing.assert_array_equal(embedding.data, head.data)


def _tiny_config() -> Any:
    from tests.tiny import TinyConfig, TinyLayer

    layers = (TinyLayer(8, 4, 2), TinyLayer(0, 4, 2))
    return TinyConfig(64, 64, layers, 4, 2, 32, 384, 150000.0, 32.0, 32.0, 1.0, 4096, 131072, 7.0)


def test_lossy_gguf_types_are_dequantised_with_a_note(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", layout="gguf", hidden=256)
    exact = open_checkpoint(path)
    lossy = open_checkpoint(requantized(path, tmp_path / "lossy.gguf"))
    assert any("Q4_K" in note or "Q5_0" in note for note in lossy.notes), lossy.notes
    original = exact.tensor("layers.0.attn.q.weight").to_float32()
    read = lossy.tensor("layers.0.attn.q.weight")
    assert read.dtype is DType.F32
    # Q5_0 steps are amax / 16 of a block of 32; half a step is the largest error, plus f16 scales.
    step = np.abs(original.reshape(-1, 32)).max(axis=1, keepdims=True) / 16
    assert (np.abs(read.data - original).reshape(-1, 32) <= step * 1.01).all()


def requantized(source: Path, target: Path) -> Path:
    """Copy a GGUF file with its query matrices as Q5_0."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "gpt-oss")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            sub = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        data, kind = np.array(tensor.data), tensor.tensor_type
        if "attn_q.weight" in tensor.name:
            values = gguf.dequantize(data, kind)
            kind = gguf.GGMLQuantizationType.Q5_0
            data = gguf.quantize(values, kind)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_split_gguf(tmp_path: Path) -> None:
    whole = open_checkpoint(write_tiny(tmp_path / "m.gguf", layout="gguf", tokenizer=True))
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in range(2):
        writer = gguf.GGUFWriter(folder / f"m-{part + 1:05d}-of-00002.gguf", "gpt-oss")
        for field in reader.fields.values() if part == 0 else []:
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                sub = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(field.name, field.contents(), field.types[0], sub)
        for tensor in reader.tensors[part::2]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    parts = open_checkpoint(folder)
    assert parts.config == whole.config
    assert len(parts.files) == 2
    assert_same_values(whole, parts, same_bits=True)
    (folder / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(FormatError, match="part is missing"):
        open_checkpoint(folder)


def test_tokenizer_sources(tmp_path: Path) -> None:
    hf = open_checkpoint(write_tiny(tmp_path / "hf", tokenizer=True)).tokenizer_source()
    assert hf.kind == "hf" and hf.path == tmp_path / "hf" / "tokenizer.json"
    stored = open_checkpoint(write_tiny(tmp_path / "m.gguf", layout="gguf", tokenizer=True))
    tokens, types, merges = gguf_vocabulary(384)
    source = stored.tokenizer_source()
    assert source.kind == "gguf"
    assert (source.tokens, source.token_types) == (tuple(tokens), tuple(types))
    assert source.merges == tuple(merges)
    assert open_checkpoint(write_tiny(tmp_path / "none")).tokenizer_source().kind == "bundled"
    bare = open_checkpoint(write_tiny(tmp_path / "bare.gguf", layout="gguf"))
    assert bare.tokenizer_source().kind == "bundled"


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m")
    first = open_checkpoint(path).fingerprint()
    assert first == open_checkpoint(path).fingerprint()
    config = path / "config.json"
    config.write_text(config.read_text() + "\n")
    assert open_checkpoint(path).fingerprint() != first


def test_what_a_path_may_be(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m")
    assert open_checkpoint(path / "model.safetensors").layout == "hf"
    write_tiny(tmp_path / "pulled" / "original", layout="openai")
    assert open_checkpoint(tmp_path / "pulled").layout == "openai"
    write_tiny(tmp_path / "folder" / "m.gguf", layout="gguf")
    assert open_checkpoint(tmp_path / "folder").layout == "gguf"
    write_tiny(tmp_path / "folder" / "n.gguf", layout="gguf")
    with pytest.raises(FormatError, match=r"m\.gguf, n\.gguf"):
        open_checkpoint(tmp_path / "folder")
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    (tmp_path / "other.bin").write_bytes(b"x")
    with pytest.raises(FormatError, match=r"no \.gguf"):
        open_checkpoint(tmp_path / "other.bin")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "llama"),
        ("swiglu_alpha", 1.0),
        ("attention_bias", False),
        ("hidden_act", "gelu"),
        ("quantization_config", {"quant_method": "bitsandbytes"}),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 8.0, "attention_factor": 2.0}),
    ],
)
def test_variations_that_aperto_cannot_compute_are_refused(
    tmp_path: Path, field: str, value: Any
) -> None:
    path = write_tiny(tmp_path / "m")
    config = json.loads((path / "config.json").read_text()) | {field: value}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError):
        open_checkpoint(path)
