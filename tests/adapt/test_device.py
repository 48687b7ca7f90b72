"""What is known of a device before anything is computed on it."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.tiny import write_tiny  # noqa: E402

from aperto.adapt import device  # noqa: E402
from aperto.adapt.attention import attend, blocked_attend  # noqa: E402
from aperto.adapt.estimate import estimate_memory  # noqa: E402
from aperto.errors import ConfigError  # noqa: E402
from aperto.formats import open_checkpoint  # noqa: E402


def test_devices_that_torch_does_not_find_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.mps, "is_available", lambda: True)
    device.check_device("cpu")
    device.check_device("mps")
    with pytest.raises(ConfigError, match=r"does not find here; expected one of cpu, mps;"):
        device.check_device("cuda")
    with pytest.raises(ConfigError, match="'tpu'; expected one of cpu, cuda, mps"):
        device.check_device("tpu")


def test_optimisers_that_a_device_has_not():
    for name, optimiser in (("cpu", "adamw8bit"), ("cuda", "adamw8bit"), ("mps", "adamw")):
        device.check_optimiser(name, optimiser)
    with pytest.raises(ConfigError, match="adamw8bit on mps"):
        device.check_optimiser("mps", "adamw8bit")


def test_attention_is_blocked_on_a_cpu_alone():
    assert [device.attention_on(name) for name in device.DEVICES] == [
        blocked_attend,
        attend,
        attend,
    ]
    device.wait_for(torch.device("cpu"))


def test_all_scores_at_once_take_memory(tmp_path):
    """Plain attention keeps some seven float32 copies of them for its gradient."""
    config = open_checkpoint(write_tiny(tmp_path / "tiny")).config

    def total(scores):
        return estimate_memory(
            config,
            weights=0,
            trained=0,
            batch_tokens=10,
            value_bytes=4,
            optimiser="adamw",
            scores=scores,
        ).total_bytes

    assert 20 * 10**6 < total(10**6) - total(0) < 40 * 10**6
