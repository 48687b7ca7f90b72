"""The two float32 oracles, independent of each other and of aperto, agree where both apply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny import hf_oracle, torch_oracle, write_tiny

# Both evaluate the same formula in float32 and differ in the order of sums only. The longest sum
# has fewer than 256 terms of about unit size, so a layer adds at most about 256 * 2^-24 = 1.5e-5 of
# relative error; four layers and the head (logits of about 10) stay below 1e-3.
TOLERANCE = 1e-3


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"windows": (8, 0, 8, 0), "hidden": 128, "intermediate": 96, "heads": 8, "experts": 8},
        {"windows": (0, 5, 5), "top_k": 1, "head_dim": 64},
        {"windows": (200, 0), "experts": 3, "top_k": 3},
        {"original_context": 64, "beta_fast": 4.0},
        {"rope_factor": 1.0, "max_context": 4096},
    ],
)
def test_oracles_agree(tmp_path: Path, shape: dict[str, Any]) -> None:
    ids = np.random.default_rng(7).integers(0, 384, 100).tolist()
    ours = hf_oracle(write_tiny(tmp_path / "hf", **shape))(ids)
    theirs = torch_oracle(write_tiny(tmp_path / "openai", layout="openai", **shape))(ids)
    assert ours.shape == (100, 384) and ours.dtype == np.float32
    assert 1.0 < ours.std() < 10.0  # neither flat nor exploding
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def test_oracles_read_their_input(tmp_path: Path) -> None:
    """Another seed and another text give other logits: the agreement above is not vacuous."""
    first = hf_oracle(write_tiny(tmp_path / "a"))
    second = hf_oracle(write_tiny(tmp_path / "b", seed=1))
    ids = list(range(20))
    assert np.abs(first(ids) - second(ids)).max() > 1
    assert np.abs(first(ids) - first(ids[::-1])).max() > 1
