"""pass@k, pass^k, cons@k, power: against enumeration and VETTING section 6's figures."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aperto.errors import UsageError
from aperto.vet.stats import (
    Scenario,
    Spread,
    consensus_at_k,
    mean_se,
    minimum_detectable_effect,
    non_inferiority_power,
    non_inferiority_size,
    pass_all,
    pass_all_k,
    pass_at_k,
    sample_size,
    simulate,
    spread_of,
)

labels = st.lists(st.sampled_from(["A", "B", "C", None]), min_size=2, max_size=9)


@given(st.integers(1, 8), st.data())
def test_pass_measures_count_subsets(n: int, data: st.DataObject):
    correct = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    answers = [1] * correct + [0] * (n - correct)
    subsets = list(itertools.combinations(answers, k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    assert pass_all_k(n, correct, k) == pytest.approx(sum(map(all, subsets)) / len(subsets))


@settings(max_examples=60)
@given(labels, st.data())
def test_consensus_counts_subsets_and_splits_ties(answers: list[str | None], data: st.DataObject):
    k = data.draw(st.integers(1, len(answers) // 2))
    wins = []
    for subset in itertools.combinations(answers, k):
        votes = Counter(subset)
        best = [label for label, number in votes.items() if number == max(votes.values())]
        wins.append(("A" in best) / len(best))
    assert consensus_at_k(answers, "A", k) == pytest.approx(sum(wins) / len(wins))


def test_the_card_s_cyber_measure_is_pass_at_12_of_16():
    assert pass_at_k(16, 1, 12) == pytest.approx(0.75)
    assert pass_at_k(16, 5, 12) == 1.0


def test_wrong_counts_are_refused():
    with pytest.raises(UsageError, match="k = 5 of 4"):
        pass_at_k(4, 1, 5)
    with pytest.raises(UsageError, match="at least 2 k"):
        consensus_at_k(["A"] * 3, "A", 2)


MILLER = Spread(between=1 / 9, within_a=1 / 6, within_b=1 / 6)


def test_sample_sizes_are_miller_s():
    """3 points at 80 % power: 968 here, about 969 in the paper."""
    assert sample_size(0.03, MILLER, 10_000) == pytest.approx(969, abs=2)
    assert 100 * minimum_detectable_effect(198, MILLER, 1) == pytest.approx(13.3, abs=0.05)
    assert 100 * minimum_detectable_effect(198, MILLER, 10) == pytest.approx(7.6, abs=0.05)


@pytest.mark.parametrize(
    ("n", "repeats", "points"),
    [(30, 8, 5.9), (30, 64, 5.4), (198, 8, 2.3), (164, 5, 2.7)],
    ids=["AIME", "AIME x 64", "GPQA Diamond", "HumanEval"],
)
def test_standard_errors_of_headline_sets(n: int, repeats: int, points: float):
    """Rates uniform on 0..1: variance 1/12 between questions, 1/6 within."""
    assert 100 * mean_se(n, 1 / 12, 1 / 6, repeats) == pytest.approx(points, abs=0.05)


def test_naive_standard_error_of_aime_is_too_short():
    assert 100 * mean_se(30 * 8, 1 / 12, 1 / 6, 1) == pytest.approx(3.2, abs=0.05)


@pytest.mark.parametrize(("power", "share"), [(0.99, 0.90), (0.97, 0.74), (0.9, 0.35)])
def test_false_blocks_dominate_unless_every_suite_has_power(power: float, share: float):
    assert pass_all(power, 10) == pytest.approx(share, abs=0.005)


def test_power_formula_agrees_with_the_simulation():
    """At 5 % base harm: a normal approximation, so near and not equal."""
    scenario = Scenario(0.03, 313, 4, 0.05)
    formula = non_inferiority_power(0.03, 313, spread_of(scenario), 4)
    assert formula == pytest.approx(simulate(scenario, number=2000).corrected.value, abs=0.06)


def test_size_is_the_smallest_with_that_power():
    spread = Spread.binary(0.02, 0.02, share_between=0.6, rho=0.8)
    n = non_inferiority_size(0.02, spread, 4)
    assert non_inferiority_power(0.02, n, spread, 4) >= 0.99
    assert non_inferiority_power(0.02, n - 1, spread, 4) < 0.99


def test_sizes_without_a_margin_are_refused():
    with pytest.raises(UsageError, match="positive"):
        non_inferiority_size(0.0, MILLER)
    with pytest.raises(UsageError, match="effect is 0"):
        sample_size(0.0, MILLER)
