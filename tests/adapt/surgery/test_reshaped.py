"""Other layers and fewer experts: kept bytes are kept, and outputs follow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import write_tiny

import aperto
from aperto.adapt.surgery import reshaped
from aperto.adapt.surgery.reshaped import Reshaped
from aperto.errors import ConfigError
from aperto.formats import open_checkpoint, write_checkpoint

POINTS = ("layers.*.moe.topk", "logits")


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("m") / "tiny"
    return open_checkpoint(
        write_tiny(path, tokenizer=True, windows=(8, 0, 8), experts=(4, 8, 4), top_k=(2, 2, 2))
    )


def bytes_of(source):
    return {
        name: (tensor.dtype, tensor.data.tobytes(), None if s is None else s.tobytes())
        for name in source.names()
        for tensor in (source.tensor(name),)
        for s in (tensor.scales,)
    }


def logits(path, prompt="the oven"):
    with aperto.load(str(path), precision="exact") as model:
        return model.trace(prompt, ["logits"])["logits"]


def written(source, path):
    write_checkpoint(source, path, "hf", tokenizer_from=None)
    return path


def test_changing_nothing_keeps_every_byte(stored):
    same = Reshaped(stored, reshaped.unchanged(stored.config))
    assert same.config == stored.config
    assert bytes_of(same) == bytes_of(stored)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2))
def test_a_layer_repeated_and_dropped_again_is_the_model_before(stored, layer):
    twice = Reshaped(stored, reshaped.with_repeats(stored.config, [layer]))
    assert twice.config.num_layers == 4
    again = Reshaped(twice, reshaped.without_layers(twice.config, [layer + 1]))
    assert bytes_of(again) == bytes_of(stored)


def test_experts_that_were_never_chosen_are_not_missed(stored, tmp_path):
    before = written(Reshaped(stored, reshaped.unchanged(stored.config)), tmp_path / "a")
    with aperto.load(str(before), precision="exact") as model:
        points = [f"layers.{i}.moe.topk" for i in range(3)]
        chosen = model.trace("the oven", points)
    kept = {i: sorted(set(chosen[f"layers.{i}.moe.topk"].ravel().tolist())) for i in range(3)}
    plan = reshaped.with_experts(stored.config, kept)
    smaller = Reshaped(stored, plan)
    assert sum(layer.num_experts for layer in smaller.config.layers) < 16
    after = written(smaller, tmp_path / "b")
    assert open_checkpoint(after).config.layers == smaller.config.layers
    # The same experts with the same shares, in another numbering: the same sums, to the bit.
    np.testing.assert_array_equal(logits(before), logits(after))


def test_every_result_is_read_back_and_runs(stored, tmp_path):
    config = stored.config
    plans = {
        "top": reshaped.with_top_k(config, 1),
        "window": reshaped.with_window(config, 4),
        "dropped": reshaped.without_layers(config, [0, 2]),
        "repeated": reshaped.with_repeats(config, [1, 1]),
    }
    whole = logits(stored.path)
    for name, plan in plans.items():
        path = written(Reshaped(stored, plan), tmp_path / name)
        assert open_checkpoint(path).config.layers == tuple(layer.config for layer in plan)
        assert logits(path).shape == whole.shape
    assert [layer.window for layer in open_checkpoint(tmp_path / "window").config.layers] == [
        4,
        0,
        4,
    ]
    assert open_checkpoint(tmp_path / "repeated").config.num_layers == 5


def test_most_valuable_experts():
    found = reshaped.most_valuable({0: (1.0, 5.0, 5.0, 0.0), 1: (0.0, 0.0, 0.0)}, [3, 2])
    assert found == {0: (0, 1, 2), 1: (0, 1)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: reshaped.without_layers(c, [3]), "there is no layer 3"),
        (lambda c: reshaped.without_layers(c, [0, 1, 2]), "all 3 layers are dropped"),
        (lambda c: reshaped.with_window(c, 0), "window is 0"),
        (lambda c: reshaped.with_experts(c, {0: (1, 1)}), "keeps the experts"),
        (lambda c: reshaped.with_experts(c, {0: (9,)}), "keeps the experts"),
        (lambda c: reshaped.with_top_k(c, 5), "experts_per_token is 5"),
    ],
)
def test_what_is_not_there(stored, make, message):
    with pytest.raises(ConfigError, match=message):
        Reshaped(stored, make(stored.config))
