"""All gradients of the twin: against transformers, and against finite differences in float64."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.tiny import write_tiny  # noqa: E402

from aperto.adapt.attention import (  # noqa: E402
    attend,
    blocked_attend,
    first_seen,
    softmax_with_sinks,
)
from aperto.adapt.model import GptOss, combine, swiglu  # noqa: E402
from aperto.formats import open_checkpoint  # noqa: E402
from aperto.formats.names import all_names  # noqa: E402

# Without token 0: transformers gives the embedding of its padding token no gradient. Long enough
# for windows to be cut into blocks.
IDS = torch.tensor([np.random.default_rng(5).integers(1, 384, 80).tolist()])
SHAPES = {
    "windows and clamps": {"windows": (8, 0), "swiglu_limit": 1.5},
    "top 4 of 8, all heads": {"windows": (4, 0), "experts": 8, "top_k": 4, "kv_heads": 4},
    "past the original context": {"windows": (0, 8), "original_context": 16, "beta_fast": 2.0},
}

# Our float32 gradients and theirs are two independent roundings of the float64 ones through the
# same steps. The largest of some 10^5 deviates is 4.4 deviations, give or take a fifth, in both;
# how often a term of a sum is rounded differs by less than 2 in its root: 2 * 1.2 / 0.8.
MULTIPLE = 3.0


def gradients(model, segments=None):
    """Of the summed cross entropy, by canonical name."""
    model.zero_grad()
    model.loss(IDS, torch.ones(IDS.shape), segments).backward()
    return {name: parameter.grad.double() for name, parameter in model.named_parameters()}


def of_transformers(path, config):
    """The same by transformers' own implementation; its experts' matrices are transposed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import GptOssForCausalLM

        model = GptOssForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        )
    logits = model(IDS).logits[0, :-1]
    torch.nn.functional.cross_entropy(logits, IDS[0, 1:], reduction="sum").backward()
    canonical = {row.hf: row.canonical for row in all_names(config)}
    found = {canonical[name]: p.grad.double() for name, p in model.named_parameters()}
    return {
        name: gradient.transpose(1, 2) if gradient.dim() == 3 else gradient
        for name, gradient in found.items()
    }


def farthest(found, truth):
    """The largest error anywhere, in parts of the root mean square of its tensor's gradient."""
    return max(
        float((found[name] - exact).abs().max() / exact.square().mean().sqrt())
        for name, exact in truth.items()
    )


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_every_gradient_is_that_of_transformers(tmp_path, name):
    path = write_tiny(tmp_path / "tiny", seed=3, expert_dtype="bf16", **SHAPES[name])
    source = open_checkpoint(path)
    exact = GptOss.from_checkpoint(source).double()
    truth = gradients(exact)
    theirs = of_transformers(path, source.config)
    assert theirs.keys() == truth.keys()
    single = GptOss.from_checkpoint(source)
    plain = gradients(single)
    single.attend, single.recompute = blocked_attend, True  # as training computes
    error = farthest(theirs, truth)
    assert 0 < error < 1e-3  # theirs and float64 are gradients of the same model
    for ours in (plain, gradients(single)):
        assert farthest(ours, truth) <= MULTIPLE * error


def clamped(model):
    """Shares of expert inputs beyond the clamps, gate and up."""
    shares = []

    def count(module, inputs, pairs):
        gate, up = pairs[:, 0::2], pairs[:, 1::2]
        shares.append(
            [(gate > module.limit).double().mean(), (up.abs() > module.limit).double().mean()]
        )

    for layer in model.layers:
        layer.moe.gate_up.limit = layer.moe.limit
        layer.moe.gate_up.register_forward_hook(count)
    with torch.no_grad():
        model(IDS)
    return np.array(shares).mean(0)


@pytest.mark.parametrize("how", [attend, blocked_attend])
@pytest.mark.parametrize("texts", [1, 3])
def test_every_gradient_is_the_slope_of_the_loss(tmp_path, how, texts):
    """Along a random direction in each tensor, sinks, clamps, windows and router included.

    A central difference of step h errs by h^2 times the third derivative, and by the loss's own
    rounding, 2e-16 of about 200, over h.
    """
    path = write_tiny(tmp_path / "tiny", seed=3, windows=(8, 0), swiglu_limit=1.5)
    model = GptOss.from_checkpoint(open_checkpoint(path)).double()
    assert (clamped(model) > 0.05).all()
    model.attend, model.recompute = how, True
    segments = torch.arange(IDS.shape[1])[None] * texts // IDS.shape[1]
    found = gradients(model, segments)
    generator = torch.Generator().manual_seed(0)
    step = 1e-6

    def loss():
        return float(model.loss(IDS, torch.ones(IDS.shape), segments))

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            direction /= direction.norm()
            kept = parameter.clone()
            sides = []
            for sign in (1, -1):
                parameter.copy_(kept + sign * step * direction)
                sides.append(loss())
            parameter.copy_(kept)
            slope = (sides[0] - sides[1]) / (2 * step)
            expected = float((found[name] * direction).sum())
            assert abs(slope - expected) < 1e-5 * abs(expected) + 1e-6, name


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("how", [attend, blocked_attend])
def test_attention_alone(how, window):
    """torch's own check: every output by every input, for texts packed into a row."""
    segments = torch.tensor([[0] * 4 + [1] * 3, [0] * 7])
    first = first_seen(window, segments)
    inputs = (normal(2, 4, 7, 8), normal(2, 2, 7, 8, seed=1), normal(2, 2, 7, 8, seed=2))
    assert torch.autograd.gradcheck(lambda *x: how(*x, first), (*inputs, normal(4, seed=3)))


def test_sinks_clamps_and_the_softmax_over_the_chosen():
    mask = torch.ones(3, 5, dtype=torch.bool).tril(2)[None, None]
    check = torch.autograd.gradcheck
    assert check(lambda s, k: softmax_with_sinks(s, k, mask), (normal(2, 2, 3, 5), normal(2)))
    pairs = (3 * normal(9, 12)).detach().requires_grad_()
    assert (pairs.abs() > 2).any() and check(lambda x: swiglu(x, 2.0), (pairs,))
    assert check(combine, (normal(6, 4), normal(3, 2)))

    def routed(rows, logits):
        best, chosen = logits.topk(2, dim=-1)
        return combine(
            rows.view(3, 5, 4).gather(1, chosen[..., None].expand(-1, -1, 4)).flatten(0, 1), best
        )

    assert check(routed, (normal(15, 4), normal(3, 5, seed=1)))
