"""The written-out sums are right, step by step."""

from __future__ import annotations

import re

import arithmetic
import pytest
from hypothesis import given
from hypothesis import strategies as st

numbers = st.integers(0, 9999)


def evaluated(step: str) -> bool:
    """Whether `a+b+1=c`, `a-b=c`, `a*b+c=d` or `a/b=c r d` holds."""
    left, right = step.split("=")
    if "/" in left:
        a, b = map(int, left.split("/"))
        quotient, rest = map(int, right.split(" r "))
        return divmod(a, b) == (quotient, rest)
    total = 0
    for sign, term in re.findall(r"([+-]?)([\d*]+)", left):
        factors = [int(factor) for factor in term.split("*")]
        product = factors[0] * (factors[1] if len(factors) > 1 else 1)
        total += -product if sign == "-" else product
    return total == int(right)


def steps(trace: str) -> list[str]:
    return [part for part in re.findall(r"[\d+*/-]+=\d+(?: r \d+)?", trace) if "=" in part]


@given(numbers, numbers)
def test_sums_end_in_the_result(a, b):
    trace = arithmetic.add(a, b)
    assert trace.endswith(f"-> {a + b}")
    assert all(map(evaluated, steps(trace)))


@given(numbers, numbers)
def test_differences_end_in_the_result(a, b):
    trace = arithmetic.subtract(a, b)
    assert re.search(rf"(-> |= )-?{abs(a - b)}$", trace)
    assert trace.endswith(str(a - b))
    assert all(map(evaluated, steps(trace)))


@given(st.integers(0, 999), st.integers(0, 99))
def test_products_end_in_the_result(a, b):
    trace = arithmetic.multiply(a, b)
    assert trace.endswith(f"-> {a * b}")
    assert all(map(evaluated, steps(trace)))


@given(st.integers(0, 999), st.integers(1, 9))
def test_quotients_end_in_the_result(a, b):
    trace = arithmetic.divide(a, b)
    assert re.search(rf"(-> |= ){a // b}$", trace)
    assert all(map(evaluated, steps(trace)))
    assert arithmetic.result(a, "/", b).startswith(str(a // b))


@given(numbers, numbers, st.sampled_from("+-*/"))
def test_effort_orders_the_length_of_the_reasoning(a, b, op):
    low, medium, high = (
        arithmetic.reasoning(a, op, b, effort) or "" for effort in ("low", "medium", "high")
    )
    assert len(low) <= len(medium) < len(high)


@pytest.mark.parametrize(
    ("a", "b", "trace"),
    [
        (482, 479, "482, 479: 4=4; 8>7"),
        (5, 17, "5 has 1 digits, 17 has 2"),
        (7, 7, "7, 7: 7=7"),
    ],
)
def test_comparison_names_the_first_difference(a, b, trace):
    assert arithmetic.compare(a, b) == trace
