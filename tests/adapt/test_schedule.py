"""Learning rates by step."""

import pytest

from aperto.adapt.schedule import Schedule
from aperto.errors import ConfigError


def test_rises_then_falls():
    schedule = Schedule(steps=10, peak=1.0, warmup=3, shape="linear")
    rates = [schedule.rate(step) for step in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[3:] == pytest.approx([(7 - i) / 7 for i in range(7)])


def test_shapes():
    half = {"cosine": 0.5, "linear": 0.5, "constant": 1.0}
    for shape, value in half.items():
        assert Schedule(steps=10, peak=1.0, shape=shape).rate(5) == pytest.approx(value)
    assert Schedule(steps=10, peak=1.0, floor=0.1).rate(10) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2, "peak": 0}, "learning rate is 0"),
        ({"steps": 2, "warmup": 2}, "warm-up is 2"),
        ({"steps": 2, "floor": 2}, "floor is 2"),
    ],
)
def test_out_of_range(fields, message):
    with pytest.raises(ConfigError, match=message):
        Schedule(**fields)
