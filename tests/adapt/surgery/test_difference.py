"""Two models compared: every figure as NumPy in float64 gives it, whatever type and layout."""

import dataclasses

import numpy as np
import pytest
from tests.tiny import write_tiny

from aperto.adapt.surgery.derived import Derived
from aperto.adapt.surgery.difference import config_differences, differences
from aperto.adapt.surgery.reshaped import Reshaped, with_top_k, without_layers
from aperto.formats import open_checkpoint, write_checkpoint


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("m")
    return [open_checkpoint(write_tiny(folder / str(seed), seed=seed)) for seed in (0, 1)]


class Nudged(Derived):
    """One value of one tensor differs."""

    def tensor(self, name):
        tensor = super().tensor(name)
        if name != "layers.1.attn.q.weight":
            return tensor
        data = tensor.data.copy()
        data[3, 40] ^= 0x0080  # one step of the exponent: twice or half
        return dataclasses.replace(tensor, data=data)


def test_a_model_is_itself_in_every_layout(pair, tmp_path):
    assert {d.status for d in differences(pair[0], pair[0])} == {"identical"}
    path = tmp_path / "m.gguf"
    write_checkpoint(pair[0], path, "gguf")
    # Small tensors are float32 there: other bytes that mean the same.
    again = {d.name: d for d in differences(pair[0], open_checkpoint(path))}
    assert {d.status for d in again.values()} == {"identical", "same values"}
    assert again["layers.0.moe.gate_up.weight"].status == "identical"
    assert again["norm.weight"].types == "BF16, F32"


def test_figures_are_those_of_numpy(pair):
    a, b = pair
    for found in differences(a, b):
        x, y = (m.tensor(found.name).to_float32().astype(np.float64).ravel() for m in pair)
        d = x - y
        assert found.max_abs == np.abs(d).max()
        if found.status == "identical":
            assert not d.any()
            continue
        # float32 sums of up to 2^16 terms in a chunk: 2^16 x 2^-24 is 0.4 % at the very worst;
        # BLAS adds in lanes of at least 8, which leaves 0.05 %.
        np.testing.assert_allclose(found.relative, np.linalg.norm(d) / np.linalg.norm(x), rtol=5e-4)
        cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        np.testing.assert_allclose(found.cosine, cosine, atol=1e-3)
        if x.size % 32 == 0 and a.info(found.name).shape[-1] % 32 == 0:
            assert found.changed_blocks == (d.reshape(-1, 32) != 0).any(axis=1).mean()


def test_one_value_is_one_block(pair):
    found = {d.name: d for d in differences(pair[0], Nudged(pair[0])) if d.status != "identical"}
    assert list(found) == ["layers.1.attn.q.weight"]
    assert found["layers.1.attn.q.weight"].changed_blocks == 1 / (128 * 64 / 32)


def test_what_is_missing_and_what_is_set_otherwise(pair):
    a = pair[0]
    shallow = Reshaped(a, without_layers(a.config, [1]))
    status = {d.name: d.status for d in differences(a, shallow)}
    assert status["layers.1.attn.sinks"] == "only in A"
    assert {d.status for d in differences(shallow, a)} == {"identical", "only in B"}
    settings = config_differences(a.config, with_top_k_config(a))
    assert settings == {f"layers.{i}.experts_per_token": (2, 3) for i in range(2)}


def with_top_k_config(model):
    return Reshaped(model, with_top_k(model.config, 3)).config
