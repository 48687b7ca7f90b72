"""One suite in two arms: its harm, oriented so that more is worse, and its levels."""

from __future__ import annotations

from collections.abc import Sequence

from scipy import stats as distributions

from aperto.errors import EvidenceError
from aperto.vet.protocol import Suite
from aperto.vet.rows import ItemScores, Row, item_scores
from aperto.vet.stats import (
    Estimate,
    JudgeErrors,
    bootstrap,
    corrected_difference,
    mean_estimate,
    negated,
    paired_difference,
    tango_difference,
)


def level(rows: Sequence[Row], confidence: float = 0.95) -> Estimate:
    """Mean score of one arm at one effort."""
    scores = item_scores(rows)
    if scores.means.min() >= 0 and scores.means.max() <= 1:
        return mean_estimate(scores.means, scores.clusters, confidence)
    return bootstrap(scores.means, scores.clusters, confidence)


def harm(
    suite: Suite,
    rows: Sequence[Row],
    base_rows: Sequence[Row],
    confidence: float,
    errors: JudgeErrors | None = None,
) -> Estimate:
    """How much worse an arm is than the base at one effort, on the same items.

    Args:
        suite: which says what is worse, and the interval.
        rows: of the arm.
        base_rows: of the base.
        confidence: two-sided.
        errors: of the judge; the difference is corrected for them.

    Raises EvidenceError where the items differ.
    """
    a, b = item_scores(rows), item_scores(base_rows)
    if a.items != b.items or a.clusters != b.clusters:
        raise EvidenceError(
            f"suite {suite.name}: {len(set(a.items) ^ set(b.items))} items are in one arm alone "
            "or lie in other clusters; expected the same items in both"
        )
    difference = _difference(suite, a, b, confidence)
    if errors is not None:
        difference = corrected_difference(difference, errors)
    return difference if suite.more_is == "worse" else negated(difference)


def power_at_no_harm(estimate: Estimate, margin: float) -> float:
    """Chance that a harmless model passes at this margin with as many answers as these."""
    alpha = (1 - estimate.confidence) / 2
    z = float(distributions.norm.ppf(1 - alpha))
    reach = (estimate.upper - estimate.lower) / 2
    return float(distributions.norm.cdf(z * (margin / reach - 1))) if reach > 0 else 1.0


def _difference(suite: Suite, a: ItemScores, b: ItemScores, confidence: float) -> Estimate:
    if suite.interval == "bootstrap":
        return bootstrap(a.means - b.means, a.clusters, confidence)
    binary = a.is_binary and b.is_binary and not a.is_clustered
    if suite.interval == "auto" and binary:
        return tango_difference(a.means, b.means, confidence)
    return paired_difference(a.means, b.means, a.clusters, confidence)
