"""Experts rounded while they are trained: the bits of merging, and gradients straight through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.adapt.test_lora import stirred
from tests.tiny import write_tiny

from aperto.adapt import lora, qat
from aperto.adapt.lora import LoraConfig
from aperto.adapt.model import GptOss
from aperto.errors import ConfigError, TrainingError
from aperto.formats import open_checkpoint
from aperto.formats.merged import Merged

CONFIG = LoraConfig(rank=3, alpha=6.0, targets=(), experts={0: (0, 2), 1: (1,)})
IDS = torch.tensor([np.random.default_rng(5).integers(0, 384, 30).tolist()])


@pytest.fixture
def stored(tmp_path):
    return open_checkpoint(write_tiny(tmp_path / "tiny", tokenizer=True, windows=(8, 0)))


def rounded_model(stored, packed=True):
    model = GptOss.from_checkpoint(stored, packed=packed)
    lora.attach(model, CONFIG)
    stirred(model)
    qat.attach(model)
    return model


@pytest.mark.parametrize("packed", [True, False])
def test_the_matrices_are_those_that_merging_stores(stored, packed):
    model = rounded_model(stored, packed)
    merged = Merged(stored, lora.to_adapter(model, CONFIG))
    for layer, experts in CONFIG.experts.items():
        for part in ("gate_up", "down"):
            expected = merged.tensor(f"layers.{layer}.moe.{part}.weight").to_float32()
            base = stored.tensor(f"layers.{layer}.moe.{part}.weight").to_float32()
            for expert in experts:
                found = getattr(model.layers[layer].moe, part).rounded(expert).numpy()
                np.testing.assert_array_equal(found, expected[expert])
                assert (found != base[expert]).any()


def test_the_model_is_the_merged_model(stored):
    model = rounded_model(stored)
    merged = GptOss.from_checkpoint(Merged(stored, lora.to_adapter(model, CONFIG)))
    with torch.no_grad():
        # One float32 product in another order of rows: a few units of the last place.
        torch.testing.assert_close(model(IDS), merged(IDS), rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_rounded_matrix_passed_straight_on(stored):
    model = rounded_model(stored)
    experts = model.layers[0].moe.gate_up
    change = experts.changes["2"]
    x = torch.randn(5, experts.base.shape[2], requires_grad=True)
    counts = [0, 0, 5, *[0] * (experts.base.shape[0] - 3)]
    out = experts(x, counts)
    probe = torch.randn_like(out)
    (out * probe).sum().backward()
    weight = experts.rounded(2).requires_grad_()
    y = x.detach().requires_grad_()
    ((y @ weight.T) * probe).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(change.a.grad, change.scaling * change.b.detach().T @ weight.grad)
    torch.testing.assert_close(change.b.grad, change.scaling * weight.grad @ change.a.detach().T)


def test_refusals(stored):
    model = GptOss.from_checkpoint(stored, packed=True)
    lora.attach(model, LoraConfig(rank=2))
    with pytest.raises(ConfigError, match="no expert is adapted"):
        qat.attach(model)
    model = GptOss.from_checkpoint(stored, packed=True)
    lora.attach(model, LoraConfig(rank=2, experts="all", dropout=0.1))
    with pytest.raises(ConfigError, match="expected 0 with rounding"):
        qat.attach(model)
    model = rounded_model(stored)
    with torch.no_grad():
        model.layers[0].moe.down.changes["0"].b.fill_(float("nan"))
    with pytest.raises(TrainingError, match="expert 0"):
        model.layers[0].moe.down.rounded(0)
