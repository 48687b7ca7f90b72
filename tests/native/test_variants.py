"""Variants in the forward pass: right against merged weights, and the same bits in any company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.native.harness import Session, Weights, random_ids, shapes, whole
from tests.native.test_forward import draw_sizes, isas, precisions, property_test, threads, tiny

from aperto.config import ModelConfig
from aperto.engine.variants import build
from aperto.errors import AdapterError
from aperto.formats.adapter import Adapter, LowRank
from aperto.formats.names import tensor_shapes
from aperto.native import Model, isa_names


def random_adapter(config: ModelConfig, seed: int, rank: int = 3, share: float = 1.0) -> Adapter:
    """Changes of about the weights' own size on a share of all matrices, and of all vectors."""
    rng = np.random.default_rng(seed)
    deltas, replaced = {}, {}
    for name, shape in tensor_shapes(config).items():
        if name in ("embedding.weight", "head.weight") or rng.random() > share:
            continue
        if not name.endswith(".weight") or name.endswith("norm.weight"):
            center = 1.0 if name.endswith("norm.weight") else 0.0
            replaced[name] = rng.normal(center, 0.2, shape).astype(np.float32)
            continue
        keys = [f"{name}:{i}" for i in range(shape[0])] if len(shape) == 3 else [name]
        for key in keys:
            a = rng.normal(size=(rank, shape[-1])) / np.sqrt(shape[-1])
            b = rng.normal(size=(shape[-2], rank)) * 0.2
            deltas[key] = LowRank(a.astype(np.float32), b.astype(np.float32))
    return Adapter(rank=rank, alpha=2.0 * rank, rslora=False, deltas=deltas, replaced=replaced)


