"""A budget closes the analysis in time and lets none be opened again."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tests.fakes import Script
from tests.harmony.walks import Walker

from aperto.harmony import CallRule, TurnRules, parse
from aperto.harmony.budget import ReasoningBudget, closing_tokens
from aperto.harmony.grammar import turn_grammar
from aperto.tokenizer import HARMONY_SPECIAL, Tokenizer

TOKENIZER = Tokenizer(
    {bytes([i]): i for i in range(256)}, {n: 256 + i for i, n in enumerate(HARMONY_SPECIAL)}
)
END = TOKENIZER.special["<|end|>"]
THINKS = "<|channel|>analysis<|message|>"
AGAIN = "<|end|><|start|>assistant"


def allowed(budget: ReasoningBudget) -> set[int] | None:
    mask = budget.mask()
    if mask is None:
        return None
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def after(text: str, **limits) -> ReasoningBudget:
    budget = ReasoningBudget(TOKENIZER, **limits)
    for token in Script.ids(TOKENIZER, text):
        budget.accept(token)
    return budget


def test_the_analysis_is_closed_when_its_tokens_are_spent():
    assert allowed(after(THINKS + "ab", reasoning_tokens=3)) is None
    assert allowed(after(THINKS + "abc", reasoning_tokens=3)) == {END}
    assert allowed(after(THINKS + "abc" + AGAIN, reasoning_tokens=3)) is None


def test_no_analysis_is_opened_again():
    budget = after(THINKS + "abc" + AGAIN + "<|channel|>", reasoning_tokens=3)
    assert not {ord("a"), ord("A")} & allowed(budget)
    assert {ord("f"), ord("c"), ord(" ")} <= allowed(budget)
    budget.accept(ord(" "))
    assert ord("a") not in allowed(budget)
    budget.accept(ord("f"))
    assert allowed(budget) is None
    assert ord("a") not in allowed(after("<|channel|>", reasoning_tokens=0))


def test_a_limit_on_all_tokens_ends_the_analysis_alone():
    drawn = len(Script.ids(TOKENIZER, THINKS)) + 4
    assert allowed(after(THINKS + "abcd", until=drawn + 1)) is None
    assert allowed(after(THINKS + "abcd", until=drawn)) == {END}
    assert allowed(after("<|channel|>final<|message|>" + "a" * 99, until=drawn)) is None


def test_calls_on_the_analysis_channel_are_no_reasoning():
    for header in ("analysis to=python code", "analysis to=browser.open"):
        assert allowed(after(f"<|channel|>{header}<|message|>abcdef", reasoning_tokens=3)) is None
    role = " to=python<|channel|>"
    assert allowed(after(role, reasoning_tokens=0)) is None
    assert allowed(after(role + "analysis<|message|>abcdef", reasoning_tokens=3)) is None


def test_a_character_that_has_begun_is_finished():
    budget = after(THINKS + "ab", reasoning_tokens=3)
    for byte in "\U0001f600".encode()[:3]:
        budget.accept(byte)
        assert allowed(budget) is None
    budget.accept("\U0001f600".encode()[3])
    assert allowed(budget) == {END}
    budget = after(THINKS, reasoning_tokens=1)
    for _ in range(5):  # no character goes on for ever
        budget.accept(0xF0)
    assert allowed(budget) == {END}


@pytest.fixture(scope="module")
def walker() -> Walker:
    return Walker(TOKENIZER)


@pytest.mark.parametrize("limit", [0, 1, 7])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_with_a_grammar_both_hold(walker, limit, choice):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    rules = TurnRules(
        tool_choice=choice,
        calls=(
            CallRule(recipient="functions.f", parameters=schema),
            CallRule(recipient="python"),
        ),
    )
    num_ended = 0
    for seed in range(20):
        inner = walker.compiler.constraint(turn_grammar(rules))
        budget = ReasoningBudget(TOKENIZER, reasoning_tokens=limit, inner=inner)
        ids = walker.follow(budget, random.Random(seed))
        if ids is None:
            continue
        num_ended += 1
        parser = parse(ids, TOKENIZER)
        assert parser.repairs == []
        thoughts = [m.text for m in parser.messages if m.channel == "analysis" and not m.recipient]
        # The last character may take three bytes, here tokens, beyond the limit.
        assert sum(len(text.encode()) for text in thoughts) <= limit + 3
        assert limit or not thoughts
    assert num_ended > 5


def test_tokens_between_reasoning_and_answer_are_counted():
    text = "<|end|><|start|>assistant<|channel|>final<|message|><|return|>"
    assert closing_tokens(TOKENIZER) == len(Script.ids(TOKENIZER, text))
