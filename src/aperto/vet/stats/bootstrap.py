"""Bootstrap over whole clusters, bias-corrected and accelerated: for composite scores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

from aperto.vet.stats.interval import (
    Clusters,
    Estimate,
    FloatArray,
    Values,
    as_values,
    cluster_indices,
    clustered_se,
)

RESAMPLES = 10_000
_BATCH_VALUES = 2_000_000


def bootstrap(
    values: Values,
    clusters: Clusters | None = None,
    confidence: float = 0.95,
    *,
    clip: tuple[float, float] = (-np.inf, np.inf),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Mean of `values` [n], clipped after averaging, with a BCa interval over clusters.

    Scores that may leave the range of their mean (HealthBench's conversations may be negative)
    are averaged as they are; only the mean and the ends of its interval are clipped. For two
    arms, give the differences of the unclipped scores and no clip. Where every cluster agrees
    the interval is that one value; one cluster alone tells nothing, and its interval is infinite.
    """
    array = as_values(values)
    groups = cluster_indices(clusters, len(array))
    num_clusters = int(groups.max()) + 1
    mean, se = float(array.mean()), clustered_se(array, groups)
    lower, upper = (mean, mean) if se == 0 else (-np.inf, np.inf)
    if 0 < se < np.inf:
        lower, upper = _bca(array, groups, confidence, resamples, seed)
    value, lower, upper = (float(np.clip(end, *clip)) for end in (mean, lower, upper))
    return Estimate(
        value, se, lower, upper, confidence, len(array), num_clusters, "cluster bootstrap, BCa"
    )


def _bca(
    values: FloatArray,
    groups: npt.NDArray[np.int64],
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    sums, sizes = np.bincount(groups, weights=values), np.bincount(groups)

    def mean(indices: npt.NDArray[np.int64], axis: int = -1) -> FloatArray:
        return np.asarray(sums[indices].sum(axis=axis) / sizes[indices].sum(axis=axis))

    found = stats.bootstrap(
        (np.arange(len(sums)),),
        mean,
        n_resamples=resamples,
        batch=max(1, _BATCH_VALUES // len(sums)),
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
