"""Another context: the weights stay, and positions turn as transformers turns them."""

import numpy as np
import pytest
from tests.tiny import hf_oracle, write_tiny

import aperto
from aperto.adapt.surgery.derived import Derived, with_context
from aperto.adapt.surgery.difference import differences
from aperto.errors import ConfigError
from aperto.formats import open_checkpoint, write_checkpoint


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return open_checkpoint(write_tiny(tmp_path_factory.mktemp("m") / "tiny", tokenizer=True))


@pytest.mark.parametrize("layout", ["hf", "openai", "gguf"])
def test_every_layout_carries_it_and_keeps_the_bytes(stored, tmp_path, layout):
    path = tmp_path / ("m.gguf" if layout == "gguf" else "m")
    config = with_context(stored.config, 2 * stored.config.max_context)
    assert config.rope.factor == 2 * stored.config.rope.factor
    write_checkpoint(Derived(stored, config), path, layout)
    again = open_checkpoint(path)
    assert (again.config.rope, again.config.max_context) == (config.rope, config.max_context)
    assert {d.status for d in differences(stored, again)} <= {"identical", "same values"}


def test_transformers_turns_positions_alike(stored, tmp_path):
    path = tmp_path / "m"
    config = with_context(stored.config, 8192, original=32)
    write_checkpoint(Derived(stored, config), path, "hf")
    ids = [(7 * i) % 300 for i in range(48)]
    with aperto.load(str(path), precision="exact") as model:
        ours = model.trace(ids, ["logits"])["logits"]
    theirs, before = hf_oracle(path)(ids), hf_oracle(stored.path)(ids)
    # Both compute in float32: rounding is far below what the change itself does.
    assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max()
    assert np.abs(ours - before).max() > 1e-2 * np.abs(theirs).max()


def test_a_shorter_context_leaves_positions_as_they_were(stored):
    shorter = with_context(stored.config, 100)
    assert (shorter.max_context, shorter.rope) == (100, stored.config.rope)
    assert with_context(stored.config, 100, factor=1).rope.factor == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 0}, "context is 0"),
        ({"tokens": 9, "factor": 0.5}, "factor is 0.5"),
        ({"tokens": 9, "original": -1}, "of -1 tokens"),
    ],
)
def test_what_makes_no_sense(stored, options, message):
    with pytest.raises(ConfigError, match=message):
        with_context(stored.config, **options)
