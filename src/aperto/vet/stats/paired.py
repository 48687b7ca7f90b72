"""Two arms on the same items: differences, their intervals, and tests of non-inferiority."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from scipy import optimize, stats

from aperto.errors import UsageError
from aperto.vet.stats.interval import (
    Clusters,
    Estimate,
    Values,
    as_values,
    cluster_indices,
    clustered_se,
    normal_quantile,
)


def paired_difference(
    a: Values,
    b: Values,
    clusters: Clusters | None = None,
    confidence: float = 0.95,
    *,
    corrected: bool = True,
) -> Estimate:
    """Mean of a - b over items, each the mean of its repeats: [n], [n].

    With `corrected`, two pseudo-items of sum 0 and sum of squares 1 join the interval (the 1/2
    rule, which for one binary answer an item adds 1/2 to every cell of the table). Without it the
    interval is too short where nearly all items agree. Under clustering the pseudo-items have the
    size of an average cluster, so that as many independent units are added.

    Raises UsageError where the lengths differ or values are not finite.
    """
    differences = _differences(a, b)
    groups = cluster_indices(clusters, len(differences))
    num_clusters = int(groups.max()) + 1
    value, se = float(differences.mean()), clustered_se(differences, groups)
    centre, spread, units = value, se, num_clusters
    if corrected:
        centre, spread, units = _half_corrected(differences, groups)
    half = math.inf if units < 2 else _t_quantile(confidence, units - 1) * spread
    return Estimate(
        value=value,
        se=se,
        lower=max(-1.0, centre - half) if corrected else centre - half,
        upper=min(1.0, centre + half) if corrected else centre + half,
        confidence=confidence,
        num_items=len(differences),
        num_clusters=num_clusters,
        method="paired, half-corrected" if corrected else "paired, t",
    )


def tango_difference(a: Values, b: Values, confidence: float = 0.95) -> Estimate:
    """Mean of a - b where every item has one answer of 0 or 1 an arm: Tango's score interval.

    Raises UsageError where a value is neither 0 nor 1, and as `paired_difference`.
    """
    differences = _differences(a, b)
    for values in (np.asarray(a), np.asarray(b)):
        if not np.isin(values, (0, 1)).all():
            raise UsageError("values other than 0 and 1; Tango's interval is for binary answers")
    only_a, only_b = int((differences > 0).sum()), int((differences < 0).sum())
    lower, upper = tango_interval(only_a, only_b, len(differences), confidence)
    se = clustered_se(differences, cluster_indices(None, len(differences)))
    return Estimate(
        value=float(differences.mean()),
        se=se,
        lower=lower,
        upper=upper,
        confidence=confidence,
        num_items=len(differences),
        num_clusters=len(differences),
        method="Tango score",
    )


def tango_interval(
    only_a: int, only_b: int, num_items: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Score interval of the difference of two paired proportions.

    Args:
        only_a: items where only the first arm has 1.
        only_b: items where only the second arm has 1.
        num_items: all items.
        confidence: two-sided coverage.

    Raises UsageError where the counts do not fit.
    """
    if num_items < 1 or min(only_a, only_b) < 0 or only_a + only_b > num_items:
        raise UsageError(
            f"{only_a} and {only_b} discordant of {num_items} items; expected counts that fit"
        )
    z = normal_quantile(confidence)
    value = (only_a - only_b) / num_items

    def excess(delta: float, sign: float) -> float:
        return tango_score(only_a, only_b, num_items, delta) - sign * z

    edge = 1 - 1e-12
    lower = -1.0 if value <= -edge else _root(excess, -edge, value, 1.0)
    upper = 1.0 if value >= edge else _root(excess, value, edge, -1.0)
    return lower, upper


def tango_score(only_a: int, only_b: int, num_items: int, delta: float) -> float:
    """Standardised distance of the data from the hypothesis that the difference is `delta`."""
    distance = only_a - only_b - num_items * delta
    rate = _constrained_rate(only_a, only_b, num_items, delta)
    variance = num_items * (2 * rate + delta * (1 - delta))
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value that both arms have the same rate, from the discordant items."""
    if only_a + only_b == 0:
        return 1.0
    return float(stats.binomtest(only_a, only_a + only_b, 0.5).pvalue)


@dataclasses.dataclass(frozen=True, slots=True)
class NonInferiority:
    """Whether harm stays below a margin; `harm` is oriented so that more is worse."""

    harm: Estimate
    margin: float

    @property
    def passes(self) -> bool:
        """Harm as large as the margin is excluded."""
        return self.harm.upper < self.margin

    @property
    def fails(self) -> bool:
        """Harm as small as the margin is excluded."""
        return self.harm.lower > self.margin


def negated(estimate: Estimate) -> Estimate:
    """The same estimate seen from the other side."""
    return dataclasses.replace(
        estimate, value=-estimate.value, lower=-estimate.upper, upper=-estimate.lower
    )


def _half_corrected(differences: np.ndarray, groups: np.ndarray) -> tuple[float, float, int]:
    """Centre, standard error and number of units with the two pseudo-clusters added."""
    num_clusters = int(groups.max()) + 1
    size = len(differences) / num_clusters
    total = len(differences) + 2 * size
    centre = float(differences.sum()) / total
    sums = np.bincount(groups, weights=differences - centre, minlength=num_clusters)
    pseudo = [size * (sign * math.sqrt(0.5) - centre) for sign in (1.0, -1.0)]
    squares = float(sums @ sums) + sum(value * value for value in pseudo)
    units = num_clusters + 2
    return centre, math.sqrt(units / (units - 1) * squares) / total, units


def _constrained_rate(only_a: int, only_b: int, num_items: int, delta: float) -> float:
    """Likeliest rate of only-b items where the difference is `delta`."""
    first = 2 * num_items
    second = -only_a - only_b + (2 * num_items - only_a + only_b) * delta
    third = -only_b * delta * (1 - delta)
    root = math.sqrt(max(0.0, second * second - 4 * first * third))
    return max(0.0, -delta, (root - second) / (2 * first))


def _root(excess: Callable[[float, float], float], low: float, high: float, sign: float) -> float:
    """Where the score equals sign * z; an end of the range where it never does."""
    at_low, at_high = excess(low, sign), excess(high, sign)
    if at_low * at_high > 0:
        return low if sign > 0 else high
    return float(optimize.brentq(excess, low, high, args=(sign,), xtol=1e-12))


def _differences(a: Values, b: Values) -> np.ndarray:
    first, second = as_values(a), as_values(b)
    if len(first) != len(second):
        raise UsageError(f"{len(first)} and {len(second)} items; expected the same items")
    return first - second


def _t_quantile(confidence: float, freedom: int) -> float:
    normal_quantile(confidence)
    return float(stats.t.ppf(0.5 + confidence / 2, freedom))
