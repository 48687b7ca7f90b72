"""Estimates with their intervals: proportions, and means of items that come in clusters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from aperto.errors import UsageError

FloatArray = npt.NDArray[np.float64]
Values = Sequence[float] | FloatArray
Clusters = Sequence[str] | Sequence[int] | npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """A number and how well it is known."""

    value: float
    """The point estimate, unshrunk."""
    se: float
    """Standard error, clustered where there are clusters."""
    lower: float
    """Lower end of the two-sided interval."""
    upper: float
    """Upper end."""
    confidence: float
    """Two-sided coverage aimed at; one-sided tests use alpha = (1 - confidence) / 2."""
    num_items: int
    """Items, each the mean of its repeats."""
    num_clusters: int
    """Independent groups of items."""
    method: str
    """How the interval was made."""

    @property
    def is_finite(self) -> bool:
        """Whether the interval says anything; that of a single cluster may not."""
        return math.isfinite(self.lower) and math.isfinite(self.upper)

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is infinite becomes null."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in dataclasses.asdict(self).items()
        }


def wilson(successes: float, trials: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; both numbers may be effective, not whole.

    Raises UsageError where successes lie outside 0..trials or trials are not positive.
    """
    _check_counts(successes, trials)
    z = normal_quantile(confidence)
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = share * (1 - share) / trials + z * z / (4 * trials * trials)
    half = z * math.sqrt(spread) / (1 + z * z / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a proportion.

    Raises UsageError where successes lie outside 0..trials or trials are not positive.
    """
    _check_counts(successes, trials)
    tail = (1 - confidence) / 2
    lower = (
        0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, trials - successes + 1))
    )
    upper = (
        1.0
        if successes == trials
        else float(stats.beta.ppf(1 - tail, successes + 1, trials - successes))
    )
    return lower, upper


def upper_of_none(trials: int, confidence: float = 0.95) -> float:
    """One-sided upper bound of a rate of which none was seen in `trials` (about 3 / trials).

    Raises UsageError where trials are not positive.
    """
    _check_counts(0, trials)
    return float(1 - (1 - confidence) ** (1 / trials))


def mean_estimate(
    scores: Values, clusters: Clusters | None = None, confidence: float = 0.95
) -> Estimate:
    """Mean of item scores in 0..1, with an interval that stays in 0..1.

    Wilson's interval at the effective number of items: the one at which a plain proportion would
    have the standard error found between clusters. So it does not collapse where all scores agree.

    Raises UsageError for no scores, and for scores outside 0..1.
    """
    values = as_values(scores)
    if values.min() < 0 or values.max() > 1:
        raise UsageError(
            f"scores span {values.min():g} to {values.max():g}; expected values in 0..1"
        )
    groups = cluster_indices(clusters, len(values))
    num_clusters = int(groups.max()) + 1
    mean = float(values.mean())
    se = clustered_se(values, groups)
    effective = _effective_items(mean, se, num_clusters, confidence)
    lower, upper = wilson(mean * effective, effective, confidence)
    return Estimate(
        mean, se, lower, upper, confidence, len(values), num_clusters, "Wilson, effective n"
    )


def clustered_se(values: FloatArray, groups: npt.NDArray[np.int64]) -> float:
    """Standard error of the mean of `values` [n] in clusters `groups` [n], numbered from 0.

    With one item a cluster this is sd / sqrt(n). One cluster tells nothing: infinite.
    """
    num_clusters = int(groups.max()) + 1
    if num_clusters < 2:
        return math.inf
    sums = np.bincount(groups, weights=values - values.mean(), minlength=num_clusters)
    variance = num_clusters / (num_clusters - 1) * float(sums @ sums) / len(values) ** 2
    return math.sqrt(variance)


def cluster_indices(clusters: Clusters | None, num_items: int) -> npt.NDArray[np.int64]:
    """Clusters numbered from 0, [num_items]; each item its own where there are none.

    Raises UsageError where there is not one cluster an item.
    """
    if clusters is None:
        return np.arange(num_items, dtype=np.int64)
    if len(clusters) != num_items:
        raise UsageError(f"{len(clusters)} clusters for {num_items} items; expected one an item")
    return np.unique(np.asarray(clusters), return_inverse=True)[1].astype(np.int64)


def as_values(values: Values) -> FloatArray:
    """Values as float64 [n].

    Raises UsageError where there are none, or one is not a finite number.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise UsageError(f"values have the shape {array.shape}; expected one row of at least one")
    if not np.isfinite(array).all():
        raise UsageError("values hold numbers that are not finite; expected only finite ones")
    return array


def normal_quantile(confidence: float) -> float:
    """How many standard errors a two-sided interval reaches.

    Raises UsageError for a confidence outside 0..1.
    """
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence!r}; expected a number between 0 and 1")
    return float(stats.norm.ppf(0.5 + confidence / 2))


def _effective_items(mean: float, se: float, num_clusters: int, confidence: float) -> float:
    """Items of a plain proportion that would be known as well, reduced for few clusters."""
    if num_clusters < 2:
        return 1.0
    variance = mean * (1 - mean)
    effective = num_clusters if se == 0 or variance == 0 else variance / se**2
    t = float(stats.t.ppf(0.5 + confidence / 2, num_clusters - 1))
    return float(effective * (normal_quantile(confidence) / t) ** 2)


def _check_counts(successes: float, trials: float) -> None:
    if not (trials > 0 and 0 <= successes <= trials):
        raise UsageError(
            f"{successes:g} successes of {trials:g} trials; "
            "expected a positive number of trials and no more successes than those"
        )
