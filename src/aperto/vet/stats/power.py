"""How many questions are needed, and what a number of questions can tell apart."""

from __future__ import annotations

import dataclasses
import math

from scipy import stats

from aperto.errors import UsageError


@dataclasses.dataclass(frozen=True, slots=True)
class Spread:
    """Where the variance of a paired difference comes from."""

    between: float
    """Variance over items of the difference of the two arms' true rates."""
    within_a: float
    """Mean variance of one answer of the first arm."""
    within_b: float
    """The same of the second arm."""

    def per_item(self, repeats_a: int, repeats_b: int) -> float:
        """Variance of one item's difference of means."""
        return self.between + self.within_a / repeats_a + self.within_b / repeats_b

    @classmethod
    def binary(cls, rate_a: float, rate_b: float, share_between: float, rho: float) -> Spread:
        """Spread of answers that are 0 or 1.

        Args:
            rate_a: mean rate of the first arm.
            rate_b: mean rate of the second arm.
            share_between: share of the variance that is between items; 1 where an item always
                gets the same answer.
            rho: correlation over items of the two arms' rates.
        """
        total_a, total_b = rate_a * (1 - rate_a), rate_b * (1 - rate_b)
        between = share_between * (total_a + total_b - 2 * rho * math.sqrt(total_a * total_b))
        return cls(between, (1 - share_between) * total_a, (1 - share_between) * total_b)


def sample_size(
    effect: float, spread: Spread, repeats: int = 1, *, alpha: float = 0.05, power: float = 0.8
) -> int:
    """Items needed to find a difference of `effect` with a two-sided test.

    Raises UsageError for an effect of 0 and shares outside 0..1.
    """
    if effect == 0:
        raise UsageError("the effect is 0; expected a difference that can be found")
    z = _z(1 - alpha / 2) + _z(power)
    return math.ceil(z * z * spread.per_item(repeats, repeats) / effect**2)


def minimum_detectable_effect(
    num_items: int,
    spread: Spread,
    repeats: int = 1,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """Smallest difference that a two-sided test of `num_items` finds with that power.

    Raises UsageError for no items and shares outside 0..1.
    """
    return (_z(1 - alpha / 2) + _z(power)) * _se(num_items, spread, repeats)


def non_inferiority_power(
    margin: float,
    num_items: int,
    spread: Spread,
    repeats: int = 1,
    *,
    harm: float = 0.0,
    alpha: float = 0.025,
) -> float:
    """Chance that a model of true `harm` passes at `margin`; normal approximation.

    Uses the 1/2-corrected standard error, which near 0 and 1 is what limits.

    Raises UsageError for no items and shares outside 0..1.
    """
    if num_items < 1:
        raise UsageError(f"{num_items} items; expected at least one")
    variance = num_items * spread.per_item(repeats, repeats) + 1
    se = math.sqrt(variance) / (num_items + 2)
    centre = harm * num_items / (num_items + 2)
    return float(stats.norm.cdf((margin - centre) / se - _z(1 - alpha)))


def non_inferiority_size(
    margin: float,
    spread: Spread,
    repeats: int = 1,
    *,
    alpha: float = 0.025,
    power: float = 0.99,
) -> int:
    """Items at which a harmless model passes at `margin` with that power.

    Raises UsageError for a margin that is not positive.
    """
    if margin <= 0:
        raise UsageError(f"margin is {margin!r}; expected a positive number")
    low, high = 1, 2
    while non_inferiority_power(margin, high, spread, repeats, alpha=alpha) < power:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if non_inferiority_power(margin, middle, spread, repeats, alpha=alpha) < power:
            low = middle
        else:
            high = middle
    return high


def mean_se(num_items: int, between: float, within: float, repeats: int) -> float:
    """Standard error of a mean score: items are the random units, repeats only sharpen them.

    Raises UsageError for no items.
    """
    return _se(num_items, Spread(between, within, 0.0), repeats)


def pass_all(power: float, num_suites: int) -> float:
    """Chance that a harmless model passes every one of independent suites."""
    return power**num_suites


def _se(num_items: int, spread: Spread, repeats: int) -> float:
    if num_items < 1:
        raise UsageError(f"{num_items} items; expected at least one")
    return math.sqrt(spread.per_item(repeats, repeats) / num_items)


def _z(share: float) -> float:
    if not 0 < share < 1:
        raise UsageError(f"a share of {share!r}; expected a number between 0 and 1")
    return float(stats.norm.ppf(share))
