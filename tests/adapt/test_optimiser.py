"""AdamW in 8 bits against torch's AdamW."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aperto.adapt.optimiser import AdamW8bit, decode, encode, make_optimiser


@settings(deadline=None)
@given(st.integers(1, 700), st.integers(0, 2**16), st.floats(1e-12, 1e6))
def test_codes_are_within_a_sixteenth(size, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator) * scale
    codes, scales = encode(values, None)
    back = decode(codes, scales, values.shape)
    # Three bits of fraction round by at most 2^-4; below e4m3's normal numbers, by half its
    # smallest step of 2^-9, in units of a block's largest value over 448.
    bound = values.abs() * 2**-4 + values.abs().max() / 448 * 2**-10
    assert (back - values).abs().le(bound * 1.0001).all()


def test_rounding_by_chance_is_right_on_the_mean():
    values = torch.cat([torch.full((255,), 0.033), torch.ones(1)])
    drawn = torch.Generator().manual_seed(0)
    mean = torch.stack([decode(*encode(values, drawn), values.shape) for _ in range(400)]).mean()
    exact = torch.stack([values] * 400).mean()
    # 400 * 255 roundings between neighbours 1/8 apart (relative): standard error below
    # 0.033 / 16 / sqrt(102000) = 6.5e-6; five of them.
    assert abs(mean - exact) < 3.3e-5


def test_follows_adamw_on_a_quadratic():
    """Both reach the minimum of a badly scaled bowl; they differ by the codes' rounding alone.

    A first moment is off by 1/16 of itself at most and a second by as much, whose root is off by
    1/32: no step is longer or shorter by more than a tenth, and chance makes them even out.
    """

    def run(name):
        torch.manual_seed(0)
        target = torch.randn(40, 30)
        slopes = torch.logspace(-3, 0, 30)
        parameter = torch.nn.Parameter(torch.zeros(40, 30))
        optimiser = make_optimiser(name, [parameter], weight_decay=0.01)
        for step in range(300):
            optimiser.param_groups[0]["lr"] = 0.05 * (1 - step / 300)
            (((parameter - target) ** 2) * slopes).sum().backward()
            optimiser.step()
            optimiser.zero_grad()
        return (parameter.detach() - target).abs().mean()

    assert run("adamw8bit") < 1.1 * run("adamw")


def test_a_moving_average_moves_by_less_than_a_code():
    """Second moments decay by a thousandth a step, far less than the spacing of 8-bit floats."""
    parameter = torch.nn.Parameter(torch.zeros(256))
    optimiser = AdamW8bit([parameter], lr=0.0)
    parameter.grad = torch.ones(256)
    optimiser.step()
    parameter.grad = torch.zeros(256)
    parameter.grad[0] = 0.03  # holds the block's scale, near what it was
    for _ in range(1000):
        optimiser.step()
    state = optimiser.state[parameter]
    square = decode(state["root"], state["root_scale"], parameter.shape).square()
    # 1e-3 * 0.999^1000 = 3.7e-4; each value walks by chance, their mean does not.
    assert square[1:].mean() == pytest.approx(3.68e-4, rel=0.1)


def test_state_takes_a_byte_a_value_and_survives_saving():
    parameter = torch.nn.Parameter(torch.randn(64, 64))
    optimiser = AdamW8bit([parameter], lr=1e-2)
    parameter.grad = torch.randn(64, 64)
    optimiser.step()
    state = optimiser.state[parameter]
    assert state["mean"].nbytes == state["root"].nbytes == 64 * 64
    assert state["mean_scale"].nbytes == 64 * 64 // 256 * 4
    other = AdamW8bit([parameter], lr=1e-2)
    other.load_state_dict(optimiser.state_dict())
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(other.state[parameter][key], value)
            assert other.state[parameter][key].dtype == value.dtype
