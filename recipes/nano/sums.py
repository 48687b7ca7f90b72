"""Turns that ask for arithmetic, in many wordings."""

from __future__ import annotations

import random

import arithmetic
from turn import Turn, number

SIGNS = {
    "+": ("+", " + ", " plus ", "+", " + "),
    "-": ("-", " - ", " minus ", "-", " - "),
    "*": ("*", " * ", " times ", "x", " x ", " × ", " multiplied by "),
    "/": ("/", " / ", " divided by ", " ÷ ", " over "),
}
PHRASES = {
    "+": ("the sum of {a} and {b}", "add {a} and {b}", "{a} added to {b}"),
    "-": ("the difference of {a} and {b}", "subtract {b} from {a}", "take {b} from {a}"),
    "*": ("the product of {a} and {b}", "multiply {a} by {b}", "multiply {a} and {b}"),
    "/": ("the quotient of {a} and {b}", "divide {a} by {b}"),
}
STORIES = {
    "+": (
        "Tom has {a} {thing} and gets {b} more. How many {thing} does he have",
        "There are {a} {thing} here and {b} there. How many in all",
        "I had {a} {thing} and bought {b}. How many now",
    ),
    "-": (
        "Tom has {a} {thing} and gives away {b}. How many {thing} are left",
        "I had {a} {thing} and lost {b}. How many are left",
        "Of {a} {thing}, {b} are sold. How many remain",
    ),
    "*": (
        "A box holds {a} {thing}. How many {thing} are in {b} boxes",
        "There are {b} bags with {a} {thing} each. How many in all",
    ),
    "/": ("{a} {thing} are shared by {b} people. How many does each get",),
}
THINGS = ("apples", "books", "pens", "coins", "cards", "eggs", "stones", "loaves", "baguettes",
          "bread rolls", "pancakes", "cakes", "cups", "stamps", "balls")  # fmt: skip
OPENERS = (
    "What is {}?", "what is {}", "What's {}?", "whats {}", "Compute {}.", "compute {}",
    "Calculate {}", "How much is {}?", "how much is {}", "Please compute {}.", "{}", "{} = ?",
    "{}=", "{} =", "Can you tell me {}?", "Solve {}", "wat is {}", "Waht is {}?",
    "Hey, what is {}?",
    "I need {}", "Tell me {}.", "calcualte {}", "{}?", "Work out {}.", "Evaluate {}",
    "What does {} equal?", "What is {}", "WHAT IS {}?", "Find {}.",
)  # fmt: skip


def operands(rng: random.Random, op: str, hard: bool = True) -> tuple[int, int]:
    """Two operands whose lengths the skill covers; `hard` off keeps to two digits."""
    if op == "*":
        sizes = [(2, 2)] * 10 + [(2, 1), (1, 2), (1, 1), (3, 1), (3, 2)]
        m, n = rng.choice(sizes if hard else [(1, 1), (2, 1), (1, 2)])
    elif op == "/":
        b = rng.randrange(1, 10) if rng.random() < 0.97 else 0
        a = number(rng, rng.choice((2, 3) if hard else (1, 2)))
        return (a - a % b if b and rng.random() < 0.6 else a), b
    else:
        m = rng.choice((1, 2, 3, 3, 4, 4, 4) if hard else (1, 2))
        n = m if rng.random() < 0.6 else rng.randrange(1, (4 if hard else 2) + 1)
    return number(rng, m), number(rng, n)


def ask_sum(rng: random.Random, a: int, op: str, b: int) -> str:
    """One of many ways to ask for `a op b`."""
    kind = rng.random()
    if kind < 0.12 and (op != "-" or a >= b):
        return rng.choice(STORIES[op]).format(a=a, b=b, thing=rng.choice(THINGS)) + "?"
    if kind < 0.32:
        phrase = rng.choice(PHRASES[op]).format(a=a, b=b)
        if phrase.startswith("the"):
            return rng.choice(("What is {}?", "Compute {}.", "{}", "what is {}")).format(phrase)
        return rng.choice(("{}.", "{}", "Please {}.", "please {}")).format(phrase)
    return rng.choice(OPENERS).format(f"{a}{rng.choice(SIGNS[op])}{b}")


OPS = "+++---****//"


def arithmetic_turn(rng: random.Random, effort: str, hard: bool = True, op: str = "") -> Turn:
    """A sum, difference, product, quotient or comparison."""
    if not op and rng.random() < 0.07:
        return compare_turn(rng, effort)
    op = op or rng.choice(OPS)
    a, b = operands(rng, op, hard)
    return sum_turn(ask_sum(rng, a, op, b), a, op, b, effort)


def sum_turn(user: str, a: int, op: str, b: int, effort: str) -> Turn:
    answer = f"{a} {op} {b} = {arithmetic.result(a, op, b)}"
    thought = arithmetic.reasoning(a, op, b, effort)
    return Turn(user, answer, thought, effort=effort, key=f"{a}{op}{b}")


def compare_turn(rng: random.Random, effort: str) -> Turn:
    size = rng.randrange(1, 5)
    a = number(rng, size)
    b = number(rng, size if rng.random() < 0.7 else rng.randrange(1, 5))
    ask = ("Which is larger, {} or {}?", "which is bigger: {} or {}", "Is {} larger than {}?",
           "Compare {} and {}.", "larger: {} or {}", "{} or {}, which is larger?")  # fmt: skip
    answer = f"{a} and {b} are equal."
    if a != b:
        answer = f"{max(a, b)} is larger than {min(a, b)}."
    thought = None if effort == "low" else arithmetic.compare(a, b)
    return Turn(rng.choice(ask).format(a, b), answer, thought, effort=effort, key=f"{a}?{b}")
