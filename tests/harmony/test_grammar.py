"""The grammar of a turn: whatever is drawn under it parses without repair and holds its rules."""

from __future__ import annotations

import functools
import json
import random
import re
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fakes import Script
from tests.harmony.walks import Walker

from aperto.errors import ConfigError, EngineError
from aperto.formats import open_checkpoint
from aperto.formats.hub import resolve_model
from aperto.harmony import (
    CallRule,
    JsonObject,
    JsonSchema,
    Lark,
    Regex,
    TurnRules,
    parse,
)
from aperto.harmony.grammar import turn_grammar
from aperto.tokenizer import Tokenizer

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "days"],
}
ADDRESS = {"type": "object", "properties": {"street": {"type": "string"}}, "required": ["street"]}
TREE = {
    "type": "object",
    "properties": {"label": {"type": "string"}, "kids": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["label"],
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "home": {"anyOf": [{"$ref": "#/$defs/address"}, {"type": "null"}]},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        "score": {"type": ["number", "null"]},
    },
    "required": ["name", "home"],
    "$defs": {"address": ADDRESS},
}
SCHEMAS = {"weather": WEATHER, "tree": TREE, "person": PERSON}
CALLS = (
    CallRule(recipient="functions.weather", parameters=WEATHER),
    CallRule(recipient="functions.weather_again", parameters=TREE),
    CallRule(recipient="python"),
    CallRule(recipient="functions.code", text=Regex(r"[a-f]{2,5}-[0-9]")),
    CallRule(recipient="functions.sum", text=Lark('start: N ("+" N)*\nN: /[0-9]+/')),
    CallRule(recipient="browser.open", parameters={"type": "object"}, strict=False),
)
TEXTS = {"functions.code": r"[a-f]{2,5}-[0-9]", "functions.sum": r"[0-9]+(\+[0-9]+)*"}


@functools.cache
def walker(name: str) -> Walker:
    if name == "o200k":
        return Walker(Tokenizer.bundled())
    source = open_checkpoint(resolve_model("nano")).tokenizer_source()
    return Walker(Tokenizer.from_checkpoint(source))


def messages(name: str, rules: TurnRules, seed: int):
    """What a walk said; None where it did not end in time."""
    ids = walker(name).walk(turn_grammar(rules), random.Random(seed))
    if ids is None:
        return None
    parser = parse(ids, walker(name).tokenizer)
    assert parser.repairs == [], (parser.repairs, walker(name).tokenizer.decode(ids))
    return parser.messages


def check(rules: TurnRules, said) -> None:
    """Hold what was said against the rules."""
    calls = [message for message in said if message.recipient is not None]
    allowed = {call.recipient: call for call in rules.callable}
    for call in calls:
        rule = allowed[call.recipient]
        if call.recipient.startswith("functions."):
            assert call.channel == "commentary"
        if rule.parameters is None:
            assert call.text
            assert rule.text is None or re.fullmatch(TEXTS[rule.recipient], call.text)
        else:
            value = json.loads(call.text)
            jsonschema.validate(value, rule.parameters)
            assert isinstance(value, dict)
    assert rules.parallel_calls or len(calls) <= 1
    assert rules.tool_choice != "required" or calls
    assert rules.reasoning or all(m.channel != "analysis" or m.recipient for m in said)
    last = said[-1]
    if calls:
        assert last.recipient is not None
        first = next(i for i, m in enumerate(said) if m.recipient is not None)
        assert all(m.recipient is not None for m in said[first:])
    else:
        assert last.channel == "final"
        assert last.text
    assert sum(m.channel == "final" for m in said) <= 1
    if last.channel == "final" and isinstance(rules.answer, JsonSchema):
        jsonschema.validate(json.loads(last.text), rules.answer.schema)
    if last.channel == "final" and isinstance(rules.answer, JsonObject):
        assert isinstance(json.loads(last.text), dict)


