"""Blocked attention against the plain one: outputs and gradients, whoever sees whom."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from aperto.adapt.attention import attend, blocked_attend, first_seen  # noqa: E402


@st.composite
def cases(draw):
    """Inputs whose window and packed texts may or may not be cut into blocks."""
    steps = draw(st.integers(1, 200))
    starts = draw(st.sets(st.integers(1, max(steps - 1, 1)), max_size=4))
    segments = torch.zeros(2, steps, dtype=torch.int64)
    for start in starts:
        segments[draw(st.integers(0, 1)), start:] += 1
    return segments, draw(st.sampled_from([0, 1, 8, 31, 32, 33, 64])), draw(st.integers(0, 2**31))


def results(function, dtype, segments, window, seed):
    """Output and gradients of q, k, v and sinks for a drawn gradient of the output."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    steps = segments.shape[1]
    q, k, v = normal(2, 4, steps, 16), normal(2, 2, steps, 16), normal(2, 2, steps, 16)
    sinks = normal(4)
    out = function(q, k, v, sinks, first_seen(window, segments))
    out.backward(torch.randn(out.shape, generator=generator).to(dtype))
    return [out.detach(), q.grad, k.grad, v.grad, sinks.grad]


@settings(max_examples=40, deadline=None)
@given(cases())
def test_blocked_attention_is_plain_attention(case):
    """In float64, where what rounding leaves is far below any mistake in the mathematics."""
    for plain, blocked in zip(
        results(attend, torch.float64, *case),
        results(blocked_attend, torch.float64, *case),
        strict=True,
    ):
        torch.testing.assert_close(blocked, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("window", [0, 32])
def test_in_bfloat16_it_rounds_no_more_than_the_plain_one(window):
    """Both against float64: the blocked one keeps sums in float32, where the plain one rounds."""
    case = (torch.tensor([[0] * 70 + [1] * 90] * 2), window, 5)
    exact = results(attend, torch.float64, *case)
    plain, blocked = (results(f, torch.bfloat16, *case) for f in (attend, blocked_attend))

    def error(found):
        return [
            float((a.double() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)
        ]

    # The inputs themselves are rounded by 2^-9; each of the some four roundings on the way adds
    # no more than that to a sum of independent terms.
    for mine, theirs in zip(error(blocked), error(plain), strict=True):
        assert mine <= max(1.5 * theirs, 2**-7)
