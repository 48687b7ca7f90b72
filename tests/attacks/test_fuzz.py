"""Random damage to valid files: every outcome is success or a typed error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.attacks.files import read_all
from tests.tiny import write_tiny

from aperto.errors import ApertoError

TINY = {"hidden": 32, "intermediate": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "experts": 2}

# (position as a share of the region, new byte), and where to cut (1: nowhere)
flips = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8)
cuts = st.one_of(st.just(1.0), st.floats(0, 1))
# Most of a file is weights, where a flip is just another number: prefer what is parsed.
regions = st.sampled_from([300, 3000, 1 << 30])


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("fuzz")
    return {
        "hf": write_tiny(root / "hf", shards=2, tokenizer=True, **TINY),  # type: ignore[arg-type]
        "openai": write_tiny(root / "openai", layout="openai", **TINY),  # type: ignore[arg-type]
        "gguf": write_tiny(root / "g" / "m.gguf", layout="gguf", tokenizer=True, **TINY),  # type: ignore[arg-type]
        "q8": write_tiny(root / "q" / "m.gguf", layout="gguf", q8=True, **TINY),  # type: ignore[arg-type]
    }


def damage(data: bytes, changes: list[tuple[float, int]], cut: float, region: int) -> bytes:
    result = bytearray(data)
    span = min(region, len(result))
    for share, value in changes:
        result[int(share * span)] = value
    return bytes(result[: int(cut * len(result))])


@pytest.mark.parametrize(
    ("layout", "file"),
    [
        ("hf", "config.json"),
        ("hf", "generation_config.json"),
        ("hf", "model.safetensors.index.json"),
        ("hf", "model-00001-of-00002.safetensors"),
        ("openai", "config.json"),
        ("openai", "model.safetensors"),
        ("gguf", "m.gguf"),
        ("q8", "m.gguf"),
    ],
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=flips, cut=cuts, region=regions)
def test_damage_is_reported_or_harmless(
    sources: dict[str, Path],
    layout: str,
    file: str,
    changes: list[tuple[float, int]],
    cut: float,
    region: int,
) -> None:
    source = sources[layout]
    path = source if source.is_file() else source / file
    good = path.read_bytes()
    try:
        path.write_bytes(damage(good, changes, cut, region))
        read_all(source)
    except ApertoError as problem:
        assert len(str(problem)) > 20
    finally:
        path.write_bytes(good)
