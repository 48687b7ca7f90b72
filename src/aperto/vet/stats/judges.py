"""Rates seen through a judge that errs: sensitivity, specificity and the corrected rate."""

from __future__ import annotations

import dataclasses
import math

from aperto.errors import UsageError
from aperto.vet.stats.interval import Estimate, clopper_pearson, normal_quantile


@dataclasses.dataclass(frozen=True, slots=True)
class JudgeErrors:
    """How often a judge agreed with people, separately for positives and negatives."""

    true_positives: int
    positives: int
    """Answers that people called positive."""
    true_negatives: int
    negatives: int

    @property
    def sensitivity(self) -> float:
        """Share of people's positives that the judge finds."""
        return self.true_positives / self.positives

    @property
    def specificity(self) -> float:
        """Share of people's negatives that the judge leaves alone."""
        return self.true_negatives / self.negatives

    def sensitivity_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Exact interval of the sensitivity."""
        return clopper_pearson(self.true_positives, self.positives, confidence)

    def specificity_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Exact interval of the specificity."""
        return clopper_pearson(self.true_negatives, self.negatives, confidence)


def rogan_gladen(rate: float, sensitivity: float, specificity: float) -> float:
    """True rate behind an observed one, kept in 0..1.

    Raises UsageError for a judge no better than chance.
    """
    gain = _gain(sensitivity, specificity)
    return min(1.0, max(0.0, (rate + specificity - 1) / gain))


def corrected_rate(
    positives: int, num_items: int, errors: JudgeErrors, confidence: float = 0.95
) -> Estimate:
    """Rogan and Gladen's rate with Lang and Reiczigel's interval.

    The interval counts what is not known of the judge, and holds near 0 and 1.

    Raises UsageError for a judge no better than chance, and for no items.
    """
    if num_items < 1 or not 0 <= positives <= num_items:
        raise UsageError(f"{positives} positives of {num_items}; expected counts that fit")
    z = normal_quantile(confidence)
    rate = (positives + z * z / 2) / (num_items + z * z)
    found = (errors.true_positives + 1) / (errors.positives + 2)
    left = (errors.true_negatives + 1) / (errors.negatives + 2)
    gain = _gain(found, left)
    centre = (rate + left - 1) / gain
    of_found = found * (1 - found) / (errors.positives + 2)
    of_left = left * (1 - left) / (errors.negatives + 2)
    variance = (
        rate * (1 - rate) / (num_items + z * z) + centre**2 * of_found + (1 - centre) ** 2 * of_left
    )
    se = math.sqrt(variance) / gain
    # gain (= sensitivity + specificity - 1) is a ratio's denominator: its error shifts the centre.
    shifted = centre + 2 * z * z * (centre * of_found - (1 - centre) * of_left)
    return Estimate(
        value=rogan_gladen(positives / num_items, errors.sensitivity, errors.specificity),
        se=se,
        lower=min(1.0, max(0.0, shifted - z * se)),
        upper=min(1.0, max(0.0, shifted + z * se)),
        confidence=confidence,
        num_items=num_items,
        num_clusters=num_items,
        method="Rogan-Gladen, Lang-Reiczigel",
    )


def corrected_difference(difference: Estimate, errors: JudgeErrors) -> Estimate:
    """A difference of two arms, corrected for one judge that errs alike on both.

    Divided by sensitivity + specificity - 1, whose own uncertainty widens the interval.

    Raises UsageError for a judge no better than chance.
    """
    gain = _gain(errors.sensitivity, errors.specificity)
    found = (errors.true_positives + 1) / (errors.positives + 2)
    left = (errors.true_negatives + 1) / (errors.negatives + 2)
    of_gain = found * (1 - found) / (errors.positives + 2)
    of_gain += left * (1 - left) / (errors.negatives + 2)
    value = difference.value / gain
    from_gain = value * value * of_gain / gain**2
    z = normal_quantile(difference.confidence)

    def reach(distance: float) -> float:
        return math.hypot(max(0.0, distance), z * math.sqrt(from_gain))

    return dataclasses.replace(
        difference,
        value=value,
        se=math.sqrt((difference.se / gain) ** 2 + from_gain),
        lower=value - reach(value - difference.lower / gain),
        upper=value + reach(difference.upper / gain - value),
        method=f"{difference.method}, judge-corrected",
    )


def _gain(sensitivity: float, specificity: float) -> float:
    gain = sensitivity + specificity - 1
    if gain <= 0:
        raise UsageError(
            f"sensitivity {sensitivity:.3f} and specificity {specificity:.3f} sum to at most 1: "
            "the judge is no better than chance; expected one that was calibrated"
        )
    return gain