def all_rules() -> st.SearchStrategy[TurnRules]:
    answers = st.sampled_from(
        [None, JsonObject(), *map(JsonSchema, SCHEMAS.values()), JsonSchema(PERSON, strict=False)]
    )

    def build(calls, choice, allowed, parallel, reasoning, answer):
        allowed = allowed and tuple(c.recipient for c in calls[:1])
        if not calls and choice == "required":
            choice = "auto"
        return TurnRules(
            calls=calls,
            tool_choice=choice,
            allowed=allowed or None,
            parallel_calls=parallel,
            reasoning=reasoning,
            answer=answer,
        )

    return st.builds(
        build,
        st.lists(st.sampled_from(CALLS), unique_by=id, max_size=4).map(tuple),
        st.sampled_from(["auto", "none", "required"]),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        answers,
    )


def many(num: int) -> settings:
    return settings(deadline=None, max_examples=num, suppress_health_check=[HealthCheck.too_slow])


@many(60)
@given(rules=all_rules(), seed=st.integers(0, 2**32))
def test_whatever_is_drawn_needs_no_repair(rules, seed):
    said = messages("nano", rules, seed)
    if said is not None:
        check(rules, said)


@many(12)
@given(rules=all_rules(), seed=st.integers(0, 2**32))
def test_nor_in_the_whole_vocabulary(rules, seed):
    said = messages("o200k", rules, seed)
    if said is not None:
        check(rules, said)


def schemas() -> st.SearchStrategy[dict]:
    """Schemas as tools have them, all of which the grammar can hold."""
    leaves = st.sampled_from(
        [
            {"type": "string"},
            {"type": "string", "minLength": 1, "maxLength": 5},
            {"type": "string", "pattern": "^[a-z]{2,4}$"},
            {"type": "string", "format": "date"},
            {"type": "integer"},
            {"type": "integer", "minimum": -3, "exclusiveMaximum": 30},
            {"type": "number", "minimum": 0.5, "maximum": 2},
            {"type": "integer", "multipleOf": 5},
            {"type": "boolean"},
            {"type": "null"},
            {"enum": ["a b", 'q"', "é", 3, None, True]},
            {"const": {"k": [1, "x"]}},
            {"type": ["string", "null"]},
            {"$ref": "#/$defs/leaf"},
            {"$ref": "#/$defs/list"},
        ]
    )
    names = st.sampled_from(["a", "b", "id", "title", "x y", "é"])

    def objects(child):
        def build(properties, required, additional):
            schema = {
                "type": "object",
                "properties": properties,
                "required": [n for n in properties if n in required],
            }
            return schema if additional is None else {**schema, "additionalProperties": additional}

        return st.builds(
            build,
            st.dictionaries(names, child, max_size=3),
            st.lists(names),
            st.sampled_from([None, False, {"type": "integer"}]),
        )

    def grow(child):
        arrays = st.builds(
            lambda items, least: {"type": "array", "items": items, "minItems": least},
            child,
            st.integers(0, 2),
        )
        unions = st.lists(child, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})
        return st.one_of(objects(child), arrays, unions)

    defs = {
        "leaf": {"type": "string", "maxLength": 3},
        "list": {
            "type": "object",
            "properties": {
                "head": {"type": "integer"},
                "tail": {"anyOf": [{"$ref": "#/$defs/list"}, {"type": "null"}]},
            },
            "required": ["head", "tail"],
        },
    }
    return objects(st.recursive(leaves, grow, max_leaves=6)).map(lambda s: {**s, "$defs": defs})


def hold_schema(name: str, schema: dict, strict: bool, seed: int) -> None:
    rules = TurnRules(reasoning=False, answer=JsonSchema(schema, strict=strict))
    assert turn_grammar(rules).warnings == ()
    said = messages(name, rules, seed)
    if said is not None:
        jsonschema.validate(json.loads(said[-1].text), schema)


@many(60)
@given(schema=schemas(), strict=st.booleans(), seed=st.integers(0, 2**32))
def test_every_answer_validates(schema, strict, seed):
    hold_schema("nano", schema, strict, seed)


@many(12)
@given(schema=schemas(), strict=st.booleans(), seed=st.integers(0, 2**32))
def test_every_answer_validates_in_the_whole_vocabulary(schema, strict, seed):
    hold_schema("o200k", schema, strict, seed)


