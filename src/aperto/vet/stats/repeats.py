"""Several answers to one question: pass@k, pass^k and the majority of k."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

from aperto.errors import UsageError


def pass_at_k(num_answers: int, num_correct: int, k: int) -> float:
    """Chance that at least one of k answers, drawn from those given, is correct.

    Raises UsageError where k or the counts do not fit.
    """
    _check(num_answers, num_correct, k)
    return 1 - math.comb(num_answers - num_correct, k) / math.comb(num_answers, k)


def pass_all_k(num_answers: int, num_correct: int, k: int) -> float:
    """Chance that all of k answers, drawn from those given, are correct (pass^k).

    Raises UsageError where k or the counts do not fit.
    """
    _check(num_answers, num_correct, k)
    return math.comb(num_correct, k) / math.comb(num_answers, k)


def consensus_at_k(labels: Sequence[Hashable | None], correct: Hashable, k: int) -> float:
    """Chance that the majority of k answers, drawn from those given, is the correct label.

    Exact over all subsets; a tie is split evenly. Answers without a label (None) vote together
    for a wrong one.

    Raises UsageError where there are fewer than 2 k answers, or k is below 1.
    """
    if k < 1 or len(labels) < 2 * k:
        raise UsageError(
            f"the majority of k = {k} from {len(labels)} answers; expected at least 2 k answers"
        )
    counts = Counter(labels)
    right = counts.pop(correct, 0)
    others = list(counts.values())
    wins = sum(
        math.comb(right, votes) * _subsets_below(others, k - votes, votes)
        for votes in range(1, min(right, k) + 1)
    )
    return wins / math.comb(len(labels), k)


def _subsets_below(counts: Sequence[int], size: int, votes: int) -> float:
    """Ways to draw `size` answers, none label more than `votes` times, ties sharing the win."""
    ways: dict[tuple[int, int], int] = {(0, 0): 1}
    for count in counts:
        grown: dict[tuple[int, int], int] = {}
        for (drawn, ties), number in ways.items():
            for taken in range(min(count, votes, size - drawn) + 1):
                key = (drawn + taken, ties + (taken == votes))
                grown[key] = grown.get(key, 0) + number * math.comb(count, taken)
        ways = grown
    return sum(number / (ties + 1) for (drawn, ties), number in ways.items() if drawn == size)


def _check(num_answers: int, num_correct: int, k: int) -> None:
    if not (0 <= num_correct <= num_answers and 1 <= k <= num_answers):
        raise UsageError(
            f"k = {k} of {num_answers} answers, {num_correct} correct; "
            "expected 1 <= k <= answers and no more correct ones than answers"
        )
