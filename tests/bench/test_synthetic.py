"""The stand-in: same weights in both layouts, seeded, sane activations, spread routing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from aperto.formats import DType, open_checkpoint
from aperto.formats.q8 import encode_q8_0

ROOT = Path(__file__).parents[2]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("synthetic", ROOT / "bench" / "synthetic.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["synthetic"] = module
    spec.loader.exec_module(module)
    return module


synthetic = load_script()
SMALL = ["--shape", "custom", "--layers", "2", "--experts", "8", "--hidden", "64", "--vocab", "96"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("synthetic")
    assert synthetic.main([*SMALL, "--layout", "hf", "--out", str(path / "hf")]) == 0
    assert synthetic.main([*SMALL, "--layout", "gguf", "--out", str(path / "m.gguf")]) == 0
    return path


def test_both_layouts_hold_the_same_weights(folder: Path) -> None:
    hf, gguf = open_checkpoint(folder / "hf"), open_checkpoint(folder / "m.gguf")
    assert hf.config.layers == gguf.config.layers
    for name in hf.names():
        ours, theirs = hf.tensor(name), gguf.tensor(name)
        if theirs.dtype is DType.Q8_0:
            # Made some rows at a time; the whole matrix at once must give the same blocks.
            assert np.array_equal(encode_q8_0(ours.to_float32()), theirs.data), name
        else:
            assert np.array_equal(ours.to_float32(), theirs.to_float32()), name


def test_seeded(folder: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    assert synthetic.main([*SMALL, "--out", str(again)]) == 0
    assert synthetic.main([*SMALL, "--seed", "1", "--out", str(other)]) == 0
    name = "layers.1.moe.down.weight"
    first, same, different = (
        open_checkpoint(path).tensor(name).data for path in (folder / "hf", again, other)
    )
    assert np.array_equal(first, same)
    assert not np.array_equal(first, different)


def test_layers_differ(folder: Path) -> None:
    checkpoint = open_checkpoint(folder / "hf")
    first, second = (checkpoint.tensor(f"layers.{i}.moe.down.weight").data for i in (0, 1))
    assert not np.array_equal(first, second)


def test_refuses_to_overwrite(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert synthetic.main([*SMALL, "--out", str(folder / "hf")]) == 1
    assert "exists" in capsys.readouterr().err


def test_the_full_shapes_are_gpt_oss() -> None:
    config = synthetic.shape(num_layers=24, num_experts=32)
    weights = synthetic.RandomWeights(config, 0, DType.BF16)
    # The size of gpt-oss-20b's tensors, exactly.
    assert sum(weights.info(name).nbytes for name in weights.names()) == 13_761_264_768
    large = synthetic.RandomWeights(synthetic.shape(num_layers=36, num_experts=128), 0, DType.BF16)
    assert sum(large.info(name).nbytes for name in large.names()) == 65_248_815_744


def test_values_have_the_stated_scale() -> None:
    config = synthetic.shape(num_layers=1, num_experts=4, hidden_size=256, intermediate_size=256)
    weights = synthetic.RandomWeights(config, 0, DType.BF16)
    query = weights.tensor("layers.0.attn.q.weight").to_float32()
    # Half the magnitudes are uniform in [1, 2), half in [2, 4) times 2^-7: mean square
    # (7/3 + 28/3) / 2. A million values leave a relative deviation below 0.5 %.
    expected = (35 / 6) ** 0.5 * 2.0**-7
    assert abs(float(np.sqrt(np.mean(query.astype(np.float64) ** 2))) / expected - 1) < 0.005
    assert abs(float(query.mean())) < 0.01 * expected
    norm = weights.tensor("layers.0.attn.norm.weight").to_float32()
    assert norm.min() >= 1 and norm.max() < 1.25
