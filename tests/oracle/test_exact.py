"""`exact` against gpt_oss.torch and transformers in float32, and the layouts against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.native.harness import Session, Weights, random_ids, whole
from tests.oracle import plain
from tests.tiny import hf_oracle, torch_oracle, write_tiny

from aperto.engine.load import load_model
from aperto.formats import open_checkpoint

SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "4-experts": ({}, 120),
    "8-experts": (
        {"windows": (8, 0, 8, 0), "hidden": 128, "intermediate": 96, "experts": 8, "top_k": 4},
        100,
    ),
    "like-20b": (
        {
            "windows": (128, 0),
            "experts": 32,
            "top_k": 4,
            "heads": 16,
            "kv_heads": 2,
            "head_dim": 64,
        },
        200,
    ),
    "one-expert-a-token": ({"windows": (0, 5, 5), "top_k": 1, "heads": 8, "kv_heads": 1}, 90),
    "no-shared-heads": ({"windows": (33, 33, 0), "heads": 3, "kv_heads": 3, "experts": 8}, 100),
    "window-longer-than-the-text": ({"windows": (500, 0), "experts": 8, "top_k": 2}, 80),
    "past-the-original-context": (
        {"original_context": 64, "beta_fast": 4.0, "windows": (16, 0, 0)},
        300,
    ),
    "no-yarn": ({"rope_factor": 1.0, "max_context": 4096, "windows": (0, 20)}, 100),
}
MIXED: tuple[dict[str, Any], int] = (
    {"windows": (3, 0, 50, 0), "experts": (4, 8, 32, 8), "top_k": (2, 1, 4, 2)},
    120,
)

# Each of the three float32 results is some rounding of the float64 one. What a rounding inside does
# to a logit (through softmaxes, norms and the clamp) is the same for all three, so the distance of
# the oracles from float64 measures it; ours may differ by how often a term is rounded on its way.
# The longest sums have K <= 192 terms. Ours rounds a term at most 32 + K / 32 = 38 times; no order
# of summation rounds fewer than log2(K) = 7.6 times. Independent roundings add up by their
# root: sqrt(38 / 7.6) = 2.3. The largest of some 10,000 normal deviates is 4 deviations, give or
# take a fifth, in both results: 2.3 * 1.2 / 0.8 = 3.5.
MULTIPLE = 3.5


def assert_as_near_as_the_oracles(
    truth: np.ndarray, found: np.ndarray, oracles: list[np.ndarray]
) -> None:
    """At every position within MULTIPLE times the largest error of the worst oracle anywhere."""
    errors = [float(np.abs(oracle - truth).max()) for oracle in oracles]
    assert 0 < max(errors) < 1e-3  # the oracles and float64 are the same model
    ours = np.abs(found - truth).max(axis=-1)
    assert ours.max() <= MULTIPLE * max(errors), (int(ours.argmax()), float(ours.max()), errors)


@pytest.mark.parametrize("name", SHAPES)
def test_logits_at_every_position(tmp_path: Path, name: str) -> None:
    shape, length = SHAPES[name]
    weights = Weights({"seed": 3, **shape}, tmp_path)
    model = weights.model("exact")
    ids = random_ids(model, length, 11)
    write_tiny(tmp_path / "openai", layout="openai", seed=3, **shape)
    hf, original = hf_oracle(tmp_path / "tiny"), torch_oracle(tmp_path / "openai")
    truth = plain.logits(weights.checkpoint, ids.tolist())
    assert 1 < truth.std() < 10
    assert_as_near_as_the_oracles(
        truth, whole(model, ids), [hf(ids.tolist()), original(ids.tolist())]
    )
    assert_greedy_tokens_agree(weights, {"transformers": hf, "gpt_oss": original})


def assert_greedy_tokens_agree(weights: Weights, oracles: dict[str, Any]) -> None:
    """200 tokens, ours one by one through the cache.

    An oracle that is fed our tokens and would choose the same one at each of them is an oracle
    that generates the same text.
    """
    model = weights.model("exact")
    prompt = random_ids(model, 10, 12)
    session = Session(model, [np.zeros(210, np.int32)], pages=7, seed=0)
    text = session.texts[0]
    text[:10] = prompt
    session.step([(0, 10)])
    for position in range(10, 210):
        text[position] = np.argmax(session.logits[0][-1][-1])
        session.step([(0, 1)])
    for name, oracle in oracles.items():
        theirs = oracle(text.tolist())[9:-1].argmax(axis=-1)
        np.testing.assert_array_equal(text[10:], theirs, err_msg=name)


def test_layers_of_different_windows_and_experts(tmp_path: Path) -> None:
    """Transformers' model cannot state them; gpt_oss.torch is built layer by layer."""
    shape, length = MIXED
    weights = Weights({"seed": 4, **shape}, tmp_path)
    model = weights.model("exact")
    ids = random_ids(model, length, 13)
    write_tiny(tmp_path / "openai", layout="openai", seed=4, **shape)
    oracle = torch_oracle(tmp_path / "openai")
    truth = plain.logits(weights.checkpoint, ids.tolist())
    assert_as_near_as_the_oracles(truth, whole(model, ids), [oracle(ids.tolist())])
    assert_greedy_tokens_agree(weights, {"gpt_oss": oracle})


@pytest.mark.parametrize("precision", ["q8", "exact"])
def test_three_layouts_give_identical_logits(tmp_path: Path, precision: Any) -> None:
    results = []
    for layout in ("hf", "openai", "gguf"):
        path = write_tiny(tmp_path / f"model-{layout}.gguf", layout=layout, windows=(16, 0, 16, 0))
        model = load_model(open_checkpoint(path), precision=precision, num_threads=1)
        results.append(whole(model, random_ids(model, 70, 14)))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_a_q8_0_file_holds_what_we_quantise_ourselves(tmp_path: Path) -> None:
    results = []
    for layout, options in (("hf", {}), ("gguf", {"q8": True})):
        path = write_tiny(tmp_path / f"model-{layout}.gguf", layout=layout, **options)
        model = load_model(open_checkpoint(path), num_threads=1)
        results.append(whole(model, random_ids(model, 70, 15)))
    np.testing.assert_array_equal(*results)
