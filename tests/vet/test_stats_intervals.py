"""Intervals of single arms, against exact values, definitions and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aperto.errors import UsageError
from aperto.vet.stats import (
    JudgeErrors,
    bootstrap,
    clopper_pearson,
    corrected_difference,
    corrected_rate,
    mean_estimate,
    paired_difference,
    rogan_gladen,
    upper_of_none,
    wilson,
)

scores = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=60)


@pytest.mark.parametrize(("n", "percent"), [(100, 2.95), (313, 0.95), (1000, 0.30)])
def test_upper_bound_of_a_rate_of_which_none_was_seen(n: int, percent: float):
    assert 100 * upper_of_none(n) == pytest.approx(percent, abs=0.005)


def test_wilson_solves_the_score_equation():
    lower, upper = wilson(7, 50)
    for edge in (lower, upper):
        assert abs(0.14 - edge) / math.sqrt(edge * (1 - edge) / 50) == pytest.approx(1.959964)


def test_clopper_pearson_has_the_tails_it_says():
    lower, upper = clopper_pearson(7, 50)

    def at_most(k: int, p: float) -> float:
        return sum(math.comb(50, i) * p**i * (1 - p) ** (50 - i) for i in range(k + 1))

    assert 1 - at_most(6, lower) == pytest.approx(0.025)
    assert at_most(7, upper) == pytest.approx(0.025)
    assert clopper_pearson(0, 10)[0] == 0 and clopper_pearson(10, 10)[1] == 1


@given(scores, st.integers(1, 5))
def test_intervals_of_means_hold_the_mean_and_stay_in_range(values: list[float], size: int):
    estimate = mean_estimate(values, [i // size for i in range(len(values))])
    assert 0 <= estimate.lower <= estimate.value + 1e-9
    assert estimate.value - 1e-9 <= estimate.upper <= 1
    assert estimate.upper > estimate.lower


def test_repeating_every_item_in_its_cluster_tells_nothing_new():
    values = [0.0, 1.0, 1.0, 0.5, 1.0, 0.0, 1.0, 1.0]
    once = mean_estimate(values)
    thrice = mean_estimate(np.repeat(values, 3), np.repeat(np.arange(8), 3))
    assert (thrice.lower, thrice.upper) == pytest.approx((once.lower, once.upper))
    assert mean_estimate(np.repeat(values, 3)).se < 0.7 * once.se


def test_aime_sized_interval_covers_what_it_says():
    """30 questions, 8 answers each, rates uniform: VETTING's headline case."""
    rng = np.random.default_rng(3)
    rates = rng.uniform(size=(2000, 30))
    means = rng.binomial(8, rates) / 8
    estimates = [mean_estimate(row) for row in means]
    covered = np.mean([e.lower <= 0.5 <= e.upper for e in estimates])
    # Monte-Carlo error of a 95 % share over 2000 runs is 0.5 points; allow four of them.
    assert covered == pytest.approx(0.95, abs=0.02)
    # The standard error that questions cause: sqrt((1/12 + 1/6/8) / 30) = 5.9 points.
    assert np.mean([e.se for e in estimates]) == pytest.approx(0.059, abs=0.001)


@pytest.mark.parametrize("values", [[], [0.5, 1.2], [0.5, math.nan], [-0.1]])
def test_scores_that_are_none_are_refused(values: list[float]):
    with pytest.raises(UsageError, match="expected"):
        mean_estimate(values)


def test_one_cluster_knows_nothing():
    assert mean_estimate([0.0, 1.0, 1.0], [0, 0, 0]).upper > 0.95
    assert paired_difference([1, 1], [0, 1], [0, 0]).se == math.inf


def test_composite_is_clipped_after_the_mean_and_not_before():
    values = [-1.0, -0.5, 0.2, 0.3, 0.9]
    clipped = bootstrap(values, clip=(0, 1), resamples=500)
    assert clipped.value == 0.0 and clipped.lower == 0.0 and 0.3 < clipped.upper < 0.9
    assert bootstrap(values, resamples=500).value == pytest.approx(-0.02)


