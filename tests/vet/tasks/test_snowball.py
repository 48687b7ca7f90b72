from __future__ import annotations

import json
from pathlib import Path

import pytest

from aperto.vet.suites.item import Answer
from aperto.vet.tasks import snowball


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes, it is a prime.\nAnswer: yes", "yes"),
        ("No. It is divisible … wait, it is not.\n**Answer: Yes**", "yes"),
        ("No, there is no such flight.", "no"),
        ("Nobody knows.", None),
        ("Yes? I’m not sure; I can't tell.", None),
        ("I don't know.\nAnswer: no", "no"),
        ("", None),
    ],
)
def test_claims(text: str, expected: str | None) -> None:
    assert snowball.claim(text) == expected


def test_items_and_grades(tmp_path: Path) -> None:
    made = {
        "primality_testing.json": [{"question": "Is 7 prime?", "number": 7, "answer": True}],
        "graph_connectivity.json": ["Flights: none. Is there a way from A to B?"],
        "senator_search.json": ["Was there a baker who is a teapot?"],
    }
    for name, rows in made.items():
        (tmp_path / name).write_text(json.dumps(rows))
    items = snowball.load({name: tmp_path / name for name in made})
    assert [item.suite for item in items] == [
        "snowball/primes",
        "snowball/flights",
        "snowball/senators",
    ]
    labels = [snowball.grade(item, Answer("Answer: no")).label for item in items]
    assert labels == ["incorrect", "correct", "correct"]
    assert snowball.grade(items[0], Answer("Hm.")).label == "not attempted"
    assert snowball.grade(items[0], Answer("Hm.", analysis="Answer: yes")).score == 0.0
