"""BFCL, simple: one function, one question, one call to be made with the right arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aperto.vet.suites.item import Answer, Function, Grade, Item, Turn

PROMPT_ID = "aperto/bfcl-simple/1"
_TYPES: Mapping[str, type] = {
    "string": str,
    "any": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
}
_SCHEMA = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
_IGNORED = re.compile(r"[ ,./\-_*^]")
_OPTIONAL = ""
"""How the publisher's answers mark an argument that may be left out."""


def load(questions: Path, answers: Path) -> tuple[Item, ...]:
    """Items of the publisher's two files (JSON lines), joined by id."""
    right = {row["id"]: row["ground_truth"] for row in _rows(answers)}
    return tuple(_item(row, right[row["id"]]) for row in _rows(questions))


def grade(item: Item, answer: Answer) -> Grade:
    """1 where exactly the expected call was made."""
    calls = [(call.name, call.parsed()) for call in answer.calls]
    label = check(json.loads(item.expected["function"]), calls, json.loads(item.expected["calls"]))
    return Grade(float(label == "right"), label)


def check(
    function: Mapping[str, Any],
    calls: Sequence[tuple[str, Mapping[str, Any] | None]],
    expected: Sequence[Mapping[str, Mapping[str, Sequence[Any]]]],
) -> str:
    """`right`, or what is wrong with the calls.

    Args:
        function: the publisher's description, with its own type names.
        calls: (name, arguments) as made; names may have `_` for `.`, as function names must.
        expected: by name and argument, the values that are right; "" marks what may be left out.
    """
    if len(calls) != 1:
        return "no call" if not calls else "too many calls"
    name, arguments = calls[0]
    if arguments is None:
        return "no arguments"
    if name != function_name(function["name"]):
        return "other function"
    (values,) = expected[0].values()
    properties = function["parameters"]["properties"]
    if not set(function["parameters"]["required"]) <= set(arguments):
        return "missing argument"
    for key, value in arguments.items():
        if key not in properties or key not in values:
            return "unknown argument"
        wrong = _wrong(value, properties[key], values[key])
        if wrong:
            return wrong
    left_out = [key for key in values if key not in arguments and _OPTIONAL not in values[key]]
    return "missing argument" if left_out else "right"


def function_name(name: str) -> str:
    """A name without the dots that function names may not have."""
    return name.replace(".", "_")


def schema(described: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter description as JSON Schema."""
    kept = {key: value for key, value in described.items() if key != "optional"}
    kind = str(described.get("type", "string"))
    kept["type"] = _SCHEMA.get(kind, kind)
    if "properties" in described:
        kept["properties"] = {key: schema(one) for key, one in described["properties"].items()}
    if "items" in described:
        kept["items"] = schema(described["items"])
    return kept


def _wrong(value: Any, described: Mapping[str, Any], right: Sequence[Any]) -> str | None:
    """What is wrong with one argument; None where nothing is."""
    kind = described["type"]
    wanted = _TYPES[kind]
    inner = _TYPES[described["items"]["type"]] if kind in ("array", "tuple") else None
    if kind == "float" and type(value) is int:
        value = float(value)
    shape = _shape(value, wanted, inner, right)
    if shape is None:
        return "wrong type"
    return None if _equals(value, wanted, inner, right, shape == "variable") else "wrong value"


def _shape(value: Any, wanted: type, inner: type | None, right: Sequence[Any]) -> str | None:
    """`value` or `variable` where the type fits the description or the answers; else None.

    A name of a variable may stand for a value; the answers then have its type, not the described.
    """
    answer_type = next((type(one) for one in right if one != _OPTIONAL), None)
    variable = "variable" if answer_type not in (None, wanted) else "value"
    fits = inner is None or (isinstance(value, list) and _inner_fits(value, inner, right))
    if type(value) is wanted and fits:
        return variable
    return "variable" if answer_type is not None and type(value) is answer_type else None


def _inner_fits(value: Sequence[Any], inner: type, right: Sequence[Any]) -> bool:
    return any(
        not isinstance(one, list) or all(_shape(part, inner, None, one) for part in value)
        for one in right
    )


def _equals(
    value: Any, wanted: type, inner: type | None, right: Sequence[Any], is_variable: bool
) -> bool:
    if is_variable:
        return value in right
    if wanted is dict:
        return any(_same_object(value, one) for one in right if one != _OPTIONAL)
    if wanted is list and inner is dict:
        return any(_same_objects(value, one) for one in right)
    if wanted is str:
        return _bare(value) in [_bare(one) for one in right if isinstance(one, str)]
    if wanted is list:
        return [_bare(part) for part in value] in [[_bare(part) for part in one] for one in right]
    return value in right


def _same_objects(value: Sequence[Any], right: Sequence[Any]) -> bool:
    if len(value) != len(right):
        return False
    return all(_same_object(*pair) for pair in zip(value, right, strict=True) if pair[1] != "")


def _same_object(value: Mapping[str, Any], right: Mapping[str, Sequence[Any]]) -> bool:
    """Whether keys and values are among the right ones; inner objects are compared whole."""
    for key, one in value.items():
        if key not in right or _bare(one) not in [_bare(other) for other in right[key]]:
            return False
    return all(key in value or _OPTIONAL in others for key, others in right.items())


def _bare(value: Any) -> Any:
    """Text without case, spaces and light punctuation, so that spelling decides nothing."""
    return _IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _item(row: dict[str, Any], right: list[Any]) -> Item:
    (function,) = row["function"]
    (turns,) = row["question"]
    return Item(
        suite="bfcl_simple",
        id=row["id"],
        cluster=row["id"],
        turns=tuple(Turn(turn["role"], turn["content"]) for turn in turns),
        expected={"function": json.dumps(function), "calls": json.dumps(right)},
        functions=(
            Function(
                function_name(function["name"]),
                function["description"],
                schema(function["parameters"]),
            ),
        ),
    )
