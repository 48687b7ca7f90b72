"""Planning: what a protocol can tell apart, how many answers that takes, and how long."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from aperto.errors import UsageError
from aperto.vet.evidence import registered
from aperto.vet.protocol import Kind, Protocol, Statistics, Suite
from aperto.vet.rows import Row, item_scores
from aperto.vet.stats import (
    Scenario,
    Share,
    Spread,
    non_inferiority_power,
    non_inferiority_size,
    simulate,
    spread_of,
)

AIM = 0.99
"""Power to aim at: all suites must pass, so at 0.9 each, ten would block two of three."""

TOKENS = {"none": 200, "low": 500, "medium": 2_000, "high": 8_000}
"""Assumed tokens of an answer by effort, until a run tells."""

MAX_RATE, MIN_RATE = 0.98, 0.002
"""Rates outside are planned for as these: a beta distribution needs some room."""


@dataclasses.dataclass(frozen=True, slots=True)
class Assumptions:
    """What is taken for granted where no pilot has told."""

    base_rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Rate of harm of the base by suite (1 - accuracy where more is better)."""
    default_rate: float = 0.02
    tokens: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict(TOKENS))
    """Tokens of an answer by effort."""
    tokens_per_s: float = 100.0
    """Of the whole batch."""
    pilot: Mapping[str, Spread] = dataclasses.field(default_factory=dict)
    """Spread by suite found in a pilot; takes the place of the simulation's assumption."""


@dataclasses.dataclass(frozen=True, slots=True)
class SuitePlan:
    """One suite's numbers, at one effort."""

    suite: Suite
    base_rate: float
    """Assumed."""
    power: float | None
    """Chance that a harmless model passes at the first look; None where no margin is tested."""
    false_pass: Share | None
    """Simulated share of models exactly at the margin that pass at the first look."""
    needed_items: int | None
    """Items (clusters, where items share them) at which the power is 0.99."""
    answers: int
    """Over all arms and efforts, first look."""
    hours: float

    @property
    def is_enough(self) -> bool:
        """Whether the power reaches the aim."""
        return self.power is None or self.power >= AIM


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The whole protocol's numbers."""

    suites: tuple[SuitePlan, ...]
    pass_rate: float
    """Chance that a harmless model passes every suite and effort, were they independent."""
    answers: int
    hours: float
    enlarged_hours: float
    """With the registered enlargement."""


def make_plan(
    protocol: Protocol, assumptions: Assumptions | None = None, *, simulations: int = 2_000
) -> Plan:
    """Power, sizes and hours of a protocol.

    Raises UsageError for rates outside 0..1 and speeds that are not positive.
    """
    taken = assumptions or Assumptions()
    if taken.tokens_per_s <= 0:
        raise UsageError(f"tokens per second is {taken.tokens_per_s:g}; expected a positive number")
    suites = tuple(_plan_suite(protocol, suite, taken, simulations) for suite in protocol.suites)
    chance = 1.0
    for one in suites:
        chance *= (1.0 if one.power is None else one.power) ** len(one.suite.efforts)
    hours = sum(one.hours for one in suites)
    return Plan(
        suites=suites,
        pass_rate=chance,
        answers=sum(one.answers for one in suites),
        hours=hours,
        enlarged_hours=hours * protocol.statistics.enlargement,
    )


def pilot_spread(rows: Sequence[Row], again: Sequence[Row]) -> Spread:
    """Spread of a suite from two runs of the base model on the same items.

    Raises UsageError for other items, and for fewer than two answers an item.
    """
    a, b = item_scores(rows), item_scores(again)
    if a.items != b.items:
        raise UsageError("the two runs have other items; expected the same ones")
    repeats = min(*a.repeats, *b.repeats)
    if repeats < 2:
        raise UsageError("a pilot needs at least two answers an item in each run")
    within_a = float((a.means * (1 - a.means)).mean() * repeats / (repeats - 1))
    within_b = float((b.means * (1 - b.means)).mean() * repeats / (repeats - 1))
    seen = float(((a.means - b.means) ** 2).mean())
    return Spread(max(0.0, seen - (within_a + within_b) / repeats), within_a, within_b)


def _plan_suite(
    protocol: Protocol, suite: Suite, taken: Assumptions, simulations: int
) -> SuitePlan:
    rate = taken.base_rates.get(suite.name, taken.default_rate)
    if not 0 <= rate <= 1:
        raise UsageError(f"base rate of {suite.name} is {rate:g}; expected a share")
    items, epochs = registered(suite, protocol.statistics, 1)
    power, false_pass, needed = _power(suite, protocol.statistics, rate, taken, simulations)
    answers = items * epochs * len(protocol.arms)
    seconds = sum(answers * taken.tokens[effort] for effort in suite.efforts) / taken.tokens_per_s
    return SuitePlan(
        suite=suite,
        base_rate=rate,
        power=power,
        false_pass=false_pass,
        needed_items=needed,
        answers=answers * len(suite.efforts),
        hours=seconds / 3600,
    )


def _power(
    suite: Suite, statistics: Statistics, rate: float, taken: Assumptions, simulations: int
) -> tuple[float | None, Share | None, int | None]:
    """Power, false-pass share and items needed of a suite with a non-inferiority test."""
    if suite.margin is None or suite.kind not in (Kind.SAFETY, Kind.UTILITY):
        return None, None, None
    alpha = statistics.alpha_per_look
    # Items of one cluster are taken to agree: they count as repeats of one another.
    margin, items = suite.margin, suite.num_clusters or suite.num_items
    epochs = suite.epochs * suite.num_items // items
    even = Scenario(margin, items, epochs, min(max(rate, MIN_RATE), MAX_RATE), alpha=alpha)
    spread = taken.pilot.get(suite.name)
    if spread is not None:
        power = non_inferiority_power(margin, items, spread, epochs, alpha=alpha)
    else:
        spread = spread_of(even)
        power = simulate(even, simulations).corrected.value
    # At the margin the rate must stay a rate.
    bad = dataclasses.replace(
        even, harm=margin, base_rate=min(even.base_rate, max(MIN_RATE, MAX_RATE - margin))
    )
    needed = non_inferiority_size(margin, spread, epochs, alpha=alpha, power=AIM)
    return power, simulate(bad, simulations).corrected, needed
