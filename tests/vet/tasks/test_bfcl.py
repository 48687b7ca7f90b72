from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests.vet.tasks.publishers import bfcl_checker

from aperto.vet.sources import DataUnavailableError, fetch
from aperto.vet.suites.item import Answer, Call
from aperto.vet.tasks import bfcl

FUNCTION: dict[str, Any] = {
    "name": "bakery.bake",
    "description": "Bake loaves.",
    "parameters": {
        "type": "dict",
        "properties": {
            "kind": {"type": "string"},
            "loaves": {"type": "integer"},
            "hours": {"type": "float"},
            "seeds": {"type": "array", "items": {"type": "string"}},
            "oven": {"type": "dict", "properties": {"heat": {"type": "integer"}}},
            "steam": {"type": "boolean"},
        },
        "required": ["kind", "loaves"],
    },
}
RIGHT = [
    {
        "bakery.bake": {
            "kind": ["rye", "rye bread"],
            "loaves": [2],
            "hours": [1.0, ""],
            "seeds": [["sesame", "poppy"], ""],
            "oven": [{"heat": [220, 230]}, ""],
            "steam": [True, ""],
        }
    }
]


@pytest.mark.parametrize(
    ("arguments", "label"),
    [
        ({"kind": "Rye-Bread", "loaves": 2}, "right"),
        ({"kind": "rye", "loaves": 2, "hours": 1, "seeds": ["Sesame", "poppy"]}, "right"),
        ({"kind": "rye", "loaves": 2, "oven": {"heat": 230}, "steam": True}, "right"),
        ({"kind": "wheat", "loaves": 2}, "wrong value"),
        ({"kind": "rye", "loaves": 2.0}, "wrong type"),
        ({"kind": "rye", "loaves": True}, "wrong type"),
        ({"kind": "rye", "loaves": 2, "seeds": ["poppy", "sesame"]}, "wrong value"),
        ({"kind": "rye", "loaves": 2, "seeds": "sesame"}, "wrong type"),
        ({"kind": "rye", "loaves": 2, "oven": {"heat": 100}}, "wrong value"),
        ({"kind": "rye", "loaves": 2, "colour": "dark"}, "unknown argument"),
        ({"kind": "rye"}, "missing argument"),
    ],
)
def test_arguments(arguments: dict[str, Any], label: str) -> None:
    assert bfcl.check(FUNCTION, [("bakery_bake", arguments)], RIGHT) == label


def test_calls() -> None:
    right = ("bakery_bake", {"kind": "rye", "loaves": 2})
    assert bfcl.check(FUNCTION, [], RIGHT) == "no call"
    assert bfcl.check(FUNCTION, [right, right], RIGHT) == "too many calls"
    assert bfcl.check(FUNCTION, [("bakery_eat", right[1])], RIGHT) == "other function"
    assert bfcl.check(FUNCTION, [("bakery_bake", None)], RIGHT) == "no arguments"


def test_items_from_files_of_the_publishers_form(tmp_path: Path) -> None:
    questions, answers = tmp_path / "questions", tmp_path / "answers"
    turns = [[{"role": "user", "content": "Two loaves of rye, please."}]]
    questions.write_text(json.dumps({"id": "s_0", "question": turns, "function": [FUNCTION]}))
    answers.write_text(json.dumps({"id": "s_0", "ground_truth": RIGHT}) + "\n")
    (item,) = bfcl.load(questions, answers)
    (function,) = item.functions
    assert function.name == "bakery_bake"
    assert function.parameters["type"] == "object"
    assert function.parameters["properties"]["hours"] == {"type": "number"}
    call = Call("bakery_bake", '{"kind": "rye", "loaves": 2}')
    assert bfcl.grade(item, Answer("", calls=(call,))).score == 1.0
    assert bfcl.grade(item, Answer("Two loaves.")).label == "no call"


def _made(rng: random.Random, properties: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """Arguments near the right ones: right values, those of others, other types, gaps."""
    pool: list[Any] = [1, 1.5, "", "x", True, [], [1], ["x"], {}, {"x": 1}, [{"x": 1}], None]
    pool += [value for values in right.values() for value in values]
    made = {}
    for key, values in right.items():
        if rng.random() < 0.12:
            continue
        value = rng.choice([one for one in values if one != ""] or [1])
        if isinstance(value, dict):
            value = {inner: rng.choice(options) for inner, options in value.items()}
        elif value and isinstance(value, list) and isinstance(value[0], dict):
            value = [{k: rng.choice(v) for k, v in part.items()} for part in value]
        if isinstance(value, str) and rng.random() < 0.3:
            value = rng.choice([value.upper(), value.replace(" ", "-"), value + "."])
        made[key] = rng.choice(pool) if rng.random() < 0.12 else value
    if rng.random() < 0.05:
        made["another"] = 1
    return made


@pytest.mark.long
def test_agrees_with_the_publishers_checker_on_every_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = bfcl_checker(tmp_path, monkeypatch)
    try:
        data = fetch("bfcl")
    except DataUnavailableError:
        pytest.skip("the data cannot be had here")
    paths = data.paths
    items = bfcl.load(paths["simple_python.json"], paths["simple_python_answers.json"])
    rng = random.Random(7)
    compared = {True: 0, False: 0}
    for item in items:
        function, right = json.loads(item.expected["function"]), json.loads(item.expected["calls"])
        (name,) = right[0]
        for _ in range(40):
            made = _made(rng, function["parameters"]["properties"], right[0][name])
            called = bfcl.function_name(name)
            ours = bfcl.check(function, [(called, made)], right) == "right"
            try:
                other = theirs([function], [{called: made}], right)
            except (TypeError, AttributeError, KeyError):
                other = False  # their checker falls over on shapes it does not expect
            assert ours == other, (item.id, made, right)
            compared[ours] += 1
    assert min(compared.values()) > 2000, compared