@settings(property_test, max_examples=25)
@given(shapes(), precisions, isas, threads, st.data())
def test_company_of_other_variants(
    shape: dict[str, Any], precision: Any, isa: str, workers: int, data: st.DataObject
) -> None:
    """Each row's bits are those of its solo run by the best kernels, whoever is beside it."""
    with tiny(shape) as weights:
        model, alone = weights.model(precision, workers, isa), weights.model(precision)
        count = data.draw(st.integers(2, 4))
        texts = [random_ids(model, data.draw(st.integers(1, 70)), seed) for seed in range(count)]
        adapters = [
            random_adapter(model.config, seed, rank, share)
            for seed, (rank, share) in enumerate([(1, 1.0), (3, 0.5), (17, 0.3)])
        ]
        chosen = [data.draw(st.sampled_from([None, *adapters])) for _ in texts]
        session = Session(model, texts, pages=sum(-(-len(t) // 32) for t in texts), seed=5)
        session.variants = [None if a is None else build(model, a) for a in chosen]
        sizes = draw_sizes(data, 70)
        while left := [i for i, text in enumerate(texts) if session.done[i] < len(text)]:
            runs = data.draw(st.lists(st.sampled_from(left), min_size=1, unique=True))
            session.step([(i, min(next(sizes), len(texts[i]) - session.done[i])) for i in runs])
        for i, (text, adapter) in enumerate(zip(texts, chosen, strict=True)):
            own = None if adapter is None else build(alone, adapter)
            np.testing.assert_array_equal(session.result(i), whole(alone, text, own))


@pytest.mark.parametrize("isa", isa_names())
def test_a_variant_equals_the_merged_model(tmp_path: Path, isa: str) -> None:
    torch = pytest.importorskip("torch")
    from aperto.adapt.model import GptOss

    weights = Weights({"windows": (8, 0), "experts": 5, "top_k": 2, "seed": 3}, tmp_path)
    model = weights.model("exact", 2, isa)
    adapter = random_adapter(model.config, 7)
    state = {
        name: weights.checkpoint.tensor(name).to_float32().astype(np.float64)
        for name in weights.checkpoint.names()
    }
    for key, delta in adapter.deltas.items():
        name, _, expert = key.partition(":")
        product = adapter.scaling * delta.b.astype(np.float64) @ delta.a.astype(np.float64)
        if expert:
            state[name][int(expert)] += product
        else:
            state[name] += product
    state |= {name: array.astype(np.float64) for name, array in adapter.replaced.items()}
    twin = GptOss(model.config)
    twin.load_state_dict({name: torch.from_numpy(a).float() for name, a in state.items()})
    ids = random_ids(model, 60, 1)
    with torch.inference_mode():
        expected = twin(torch.from_numpy(ids.astype(np.int64))[None])[0].numpy()
    found = whole(model, ids, build(model, adapter))
    # As in tests/adapt/test_model.py: sqrt(n) ulps of a sum of n = 128 terms, some 8 products in
    # a row for each of 2 layers. The low-rank path adds a product of rank 3 beside each of them
    # and the merged weights are rounded once: twice as many.
    ulps = 2 * 8 * 2 * np.sqrt(128)
    assert (
        np.abs(found - expected).max() <= ulps * np.finfo(np.float32).eps * np.abs(expected).max()
    )
    assert np.abs(found - whole(model, ids)).max() > 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("precision", ["q8", "exact"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_another_number_of_experts(tmp_path: Path, precision: Any, count: int) -> None:
    """Equal to the checkpoint whose configuration says so; rows beside it keep their number."""
    shape = {"windows": (0, 8), "experts": 4, "seed": 9}
    model = Weights(shape | {"top_k": 2}, tmp_path / "a").model(precision)
    other = Weights(shape | {"top_k": count}, tmp_path / "b").model(precision)
    variant = model.new_variant()
    for layer in range(2):
        variant.set_experts_per_token(layer, count)
    texts = [random_ids(model, 40, seed) for seed in (1, 2)]
    session = Session(model, texts, pages=4, seed=0)
    session.variants = [variant, None]
    session.step([(0, 40), (1, 40)])
    np.testing.assert_array_equal(session.result(0), whole(other, texts[0]))
    np.testing.assert_array_equal(session.result(1), whole(model, texts[1]))


def test_masked_experts_are_not_chosen(tmp_path: Path) -> None:
    model = Weights({"windows": (0,), "experts": 4, "top_k": 2}, tmp_path).model()
    variant = model.new_variant()
    mask = np.array([0, -np.inf, 0, -np.inf], np.float32)
    variant.set_bias(0, "moe.router", 0, mask, False)
    taps = model.new_taps(["layers.0.moe.topk"])
    ids = random_ids(model, 30, 1)
    count = np.arange(30, dtype=np.int32)
    cache, table = model.new_cache([1]), [np.zeros((1, 1), np.int32)]
    model.forward(cache, ids, count, 0 * count, table, count, variants=[variant], taps=taps)
    assert set(np.unique(taps.take()["layers.0.moe.topk"])) == {0.0, 2.0}


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    weights = Weights({}, tmp_path)
    model = weights.model()
    one, square = np.ones(1, np.float32), np.ones((2, 2), np.float32)
    variant = model.new_variant()
    with pytest.raises(ValueError, match=r"layer 9 does not exist; the model has 2"):
        variant.set_bias(9, "attn.q", 0, one, False)
    with pytest.raises(ValueError, match=r"attn.q: A is \[2, 2\] .* expected \[r, 64\] and \[128"):
        variant.set_low_rank(0, "attn.q", 0, square, square)
    with pytest.raises(ValueError, match="expert 4 of layer 0 does not exist; it has 4"):
        variant.set_bias(0, "moe.down", 4, one, False)
    with pytest.raises(ValueError, match=r"5 experts a token; expected 1\.\.4"):
        variant.set_experts_per_token(0, 5)
    with pytest.raises(ValueError, match="unknown point 'resid'"):
        variant.set_residual(0, "resid", 1.0, one)
    with pytest.raises(ValueError, match=r"unknown part 'attn\.z'"):
        variant.set_bias(0, "attn.z", 0, one, False)
    with pytest.raises(ValueError, match=r"attn.sinks has 1 values; expected 4"):
        variant.replace_vector(0, "attn.sinks", one)
    with pytest.raises(ValueError, match="belongs to another model"):
        whole(weights.model(), random_ids(model, 4, 0), variant)
    other = random_adapter(Weights({"hidden": 96}, tmp_path / "b").checkpoint.config, 0)
    with pytest.raises(AdapterError, match="does not fit the model"):
        build(model, other)


def test_a_list_of_the_wrong_length_is_refused(tmp_path: Path) -> None:
    model: Model = Weights({}, tmp_path).model()
    ids = random_ids(model, 4, 0)
    count = np.arange(4, dtype=np.int32)
    tables = [np.zeros((1, 1), np.int32)] * 2
    with pytest.raises(ValueError, match=r"there are 2 variants; expected .*: 1"):
        model.forward(
            model.new_cache([1, 1]), ids, count, 0 * count, tables, count, variants=[None, None]
        )
