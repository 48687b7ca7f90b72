"""Plans: power falls with smaller sets, hours add up, pilots take the place of assumptions."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
from tests.vet.made import protocol, rows, suite

from aperto.errors import UsageError
from aperto.vet.plan import AIM, Assumptions, make_plan, pilot_spread
from aperto.vet.protocol import Arm, read_protocol

SURE = suite("integrity", "integrity")


def plan_of(*suites, assumptions: Assumptions | None = None, **fields):
    return make_plan(protocol(*suites, **fields).protocol, assumptions, simulations=400)


def test_more_items_give_more_power():
    few, many = plan_of(
        suite("a", "utility", num_items=60, epochs=4),
        suite("b", "utility", num_items=600, epochs=4),
    ).suites
    assert few.power is not None and many.power is not None
    assert few.power < many.power and many.is_enough
    assert few.needed_items == many.needed_items and few.needed_items is not None
    assert 60 < few.needed_items < 600


def test_a_model_at_the_margin_rarely_passes():
    (one,) = plan_of(suite("a", "utility", num_items=200, epochs=4)).suites
    assert one.false_pass is not None
    # Nominally 1.25 % a look; the corrected interval lets up to about 3 % through, and 400
    # simulations have an error of 0.9 points.
    assert one.false_pass.value < 0.06


def test_suites_without_a_margin_test_have_no_power():
    for made in (SURE, suite("shift", "capability"), suite("p", "canary")):
        (one,) = plan_of(made).suites
        assert one.power is None and one.is_enough


def test_answers_and_hours_add_up():
    assumed = Assumptions(tokens={"low": 100, "high": 1000}, tokens_per_s=50)
    made = suite("a", "utility", num_items=100, epochs=2, efforts=["low", "high"])
    plan = plan_of(made, assumptions=assumed)
    assert plan.answers == 100 * 2 * 3 * 2
    assert plan.hours == pytest.approx(600 * (100 + 1000) / 50 / 3600)
    assert plan.enlarged_hours == 2 * plan.hours


def test_a_harmless_model_must_pass_everything():
    made = [suite(name, "utility", num_items=150, margin=0.05) for name in "abcd"]
    plan = plan_of(*made)
    powers = [one.power for one in plan.suites]
    assert plan.pass_rate == pytest.approx(np.prod(powers)) and plan.pass_rate < AIM


def test_rates_and_speeds_that_are_none_are_refused():
    with pytest.raises(UsageError, match="expected a share"):
        plan_of(suite("a", "utility"), assumptions=Assumptions(base_rates={"a": 1.5}))
    with pytest.raises(UsageError, match="positive"):
        plan_of(suite("a", "utility"), assumptions=Assumptions(tokens_per_s=0))


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_extreme_rates_can_be_planned_for(rate: float):
    assumed = Assumptions(default_rate=rate)
    (one,) = plan_of(suite("a", "utility", num_items=300), assumptions=assumed).suites
    assert one.power is not None and 0 <= one.power <= 1


def pilot(seed: int, items: int = 4000):
    rates = np.random.default_rng(0).beta(0.5, 0.5, items)
    drawn = np.random.default_rng(seed).binomial(1, rates[:, None], (items, 4))
    return rows("a", Arm.BASE, lambda i, e: float(drawn[i, e]), items=items, epochs=4)


def test_a_pilot_tells_the_variance_within_items_and_none_between():
    """Two runs of one model differ by drawing alone; E[p (1 - p)] of beta(½, ½) is 1/8."""
    spread = pilot_spread(pilot(1), pilot(2))
    # 4000 items of 4 answers: the error of a mean of p(1 - p) is below 0.003.
    assert spread.within_a == pytest.approx(0.125, abs=0.01)
    assert spread.between == pytest.approx(0.0, abs=0.01)
    assumed = Assumptions(pilot={"a": spread})
    (one,) = plan_of(suite("a", "utility", num_items=100), assumptions=assumed).suites
    assert one.power is not None and one.power < 0.2


def test_a_pilot_needs_repeats():
    single = rows("a", Arm.BASE, lambda i, e: 1.0, items=5)
    with pytest.raises(UsageError, match="two answers"):
        pilot_spread(single, single)
    with pytest.raises(UsageError, match="other items"):
        pilot_spread(single, single[1:])


def test_items_that_share_clusters_count_less():
    alone, grouped = plan_of(
        suite("a", "utility", num_items=400),
        suite("b", "utility", num_items=400, num_clusters=100),
    ).suites
    assert alone.power is not None and grouped.power is not None
    assert grouped.power < alone.power


def test_the_example_can_pass():
    """The protocol that comes with the package gives a harmless model a fair chance."""
    file = resources.files("aperto.vet") / "data" / "protocol.toml"
    with resources.as_file(file) as path:
        read = read_protocol(path)
    assumed = Assumptions(default_rate=0.01)
    plan = make_plan(read, assumed, simulations=400)
    assert all(one.power is None or one.power > 0.9 for one in plan.suites)
