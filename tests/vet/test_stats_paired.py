"""Paired differences: identities, definitions, and the false passes the correction prevents."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from aperto.errors import UsageError
from aperto.vet.stats import (
    NonInferiority,
    Scenario,
    Share,
    mcnemar,
    negated,
    paired_difference,
    simulate,
    tango_difference,
    tango_interval,
)
from aperto.vet.stats.paired import tango_score
from aperto.vet.stats.simulate import _arms, _centres

counts = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 40))


def test_plain_interval_is_the_paired_t_interval():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(size=40), rng.uniform(size=40)
    found = paired_difference(a, b, corrected=False)
    oracle = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.lower, found.upper) == pytest.approx((oracle.low, oracle.high))


def test_correction_adds_half_to_every_cell_of_the_table():
    """12 and 2 discordant of 50: the table has 12.5, 2.5 and 52 items in all."""
    a, b = [1] * 12 + [0] * 38, [0] * 12 + [1] * 2 + [0] * 36
    found = paired_difference(a, b)
    centre = 10 / 52
    variance = (15 - 100 / 52) / 51 / 52
    half = stats.t.ppf(0.975, 51) * math.sqrt(variance)
    assert (found.lower, found.upper) == pytest.approx((centre - half, centre + half))
    assert found.value == 0.2


@given(st.integers(2, 30), st.integers(2, 4), st.integers(0, 2**32 - 1))
def test_equal_clusters_count_as_items_of_their_means(groups: int, size: int, seed: int):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 2, (2, groups, size))
    clusters = np.repeat(np.arange(groups), size)
    for corrected in (True, False):
        whole = paired_difference(a.ravel(), b.ravel(), clusters, corrected=corrected)
        means = paired_difference(a.mean(axis=1), b.mean(axis=1), corrected=corrected)
        assert (whole.value, whole.se, whole.lower, whole.upper) == pytest.approx(
            (means.value, means.se, means.lower, means.upper)
        )


@given(counts)
def test_swapping_the_arms_mirrors_everything(numbers: tuple[int, int, int]):
    only_a, only_b, both = numbers
    n = only_a + only_b + both
    lower, upper = tango_interval(only_a, only_b, n)
    assert tango_interval(only_b, only_a, n) == pytest.approx((-upper, -lower), abs=1e-8)
    a = [1] * only_a + [0] * (n - only_a)
    b = [0] * only_a + [1] * only_b + [0] * both
    forward, back = paired_difference(a, b), paired_difference(b, a)
    assert (negated(back).lower, negated(back).upper) == pytest.approx(
        (forward.lower, forward.upper)
    )
    assert mcnemar(only_a, only_b) == mcnemar(only_b, only_a)


@settings(max_examples=30)
@given(counts, st.floats(-0.9, 0.9))
def test_tango_takes_the_likeliest_table(numbers: tuple[int, int, int], delta: float):
    """The constrained rate maximises the likelihood, found here by search."""
    only_a, only_b, both = numbers
    n = only_a + only_b + both

    def loss(rate: float) -> float:
        cells = (rate + delta, rate, 1 - 2 * rate - delta)
        weights = (only_a, only_b, both)
        return -sum(w * math.log(max(c, 1e-300)) for w, c in zip(weights, cells, strict=True))

    low, high = max(0.0, -delta), (1 - delta) / 2
    best = optimize.minimize_scalar(loss, (low, high), bounds=(low, high), method="bounded")
    score = tango_score(only_a, only_b, n, delta)
    variance = n * (2 * best.x + delta * (1 - delta))
    expected = (only_a - only_b - n * delta) / math.sqrt(max(variance, 1e-12))
    # The search ends within 1e-5 of the rate; the score's slope in it is at most |score| / rate.
    assert score == pytest.approx(expected, rel=1e-2, abs=1e-2)


@given(counts)
def test_tango_ends_where_the_score_is_the_quantile(numbers: tuple[int, int, int]):
    only_a, only_b, both = numbers
    n = only_a + only_b + both
    lower, upper = tango_interval(only_a, only_b, n)
    assert -1 <= lower <= (only_a - only_b) / n <= upper <= 1
    if lower > -0.999:
        assert tango_score(only_a, only_b, n, lower) == pytest.approx(1.959964, abs=1e-4)
    if upper < 0.999:
        assert tango_score(only_a, only_b, n, upper) == pytest.approx(-1.959964, abs=1e-4)


def test_tango_where_both_arms_always_agree():
    """With no discordant item the score is n delta / sqrt(n delta (1 - delta))."""
    _, upper = tango_interval(0, 0, 100)
    z = 1.959964
    assert upper == pytest.approx(z * z / (100 + z * z), abs=1e-6)
    assert tango_difference([1.0] * 100, [1.0] * 100).upper == upper


def test_tango_is_for_binary_answers():
    with pytest.raises(UsageError, match="binary"):
        tango_difference([0.5, 1], [0, 1])


def test_mcnemar_is_the_sign_test_of_discordant_items():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 6) == pytest.approx(2 * 0.5**6)


def test_arms_of_different_items_are_refused():
    with pytest.raises(UsageError, match="same items"):
        paired_difference([1, 0], [1])


def test_non_inferiority_reads_the_interval():
    harm = paired_difference([0.0] * 400, [0.0] * 400)
    assert NonInferiority(harm, 0.02).passes and not NonInferiority(harm, 0.02).fails
    worse = paired_difference([1.0] * 60 + [0.0] * 340, [0.0] * 400)
    assert NonInferiority(worse, 0.02).fails and not NonInferiority(worse, 0.02).passes


# VETTING section 6: margin, n, K, false passes of the plain and of the corrected interval at
# 1 % base harm, power at 1, 2 and 5 %. Its simulation's dispersion is not stated: ours, fitted to
# it, leaves differences of up to 3 points in false passes and 6 in power.
PAGE = [
    (0.02, 313, 4, 0.064, 0.043, (0.93, 0.75, 0.48)),
    (0.02, 500, 4, 0.049, 0.037, (0.99, 0.91, 0.66)),
    (0.02, 1000, 4, 0.044, 0.039, (1.00, 1.00, 0.93)),
    (0.03, 100, 1, 0.151, 0.045, (0.56, 0.43, 0.23)),
    (0.03, 200, 4, 0.072, 0.049, (0.97, 0.87, 0.60)),
    (0.03, 313, 4, 0.052, 0.037, (1.00, 0.97, 0.80)),
    (0.05, 100, 4, 0.074, 0.035, (0.98, 0.93, 0.73)),
    (0.05, 200, 1, 0.045, 0.045, (1.00, 0.98, 0.84)),
]


def test_the_corrected_interval_stops_false_passes():
    """100 prompts and a plain interval let about 15 % of 3-point-worse models through."""
    found = simulate(Scenario(0.03, 100, 1, 0.01, harm=0.03), number=2000)
    assert found.plain.value > 0.11
    assert found.corrected.value < 0.06


@pytest.mark.parametrize(
    ("margin", "n", "base"), [(0.03, 313, 0.01), (0.05, 200, 0.05), (0.03, 1000, 0.2)]
)
def test_tango_lets_no_more_through_than_it_says(margin: float, n: int, base: float):
    """One answer an item, models exactly at the margin: at most the nominal 2.5 % pass."""
    rng = np.random.default_rng(0)
    rates = _arms(Scenario(margin, n, 1, base, harm=margin), (2000, n), rng)
    before, after = (rng.binomial(1, rate) for rate in rates)
    tables = Counter(zip((after > before).sum(axis=1), (after < before).sum(axis=1), strict=True))
    passed = sum(
        number
        for (only_a, only_b), number in tables.items()
        if tango_interval(int(only_a), int(only_b), n)[1] < margin
    )
    # The Monte-Carlo error of 2.5 % over 2000 runs is 0.35 points; allow three.
    assert passed / 2000 < 0.036


def test_the_simulation_uses_the_intervals_of_the_gate():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (2, 3, 40)) / 4
    for centre, spread, units, is_corrected in _centres(a - b):
        for row in range(3):
            found = paired_difference(a[row], b[row], corrected=is_corrected)
            half = stats.t.ppf(0.975, units - 1) * spread[row]
            assert (found.lower, found.upper) == pytest.approx(
                (centre[row] - half, centre[row] + half)
            )


def test_simulated_shares_carry_their_error():
    share = Share.of(0, 1000)
    assert 0 < share.error < 0.01 and str(share) == "0.000 ± 0.001"


@pytest.mark.long
@pytest.mark.parametrize("row", PAGE, ids=lambda row: f"{row[0]:.0%}-{row[1]}x{row[2]}")
def test_simulation_gives_the_figures_of_the_page(row, capsys: pytest.CaptureFixture[str]):
    margin, n, k, plain, corrected, powers = row
    false = simulate(Scenario(margin, n, k, 0.01, harm=margin), number=10_000)
    assert false.plain.value == pytest.approx(plain, abs=0.03)
    assert false.corrected.value == pytest.approx(corrected, abs=0.02)
    lines = [f"margin {margin:.0%}, {n} x {k}: false passes {false.corrected} ({false.plain})"]
    for base, power in zip((0.01, 0.02, 0.05), powers, strict=True):
        found = simulate(Scenario(margin, n, k, base), number=4000).corrected
        assert found.value == pytest.approx(power, abs=0.06)
        lines.append(f"power at {base:.0%} base harm: {found}")
    with capsys.disabled():
        print("\n" + "\n  ".join(lines))
