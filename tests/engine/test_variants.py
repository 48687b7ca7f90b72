"""Adapters and interventions beside a model: alone and in company, loaded and unloaded, read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.native.test_variants import random_adapter
from tests.tiny import write_tiny

from aperto.config import EngineConfig
from aperto.engine import Engine, Request, SamplingParams
from aperto.engine.load import load_model
from aperto.engine.variants import Interventions, read_changes
from aperto.errors import AdapterError, ConfigError, EngineClosedError
from aperto.formats import open_checkpoint
from aperto.formats.adapter import write_adapter


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = write_tiny(tmp_path_factory.mktemp("tiny") / "model", windows=(40, 0), max_context=512)
    return load_model(open_checkpoint(path), num_threads=2, max_batch_tokens=64)


@pytest.fixture
def engine(model: Any) -> Any:
    config = EngineConfig(context_tokens=512, max_batch_tokens=64, max_sequences=6)
    with Engine(model, config) as engine:
        for seed in (1, 2):
            engine.add_variant(f"a{seed}", random_adapter(model.config, seed))
        yield engine


def request(variant: str, seed: int, length: int = 70) -> Request:
    prompt = np.random.default_rng(seed).integers(0, 384, length).tolist()
    sampling = SamplingParams(seed=seed)
    return Request(prompt=prompt, max_tokens=20, sampling=sampling, variant=variant)


def answer(stream: Any) -> list[tuple[int, float]]:
    return [(token.id, token.logprob) for token in stream]


def test_alone_and_among_strangers_with_other_variants(engine: Any) -> None:
    requests = [request(variant, seed) for seed, variant in enumerate(["", "a1", "a2"] * 2)]
    alone = [answer(engine.submit(item)) for item in requests]
    together = [engine.submit(item) for item in requests]
    assert [answer(stream) for stream in together] == alone
    same_prompt = [request(variant, 9) for variant in ("", "a1", "a2")]
    assert len({tuple(answer(engine.submit(item))) for item in same_prompt}) == 3


def test_prefixes_are_found_by_their_own_variant_alone(engine: Any) -> None:
    first = engine.submit(request("a1", 5))
    expected = answer(first)
    for variant, cached in (("", 0), ("a2", 0), ("a1", 64), ("", 64)):
        stream = engine.submit(request(variant, 5))
        found = answer(stream)
        assert stream.usage.cached_tokens == cached
        assert (found == expected) == (variant == "a1")


def test_a_view_submits_its_variant(engine: Any) -> None:
    expected = answer(engine.submit(request("a2", 3)))
    with engine.view("a2") as view:
        assert answer(view.submit(request("", 3))) == expected
    assert answer(engine.submit(request("a2", 3))) == expected  # closing a view closes nothing


def test_unloading_while_an_answer_is_under_way(engine: Any, model: Any) -> None:
    expected = answer(engine.submit(request("a1", 4)))
    stream = engine.submit(request("a1", 4))
    engine.remove_variant("a1")
    assert answer(stream) == expected
    assert engine.variants == ("a2",)
    with pytest.raises(ConfigError, match="no variant 'a1' is loaded; there are: a2"):
        engine.submit(request("a1", 4))
    for call in (engine.view, engine.remove_variant):
        with pytest.raises(ConfigError, match="no variant 'a1'"):
            call("a1")
    engine.add_variant("a1", random_adapter(model.config, 2))  # another one of that name
    stream = engine.submit(request("a1", 4))
    assert answer(stream) == answer(engine.submit(request("a2", 4)))
    assert stream.usage.cached_tokens == 0


def test_an_adapter_from_its_folder(model: Any, engine: Any, tmp_path: Path) -> None:
    adapter = random_adapter(model.config, 1)
    assert "norm.weight" in adapter.replaced
    engine.add_variant("kept", adapter)
    write_adapter(tmp_path / "adapter", adapter, model.config)
    engine.add_variant("read", read_changes(tmp_path / "adapter", model.config))
    assert answer(engine.submit(request("read", 6))) == answer(engine.submit(request("kept", 6)))


def test_reading_changes_nothing_and_fits_together(engine: Any) -> None:
    ids = request("", 7, length=150).prompt  # more than one chunk
    before = answer(engine.submit(request("", 7)))
    read = engine.trace(ids, ["layers.*." + name for name in ("resid_pre", "resid_post", "attn.z",
        "attn.v", "attn.pattern", "moe.topk", "moe.weights", "moe.router_logits", "moe.expert_out",
        "resid_mid")] + ["logits"])  # fmt: skip
    assert answer(engine.submit(request("", 7))) == before
    np.testing.assert_array_equal(read["layers.0.resid_post"], read["layers.1.resid_pre"])
    np.testing.assert_array_equal(engine.trace(ids, ["logits"])["logits"], read["logits"])
    logits = read["layers.1.moe.router_logits"]
    np.testing.assert_array_equal(
        read["layers.1.moe.topk"], np.argsort(-logits, axis=1, kind="stable")[:, :2]
    )
    shares, outputs = read["layers.1.moe.weights"], read["layers.1.moe.expert_out"]
    added = np.einsum("tk,tkh->th", shares, outputs)
    moved = read["layers.1.resid_post"] - read["layers.1.resid_mid"]
    # Two fused additions to x in float32: each rounds by half an ulp of the largest magnitude.
    ulp = np.finfo(np.float32).eps * np.abs(read["layers.1.resid_post"]).max()
    assert np.abs(added - moved).max() <= 4 * ulp
    pattern = read["layers.0.attn.pattern"]
    assert pattern.shape == (150, 4, 151)
    assert not pattern[100, :, :61].any() and pattern[100, :, 61:101].all()  # the window of 40
    assert not pattern[100, :, 101:-1].any() and pattern[100, :, -1].all()  # nothing later; a sink
    values = read["layers.0.attn.v"].reshape(150, 2, 1, 32).repeat(2, axis=2).reshape(150, 4, 32)
    z = np.einsum("thp,phd->thd", pattern[..., :-1], values).reshape(150, 128)
    # Values are stored as f16: half a unit of 2^-11 each, and their average errs no more.
    assert np.abs(z - read["layers.0.attn.z"]).max() <= 2**-11 * np.abs(values).max()


def test_a_trace_of_a_variant(engine: Any) -> None:
    ids = request("", 8).prompt
    base, own = (engine.trace(ids, ["final_norm"], v)["final_norm"] for v in ("", "a1"))
    assert base.shape == own.shape == (70, 64) and not np.array_equal(base, own)


@pytest.mark.parametrize("point", ["layers.2.resid_pre", "layers.0.attn.w", "logit", "layers.x.q"])
def test_unknown_points_are_refused(engine: Any, point: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no point|has the layers"):
        engine.trace([1, 2], [point])


def test_a_closed_engine_traces_nothing(model: Any) -> None:
    engine = Engine(model, EngineConfig(context_tokens=64, max_batch_tokens=64, max_sequences=1))
    engine.close()
    with pytest.raises(EngineClosedError):
        engine.trace([1], ["logits"])


# --- intervention files --------------------------------------------------------------------------


def write_file(folder: Path, changes: object, **vectors: np.ndarray) -> Path:
    path = folder / "change.json"
    path.write_text(json.dumps({"format": "aperto-variant", "version": 1, "changes": changes}))
    if vectors:
        np.savez(path.with_suffix(".npz"), **vectors)
    return path


def test_interventions_do_what_their_file_says(engine: Any, model: Any, tmp_path: Path) -> None:
    tone = np.random.default_rng(0).normal(size=64).astype(np.float32)
    path = write_file(
        tmp_path,
        [
            {"point": "layers.0.resid_post", "scale": 0.5, "add": "tone", "strength": 2.0},
            {"point": "layers.*.moe.router_logits", "mask": [3], "bias": {"1": 100}},
            {"point": "layers.1.moe.topk", "count": 3},
        ],
        tone=tone,
    )
    changes = read_changes(path, model.config)
    assert isinstance(changes, Interventions) and len(changes.changes) == 4
    engine.add_variant("tone", changes)
    points = ["layers.0.moe.topk", "layers.1.moe.topk", "layers.1.resid_pre"]
    mixture = ["layers.0.resid_mid", "layers.0.moe.weights", "layers.0.moe.expert_out"]
    read = engine.trace(request("", 1).prompt, [*points, *mixture], "tone")
    assert (read["layers.0.moe.topk"][:, 0] == 1).all() and read["layers.0.moe.topk"].max() < 3
    assert read["layers.1.moe.topk"].shape == (70, 3)
    before = read["layers.0.resid_mid"] + np.einsum(
        "tk,tkh->th", read["layers.0.moe.weights"], read["layers.0.moe.expert_out"]
    )
    ulp = np.finfo(np.float32).eps * np.abs(before).max()
    assert np.abs(read["layers.1.resid_pre"] - (0.5 * before + 2 * tone)).max() <= 8 * ulp


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"point": "layers.5.resid_pre"}, r"no layer 5; the model has 0\.\.1"),
        ({"point": "layers.0.attn.q"}, "point is 'layers.0.attn.q'; expected"),
        ({"point": "layers.0.resid_pre", "mask": [1]}, "resid_pre has no mask"),
        ({"point": "layers.0.resid_pre", "add": "x"}, "has no vector 'x'; it has: v"),
        ({"point": "layers.0.resid_pre", "add": "v"}, r"'v' has the shape \(3,\); expected 64"),
        ({"point": "layers.0.resid_pre", "scale": "2"}, "scale is '2'; expected a finite number"),
        ({"point": "layers.0.moe.topk", "count": 5}, r"count is 5; expected 1\.\.4"),
        ({"point": "layers.0.moe.router_logits", "mask": [4]}, r"expert 4; expected 0\.\.3"),
        ({"point": "layers.0.moe.router_logits", "mask": [0, 1, 2, 3]}, "all 4 experts are masked"),
        ("scale", "expected an object"),
    ],
)
def test_faults_in_a_file_are_named(
    model: Any, tmp_path: Path, change: object, message: str
) -> None:
    path = write_file(tmp_path, [change], v=np.ones(3, np.float32))
    with pytest.raises(AdapterError, match=message):
        read_changes(path, model.config)


def test_what_is_no_variant_is_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="is no variant"):
        read_changes(tmp_path, model.config)
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(AdapterError, match='expected "format": "aperto-variant"'):
        read_changes(tmp_path / "x.json", model.config)
    with pytest.raises(AdapterError, match="expected a list"):
        read_changes(write_file(tmp_path, {}), model.config)
    path = write_file(tmp_path, [{"point": "layers.0.resid_pre"}])
    path.with_suffix(".npz").write_bytes(b"PK no archive")
    with pytest.raises(AdapterError, match=r"cannot be read as an \.npz file"):
        read_changes(path, model.config)
