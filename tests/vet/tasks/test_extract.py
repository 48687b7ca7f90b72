from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aperto.vet.tasks.extract import boxed, letter, python_code, whole_number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Answer: B", "B"),
        ("**Answer:** (C)", "C"),
        ("The answer is D.", "D"),
        (r"The final answer is $\boxed{A}$", "A"),
        (r"The answer: \boxed{\text{B}}", "B"),
        ("First I thought the answer is A, but the answer is C", "C"),
        ("Working…\n\nB", "B"),
        ("(D)", "D"),
        ("B) 220 degrees, because rye needs heat.", "B"),
        ("Respuesta: C", "C"),
        ("答案：D", "D"),
        ("answer: option A", "A"),
        ("Answer: C)", "C"),
    ],
)
def test_letters(text: str, expected: str) -> None:
    assert letter(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        # An upstream grader reads B, D, A and C out of these, so that non-answers score by chance.
        "Because the data are missing, nothing can be said.",
        "Definitely not something I can decide.",
        "A good question. It cannot be answered.",
        "Cannot say.",
        "The answer is Because of the yeast.",
        "The answer is A good deal of patience.",
        "Answer: Both",
        "",
        "Answer: E",
    ],
)
def test_words_are_no_letters(text: str) -> None:
    assert letter(text) is None


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz ,.\n", max_size=200), st.sampled_from("ABCD"))
def test_prose_before_an_answer_changes_nothing(prose: str, right: str) -> None:
    assert letter(f"{prose}\nAnswer: {right}") == right


@given(st.integers(0, 10**6))
def test_sentences_that_begin_with_capitals_name_no_option(seed: int) -> None:
    rng = random.Random(seed)
    words = ["Apples", "Bread", "Crumbs", "Dough", "Besides", "Any", "Did", "Can"]
    lines = [f"{rng.choice(words)} {rng.choice(('rise', 'rest', 'bake'))} slowly" for _ in range(5)]
    assert letter("\n".join(lines)) is None


def test_more_options() -> None:
    assert letter("Answer: J", "ABCDEFGHIJ") == "J"


def test_boxes_and_numbers() -> None:
    assert boxed(r"so \boxed{1} and \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert boxed(r"\boxed{1") is None
    assert whole_number(r"of 17 loaves \boxed{204} are left, not 205") == 204
    assert whole_number("that makes 1,024 loaves") == 1024
    assert whole_number("it is 3.5") is None
    assert whole_number(r"\boxed{073}") == 73
    assert whole_number("none") is None


def test_code() -> None:
    two = "```python\ndef bake():\n    return 1\n```\nTest:\n```python\nprint(bake())\n```"
    assert python_code(two, "bake") == "def bake():\n    return 1"
    assert python_code("```\nx = 1\n```", "bake") == "x = 1"
    assert (
        python_code("```python\ndef bake():\n    return 2", "bake") == "def bake():\n    return 2"
    )
    assert python_code("    return 1", "bake") == "    return 1"
    assert python_code("I would knead it first.", "bake") is None
    assert python_code("```json\n{}\n```\nNo code here.", "bake") is None
