"""The torch twin and the native core compute one model: both as near to float64 as each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.native.harness import Weights, random_ids, whole
from tests.oracle import plain
from tests.oracle.test_exact import MIXED, SHAPES, assert_as_near_as_the_oracles

from aperto.adapt import lora
from aperto.adapt.attention import blocked_attend
from aperto.adapt.lora import LoraConfig
from aperto.adapt.model import GptOss
from aperto.engine import variants
from aperto.formats.adapter import read_adapter, write_adapter


def logits_of(twin: GptOss, ids: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = twin(torch.from_numpy(ids.astype(np.int64))[None])[0].numpy()
    return found


@pytest.mark.parametrize("name", [*SHAPES, "mixed"])
def test_the_core_is_as_near_as_the_twin(tmp_path: Path, name: str) -> None:
    """The twin as an oracle of the core, for the bound of test_exact and its derivation."""
    shape, length = SHAPES.get(name, MIXED)
    weights = Weights({"seed": 5, **shape}, tmp_path)
    core = weights.model("exact")
    ids = random_ids(core, length, 21)
    truth = plain.logits(weights.checkpoint, ids.tolist())
    twin = GptOss.from_checkpoint(weights.checkpoint, packed=True)
    plainly = logits_of(twin, ids)
    twin.attend = blocked_attend  # as in training
    blocked = logits_of(twin, ids)
    assert_as_near_as_the_oracles(truth, whole(core, ids), [plainly])
    assert_as_near_as_the_oracles(truth, blocked, [plainly])


@pytest.mark.parametrize("rslora", [False, True])
def test_with_all_that_an_adapter_can_change(tmp_path: Path, rslora: bool) -> None:
    """Every target, and small tensors in full, through the file: what is trained is what runs.

    The truth is the twin in float64, which the test above ties to the formulas; its own rope
    tables are float32, a part of the error that is measured.
    """
    shape: dict[str, Any] = {"windows": (16, 0, 16), "experts": 8, "top_k": 3, "seed": 6}
    weights = Weights(shape, tmp_path)
    config = LoraConfig(
        rank=3,
        alpha=5.0,
        rslora=rslora,
        targets=(*lora.ATTENTION, "moe.router"),
        experts={0: (0, 1, 5), 2: tuple(range(8))},
        in_full=tuple(lora.IN_FULL),
    )
    twin = GptOss.from_checkpoint(weights.checkpoint, packed=True)
    lora.attach(twin, config, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in lora.trainable(twin).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    write_adapter(tmp_path / "a", lora.to_adapter(twin, config), weights.checkpoint.config)
    adapter = read_adapter(tmp_path / "a", weights.checkpoint.config)
    core = weights.model("exact")
    ids = random_ids(core, 100, 22)
    exact = GptOss.from_checkpoint(weights.checkpoint).double()
    lora.load(exact, adapter)
    truth = logits_of(exact.double(), ids)
    plain_logits = logits_of(GptOss.from_checkpoint(weights.checkpoint), ids)
    assert np.abs(truth - plain_logits).max() > 1
    variant = variants.build(core, adapter)
    assert_as_near_as_the_oracles(truth, whole(core, ids, variant), [logits_of(twin, ids)])