def texts(rules: TurnRules, num: int = 12) -> list[str]:
    said = [messages("nano", rules, seed) for seed in range(num)]
    return [turn[-1].text for turn in said if turn is not None]


def test_a_text_answer_keeps_to_its_grammar():
    answers = texts(TurnRules(answer=Regex(r"[ab]{2,4}/\d?"), reasoning=False))
    assert answers
    assert all(re.fullmatch(r"[ab]{2,4}/\d?", text) for text in answers)
    lark = 'start: "<|end|>" item+ // <|call|> is but a remark\nitem: "x" | /[<]y/'
    answers = texts(TurnRules(answer=Lark(lark), reasoning=False))
    assert answers
    assert all(re.fullmatch(r"<\|end\|>(x|<y)+", text) for text in answers)


@pytest.mark.parametrize("text", ["start: <|end|>", "start: /a/ <[200007]>", 'start: "a" <[*]>'])
def test_a_lark_answer_may_not_name_special_tokens(text):
    with pytest.raises(ConfigError, match="special tokens"):
        turn_grammar(TurnRules(answer=Lark(text)))


@pytest.mark.parametrize("answer", [Regex("(?=a)"), Regex("["), Lark("begin: x"), Lark("start: x")])
def test_an_answer_form_that_cannot_be_read_is_refused(answer):
    with pytest.raises(ConfigError, match="cannot be used"):
        turn_grammar(TurnRules(answer=answer))


@pytest.mark.parametrize("form", [Regex("(?=x)"), Lark("start: other"), Lark("start: <|end|>")])
def test_a_form_of_a_call_that_cannot_be_held_is_given_up_alone(form):
    rules = TurnRules(calls=(CallRule(recipient="functions.f", text=form), *CALLS))
    (warning,) = turn_grammar(rules).warnings
    assert warning.startswith("functions.f.text: ") and warning.endswith("any text is allowed")


def test_rules_that_contradict_each_other_are_refused():
    call = CallRule(recipient="functions.f", parameters={})
    for fields, wrong in [
        ({"tool_choice": "required"}, "nothing may be called"),
        ({"calls": (call,), "allowed": (), "tool_choice": "required"}, "nothing may be called"),
        ({"calls": (call,), "allowed": ("functions.g",)}, "allowed names functions.g"),
        ({"calls": (call, call)}, "each once"),
        ({"tool_choice": "always"}, "tool_choice is 'always'"),
    ]:
        with pytest.raises(ConfigError, match=wrong):
            TurnRules(**fields)
    for name in ("", "a b", 'x"', "f<|end|>", "f.", "é"):
        with pytest.raises(ConfigError, match="recipient is"):
            CallRule(recipient=name)


def field(schema: dict) -> dict:
    return {
        "type": "object",
        "properties": {"y": schema, "z": {"type": "integer"}},
        "required": ["y", "z"],
    }


@pytest.mark.parametrize(
    ("schema", "warning"),
    [
        ({"type": "string", "pattern": "(?=a)b"}, ".y: pattern"),
        ({"type": "string", "format": "phone"}, ".y: format"),
        ({"type": "array", "items": {"type": "string", "pattern": "a(?!b)"}}, ".y.items: pattern"),
        ({"type": "array", "uniqueItems": True}, ".y: uniqueItems"),
        ({"type": "object", "if": {}, "then": {"required": ["a"]}}, ".y: then"),
        ({"oneOf": [{"type": "object"}, {"type": "object", "required": ["a"]}]}, ".y: oneOf"),
        ({"$ref": "https://example.org/x"}, ".y: $ref"),
        ({"$ref": "#/$defs/missing"}, ".y: $ref"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, ".y: minimum"),
        ({"type": "thing"}, ".y: its parts"),
        ({"not": {"type": "string"}}, ".y: not"),
    ],
)
def test_one_unsupported_keyword_loosens_its_field_alone(schema, warning):
    rules = TurnRules(
        reasoning=False,
        parallel_calls=False,
        tool_choice="required",
        calls=(CallRule(recipient="functions.f", parameters=field(schema)),),
    )
    lines = turn_grammar(rules).warnings
    assert any(line.startswith(f"functions.f.parameters{warning}") for line in lines), lines
    assert all(line.startswith("functions.f.parameters.y") for line in lines)
    for seed in range(6):
        said = messages("nano", rules, seed)
        if said is not None:
            value = json.loads(said[-1].text)
            assert isinstance(value["z"], int)
            assert set(value) == {"y", "z"}


