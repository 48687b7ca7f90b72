"""The torch twin against transformers, and what packing texts into a row must not change."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.tiny import hf_oracle, write_tiny  # noqa: E402

from aperto.adapt.attention import positions_within  # noqa: E402
from aperto.adapt.model import GptOss, swiglu  # noqa: E402
from aperto.formats import open_checkpoint  # noqa: E402

SHAPES = {
    "windows in any order": {"windows": (0, 8, 8), "experts": 8, "top_k": 3},
    "past the original context": {"windows": (8, 0), "original_context": 16, "beta_fast": 2.0},
    "one expert a token, all heads": {"windows": (4, 0), "top_k": 1, "kv_heads": 4},
    "experts in bfloat16": {"windows": (8, 0), "expert_dtype": "bf16"},
}


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 384, count).tolist()


def bound(logits: np.ndarray, layers: int) -> float:
    """Largest difference that reordered float32 sums can make.

    A dot product of n terms in another order differs by at most about sqrt(n) ulps of the sum of
    magnitudes in practice; the longest here has 128 terms, and each layer has some 8 products in
    a row that a norm keeps from growing.
    """
    return (
        8
        * layers
        * float(np.sqrt(128))
        * float(np.finfo(np.float32).eps)
        * float(np.abs(logits).max())
    )


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_logits_equal_those_of_transformers(tmp_path, name):
    shape = SHAPES[name]
    path = write_tiny(tmp_path / "tiny", seed=3, **shape)
    ids = tokens(40)
    expected = hf_oracle(path)(ids)
    with torch.inference_mode():
        found = GptOss.from_checkpoint(open_checkpoint(path))(torch.tensor([ids]))[0].numpy()
    assert np.abs(found - expected).max() <= bound(expected, len(shape["windows"]))
    assert (found.argmax(-1) == expected.argmax(-1)).all()


def test_a_packed_text_sees_nothing_of_its_neighbours(tmp_path):
    twin = GptOss.from_checkpoint(open_checkpoint(write_tiny(tmp_path / "tiny", windows=(8, 0))))
    first, second = tokens(9, 1), tokens(14, 2)
    segments = torch.tensor([[1] * len(first) + [2] * len(second)])
    with torch.inference_mode():
        packed = twin(torch.tensor([first + second]), segments)[0].numpy()
        alone = [twin(torch.tensor([ids]))[0].numpy() for ids in (first, second)]
    apart = np.concatenate(alone)
    assert np.abs(packed - apart).max() <= bound(apart, 2)


def test_positions_start_again_with_each_segment():
    found = positions_within(torch.tensor([[1, 1, 1, 2, 3, 3], [0, 0, 4, 4, 4, 4]]))
    assert found.tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 0, 1, 2, 3]]


def test_every_parameter_has_its_canonical_name(tmp_path):
    checkpoint = open_checkpoint(write_tiny(tmp_path / "tiny"))
    twin = GptOss.from_checkpoint(checkpoint)
    assert {name for name, _ in twin.named_parameters()} == set(checkpoint.names())


def test_gradients_reach_every_parameter(tmp_path):
    twin = GptOss.from_checkpoint(open_checkpoint(write_tiny(tmp_path / "tiny", top_k=4)))
    twin(torch.tensor([tokens(30)])).square().mean().backward()
    dead = [name for name, p in twin.named_parameters() if not p.grad.abs().sum() > 0]
    assert dead == []


def test_the_activation_is_what_it_says_and_so_is_its_gradient():
    """In float64 against plain operations; rows past one piece, values on both sides of clamps."""
    generator = torch.Generator().manual_seed(1)
    pairs = (5 * torch.randn(130, 12, generator=generator, dtype=torch.float64)).requires_grad_()
    weights = torch.randn(130, 6, generator=generator, dtype=torch.float64)
    gate, up = pairs[:, 0::2].clamp(max=7.0), pairs[:, 1::2].clamp(-7.0, 7.0)
    expected = gate * torch.sigmoid(1.702 * gate) * (up + 1)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), pairs)
    found = swiglu(pairs, 7.0)
    (gradient,) = torch.autograd.grad((found * weights).sum(), pairs)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient, wanted, rtol=1e-13, atol=1e-13)