def test_bootstrap_draws_whole_clusters():
    rng = np.random.default_rng(0)
    cluster_means = np.repeat(rng.normal(0.5, 0.2, 40), 10)
    clusters = np.repeat(np.arange(40), 10)
    whole = bootstrap(cluster_means, clusters, resamples=2000)
    single = bootstrap(cluster_means, resamples=2000)
    assert whole.upper - whole.lower > 2.5 * (single.upper - single.lower)
    # Nearly normal data: the bootstrap agrees with the t interval within its own noise.
    plain = paired_difference(
        cluster_means, np.zeros_like(cluster_means), clusters, corrected=False
    )
    assert whole.lower == pytest.approx(plain.lower, abs=0.01)
    assert whole.upper == pytest.approx(plain.upper, abs=0.01)


def test_bootstrap_of_equal_values_is_that_value():
    estimate = bootstrap([0.5] * 20, resamples=100)
    assert (estimate.lower, estimate.value, estimate.upper) == (0.5, 0.5, 0.5)


def test_bootstrap_repeats_with_its_seed():
    values = [0.1, 0.4, 0.3, 0.9]
    assert bootstrap(values, resamples=300, seed=5) == bootstrap(values, resamples=300, seed=5)


@given(st.floats(0, 1), st.floats(0.6, 1), st.floats(0.6, 1))
def test_rogan_gladen_inverts_what_a_judge_does(rate: float, found: float, left: float):
    seen = rate * found + (1 - rate) * (1 - left)
    assert rogan_gladen(seen, found, left) == pytest.approx(rate, abs=1e-9)


def test_a_judge_no_better_than_chance_corrects_nothing():
    with pytest.raises(UsageError, match="no better than chance"):
        rogan_gladen(0.5, 0.5, 0.5)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_corrected_rates_are_covered(rate: float):
    """A judge of 0.92 and 0.95, known from 100 and 150 labels, over 400 answers."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        errors = JudgeErrors(rng.binomial(100, 0.92), 100, rng.binomial(150, 0.95), 150)
        seen = rng.binomial(400, rate * 0.92 + (1 - rate) * 0.05)
        estimate = corrected_rate(int(seen), 400, errors)
        covered += estimate.lower <= rate <= estimate.upper
    # Lang and Reiczigel's interval holds its level on average; Monte-Carlo error is 0.7 points.
    assert 0.93 <= covered / 1000 <= 1.0


def test_a_judge_of_known_error_does_not_hide_the_true_difference():
    """Harm of 5 and 15 %, seen by a judge of 0.92 and 0.95 that 100 + 100 labels measured."""
    rng = np.random.default_rng(2)
    covered = below = 0
    for _ in range(400):
        base, adapted = rng.binomial(1, [[0.05], [0.15]], (2, 400))
        seen = [
            np.where(rng.uniform(size=400) < np.where(t, 0.92, 0.05), 1, 0) for t in (adapted, base)
        ]
        errors = JudgeErrors(rng.binomial(100, 0.92), 100, rng.binomial(100, 0.95), 100)
        raw = paired_difference(seen[0], seen[1])
        found = corrected_difference(raw, errors)
        covered += found.lower <= 0.10 <= found.upper
        below += raw.value < found.value
    # Monte-Carlo error of a 95 % share over 400 runs is 1.1 points; allow three.
    assert covered / 400 > 0.915
    assert below == 400, "uncorrected, harm looks smaller than it is"


def test_corrected_intervals_hold_their_value_at_the_edge():
    seen = paired_difference([1] * 5, [0] * 5)
    found = corrected_difference(seen, JudgeErrors(95, 100, 95, 100))
    assert found.lower <= found.value <= found.upper


def test_corrected_differences_widen_with_what_is_unknown_of_the_judge():
    seen = paired_difference([1] * 30 + [0] * 170, [0] * 190 + [1] * 10)
    sure = corrected_difference(seen, JudgeErrors(90_000, 100_000, 90_000, 100_000))
    unsure = corrected_difference(seen, JudgeErrors(45, 50, 45, 50))
    assert sure.value == pytest.approx(seen.value / 0.8)
    assert sure.upper == pytest.approx(seen.upper / 0.8, rel=1e-3)
    assert unsure.lower < sure.lower and unsure.upper > sure.upper
