"""Counting, intervals, what passes as right and as valid, and a short real run."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import score

from aperto.engine import Usage
from aperto.harmony import ANALYSIS, FINAL, Message, Repair, RepairKind, Role
from aperto.local_model import Answer

REASONING = Message(Role.ASSISTANT, "2 + 2 is 4.", channel=ANALYSIS)


def answer(*messages: Message, finish_reason: str = "stop", repairs: tuple = ()) -> Answer:
    return Answer(
        text="".join(m.text for m in messages if m.channel == FINAL),
        reasoning="",
        messages=messages,
        repairs=repairs,
        logprobs=(),
        done=SimpleNamespace(finish_reason=finish_reason, usage=Usage(10, 0, 7)),
    )


def final(text: str) -> Message:
    return Message(Role.ASSISTANT, text, channel=FINAL)


def call(arguments: str, recipient: str = "functions.calculator") -> Message:
    return Message(
        Role.ASSISTANT,
        arguments,
        channel="commentary",
        recipient=recipient,
        content_type="<|constrain|>json",
    )


# By Wilson's formula, worked out to four digits in textbooks and by hand.
@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662), (10, 10, 0.7225, 1)],
)
def test_wilson(right, n, low, high):
    assert score.wilson(right, n) == pytest.approx((low, high), abs=5e-5)


def test_nothing_is_known_of_nothing():
    assert score.wilson(0, 0) == (0.0, 1.0)


def test_a_final_answer_is_right_word_for_word():
    expected = {"final": "4"}
    assert score.is_right(answer(REASONING, final("4")), expected)
    assert not score.is_right(answer(final("4 ")), expected)
    assert not score.is_right(answer(final("4"), call("{}")), expected)


@pytest.mark.parametrize(
    ("messages", "right"),
    [
        ([call('{"b": 2, "a": 1}')], True),
        ([call('{"a": 1, "b": 3}')], False),
        ([call('{"a": 1, "b": 2')], False),
        ([call('{"a": 1, "b": 2}', "functions.lookup")], False),
        ([call('{"a": 1, "b": 2}')] * 2, False),
        ([final("3")], False),
    ],
    ids=["right", "other value", "no JSON", "other function", "two calls", "no call"],
)
def test_a_call_is_right_by_name_and_arguments(messages, right):
    expected = {"call": "calculator", "arguments": {"a": 1, "b": 2}}
    assert score.is_right(answer(*messages, finish_reason="call"), expected) is right


def test_valid_is_one_end_without_repairs():
    assert score.is_valid(answer(REASONING, final("4")))
    assert score.is_valid(answer(REASONING, call("{}"), finish_reason="call"))
    assert not score.is_valid(answer(REASONING, final("4"), finish_reason="length"))
    assert not score.is_valid(answer(REASONING))
    assert not score.is_valid(answer(final("4"), REASONING))
    assert not score.is_valid(answer(final("4"), final("4")))
    mended = (Repair(RepairKind.MISSING_END, "4"),)
    assert not score.is_valid(answer(REASONING, final("4"), repairs=mended))


def test_a_tally_counts():
    tally = score.Tally()
    tally.add(answer(final("4")), {"final": "4"})
    tally.add(answer(final("5"), finish_reason="length"), {"final": "4"})
    tally.add(answer(final("Sorry, I can't help with that.")), {"final": "4"})
    assert tally == score.Tally(n=3, right=1, valid=2, refused=1, tokens=21)


def test_two_lines_of_one_skill(monkeypatch, tmp_path, capsys):
    written = tmp_path / "scores.json"
    arguments = ["score.py", "small_talk", "--limit", "2", "--json", str(written)]
    monkeypatch.setattr(sys, "argv", arguments)
    score.main()
    shown = capsys.readouterr().out
    assert "| small_talk |" in shown and "| valid harmony | all | 2 |" in shown
    tallies = json.loads(written.read_text())["small_talk"]
    assert sum(tally["n"] for tally in tallies.values()) == 2
    assert all(tally["tokens"] > 0 for tally in tallies.values())
