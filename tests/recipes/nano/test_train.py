"""The training step: rounding, schedules and the fast pieces against their plain twins."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fast  # noqa: E402
import optimiser  # noqa: E402
import schedule  # noqa: E402
import weights  # noqa: E402

from aperto.adapt import model as twin  # noqa: E402
from aperto.adapt.attention import attend, first_seen  # noqa: E402
from aperto.formats import mxfp4  # noqa: E402


def test_fake_quantisation_is_the_codecs_rounding():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(64, 96, generator=generator)
    values[0] = 0
    values[1, :8] = torch.tensor([6.0, 5.0, 3.5, 2.5, 1.75, 1.25, 0.75, 0.25])  # ties
    expected = mxfp4.decode(*mxfp4.encode(values.numpy()))
    assert (weights.fake_quantise(values).numpy() == expected).all()


def test_orthogonalised_matrices_have_singular_values_near_one():
    matrices = torch.randn(3, 64, 32, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(optimiser.orthogonalise(matrices))
    # Five steps of this polynomial leave singular values within about 0.7 and 1.2.
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_the_schedule_ends_low_and_changes_its_mix():
    recipe = schedule.Schedule()
    assert recipe.rate(0) == 1 / recipe.warmup
    assert recipe.rate(recipe.warmup) == recipe.rate(recipe.steps // 2) == 1.0
    assert recipe.rate(recipe.steps) == 0.01
    assert recipe.mix(0) == "drill" and recipe.mix(recipe.steps // 2) == "full"
    assert not recipe.rounds(recipe.steps // 2) and recipe.rounds(recipe.steps - 1)


def test_views_cut_a_vector_by_parameter():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    flat = torch.arange(sum(p.numel() for p in model.parameters()), dtype=torch.float32)
    cut = weights.views(flat, model)
    assert [tuple(v.shape) for v in cut.values()] == [(2, 3), (2,), (1, 2), (1,)]
    assert torch.cat([v.flatten() for v in cut.values()]).equal(flat)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="kernels.cpp needs g++")
@pytest.mark.parametrize("window", [0, 16])
def test_the_fast_attention_equals_the_plain_one(window):
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16().requires_grad_()

    q, k, v, sinks = normal(2, 4, 64, 64), normal(2, 2, 64, 64), normal(2, 2, 64, 64), normal(4)
    segments = torch.tensor([[1] * 20 + [2] * 44] * 2)
    grad = torch.randn(2, 4, 64, 64, generator=generator).bfloat16()
    found = []
    for is_fast in (False, True):
        first = first_seen(window, segments)
        out = (fast.SinkAttention.apply if is_fast else attend)(q, k, v, sinks, first)
        out.backward(grad)
        found.append([out.detach(), *(t.grad.clone() for t in (q, k, v, sinks))])
        for tensor in (q, k, v, sinks):
            tensor.grad = None
    for plain, quick in zip(*found, strict=True):
        difference = (plain.float() - quick.float()).norm() / plain.float().norm()
        assert difference < 2**-7  # two roundings to bfloat16, 2^-9 each at most, in sums

    pairs = (4 * torch.randn(40, 64, generator=generator)).bfloat16().requires_grad_()
    grads = []
    for function in (twin.swiglu, fast.SwiGLU.apply):
        pairs.grad = None
        function(pairs, 7.0).backward(torch.ones(40, 32).bfloat16())
        grads.append(pairs.grad.float().numpy())
    assert np.abs(grads[0] - grads[1]).max() <= 2**-7 * np.abs(grads[0]).max()
