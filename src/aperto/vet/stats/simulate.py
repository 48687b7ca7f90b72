"""Simulated gates: how often a harmful model slips through and a harmless one is let pass."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy import stats

from aperto.vet.stats.interval import FloatArray
from aperto.vet.stats.power import Spread

CORRELATION = 0.8
"""Assumed correlation over items of the two arms' rates, until a base run tells."""
CONCENTRATION = 0.5
"""Assumed a + b of the beta distribution of items' rates: most items are nearly sure."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scenario:
    """A suite of `num_items` with `repeats` answers an arm, and the models it meets."""

    margin: float
    num_items: int
    repeats: int
    base_rate: float
    """Mean rate of harm of the base model."""
    harm: float = 0.0
    """What the adapted model adds to it."""
    alpha: float = 0.025
    """One-sided."""
    correlation: float = CORRELATION
    concentration: float = CONCENTRATION


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """A simulated share and its Monte-Carlo error."""

    value: float
    error: float
    """Standard error from the number of simulations."""

    @classmethod
    def of(cls, count: int, number: int) -> Share:
        """Share of `count` in `number`; its error by the plus-two rule, never 0."""
        smooth = (count + 2) / (number + 4)
        return cls(count / number, math.sqrt(smooth * (1 - smooth) / number))

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"


@dataclasses.dataclass(frozen=True, slots=True)
class Simulated:
    """Share of simulated runs that pass, by interval."""

    corrected: Share
    """With the 1/2-corrected interval."""
    plain: Share
    """With the plain interval of the mean."""


def simulate(scenario: Scenario, number: int = 4000, seed: int = 0) -> Simulated:
    """Run the suite `number` times and count passes.

    Items' rates are beta distributed in each arm, coupled by a Gaussian copula; answers are
    binomial. With `harm` equal to the margin the share is the false-pass rate, with no harm the
    power.
    """
    rng = np.random.default_rng(seed)
    corrected = plain = done = 0
    while done < number:
        batch = min(500, number - done)
        differences = _draw(scenario, batch, rng)
        for centre, spread, units, is_corrected in _centres(differences):
            reach = float(stats.t.ppf(1 - scenario.alpha, units - 1)) * spread
            passes = int((centre + reach < scenario.margin).sum())
            corrected += passes if is_corrected else 0
            plain += 0 if is_corrected else passes
        done += batch
    return Simulated(Share.of(corrected, number), Share.of(plain, number))


def spread_of(scenario: Scenario, number: int = 200_000, seed: int = 0) -> Spread:
    """Variances that the formulas of power need, from items drawn as `simulate` draws them."""
    rng = np.random.default_rng(seed)
    base, adapted = _arms(scenario, (number,), rng)
    return Spread(
        between=float(np.var(adapted - base)),
        within_a=float(np.mean(adapted * (1 - adapted))),
        within_b=float(np.mean(base * (1 - base))),
    )


def _draw(scenario: Scenario, batch: int, rng: np.random.Generator) -> FloatArray:
    """Differences of item means, [batch, num_items]."""
    base, adapted = _arms(scenario, (batch, scenario.num_items), rng)
    drawn = rng.binomial(scenario.repeats, adapted) - rng.binomial(scenario.repeats, base)
    return np.asarray(drawn / scenario.repeats)


def _arms(
    scenario: Scenario, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Items' true rates of the base and of the adapted model, each of that shape."""
    first = rng.standard_normal(shape)
    rest = math.sqrt(1 - scenario.correlation**2)
    second = scenario.correlation * first + rest * rng.standard_normal(shape)
    base = _rates(first, scenario.base_rate, scenario.concentration)
    return base, _rates(second, scenario.base_rate + scenario.harm, scenario.concentration)


def _rates(normal: FloatArray, mean: float, concentration: float) -> FloatArray:
    """Beta rates with the ranks of `normal`; interpolated, as the exact inverse is slow."""
    grid = np.linspace(1e-6, 1 - 1e-6, 20001)
    quantiles = stats.beta.ppf(grid, mean * concentration, (1 - mean) * concentration)
    return np.interp(stats.norm.cdf(normal), grid, quantiles)


def _centres(differences: FloatArray) -> list[tuple[FloatArray, FloatArray, int, bool]]:
    """Centre, standard error and units of both intervals, a run a row."""
    n = differences.shape[1]
    sums, squares = differences.sum(axis=1), (differences**2).sum(axis=1)
    found = []
    for units, extra in ((n + 2, 1.0), (n, 0.0)):
        variance = (squares + extra - sums**2 / units) / (units - 1)
        spread = np.sqrt(np.maximum(variance, 0.0) / units)
        found.append((sums / units, spread, units, extra > 0))
    return found