def test_a_fault_in_a_shared_definition_is_named_there():
    schema = {
        **field({"$ref": "#/$defs/code"}),
        "$defs": {"code": {"type": "string", "pattern": r"(?<!x)\d"}},
    }
    (line,) = turn_grammar(TurnRules(answer=JsonSchema(schema))).warnings
    assert line == (
        r'answer.$defs.code: pattern "(?<!x)\\d" is not supported; any string is allowed'
    )


def test_strict_closes_objects_but_those_that_are_joined():
    part = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    other = {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}
    for schema, is_held in [
        ({"allOf": [part, other]}, True),
        ({"allOf": [{"$ref": "#/$defs/p"}, other], "$defs": {"p": part}}, True),
        ({**part, "anyOf": [other]}, True),
        ({"anyOf": [part]}, False),
        (part, False),
    ]:
        text = '{"a":1,"b":2}'
        assert takes(TurnRules(reasoning=False, answer=JsonSchema(schema)), text) is is_held
        assert takes(TurnRules(reasoning=False, answer=JsonSchema(schema, strict=False)), text)


def takes(rules: TurnRules, answer: str) -> bool:
    tokenizer = walker("nano").tokenizer
    constraint = walker("nano").compiler.constraint(turn_grammar(rules))
    ids = Script.ids(tokenizer, f"<|channel|>final<|message|>{answer}<|return|>")
    try:
        for token in ids:
            constraint.accept(token)
    except EngineError:
        return False
    return constraint.is_done


@pytest.mark.parametrize(
    "text",
    [
        "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{}<|call|>",
        "<|channel|>final<|message|><|return|>",
        "<|channel|>commentary<|message|>Hi<|return|>",
        "<|channel|>analysis<|message|>Hm<|return|>",
        "<|channel|>final<|message|>Hi<|end|>",
        "<|channel|>finally<|message|>Hi<|return|>",
        " to=functions.f<|channel|>commentary<|message|>{}<|call|>",
        "<|message|>Hi<|return|>",
        "<|channel|>final<|message|>Hi<|channel|>",
        "<|channel|>final<|message|>a<|reserved_200013|>",
    ],
)
def test_malformed_headers_cannot_be_drawn(text):
    walk = walker("o200k")
    constraint = walk.compiler.constraint(turn_grammar(TurnRules(calls=CALLS)))
    with pytest.raises(EngineError, match="does not allow"):
        for token in Script.ids(walk.tokenizer, text):
            constraint.accept(token)


@pytest.mark.parametrize("name", ["nano", "o200k"])
@pytest.mark.parametrize(
    "text",
    [
        "<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>a<|return|>",
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.weather"
        '<|channel|>commentary <|constrain|>json<|message|>{"city": "é", "days": 3}<|call|>',
        "<|channel|>analysis to=python code<|message|>print('<|end')<|call|>",
        '<|channel|>commentary to=browser.open code<|message|>{"id": 3}<|end|><|start|>assistant'
        "<|channel|>commentary to=python<|message|>1<|call|>",
    ],
)
def test_what_the_model_was_trained_on_can_be_drawn(name, text):
    walk = walker(name)
    constraint = walk.compiler.constraint(turn_grammar(TurnRules(calls=CALLS)))
    for token in Script.ids(walk.tokenizer, text):
        constraint.accept(token)
    assert constraint.is_done


def test_a_constraint_is_its_own_however_many_share_a_grammar():
    walk = walker("nano")
    grammar = turn_grammar(TurnRules(answer=JsonSchema(PERSON)))
    turns = [walk.walk(grammar, random.Random(seed)) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda seed: walk.walk(grammar, random.Random(seed)), range(4)))
    assert again == turns
