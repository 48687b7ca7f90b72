"""What doors share when they read requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.server.kit import BYTES

from aperto.harmony import (
    ANALYSIS,
    COMMENTARY,
    FINAL,
    Effort,
    FunctionTool,
    JsonObject,
    JsonSchema,
    Lark,
    Regex,
    Role,
    render,
)
from aperto.server.chat_messages import ConversationBuilder
from aperto.server.convert import (
    ClientFunction,
    answer_format_from,
    choice_from,
    effort_from,
    stop_from,
    tools_to_rules,
    unique_functions,
)
from aperto.server.errors import ApiError
from aperto.server.recall import Recall
from aperto.server.wire_chat import ChatMessage

ADD = ClientFunction(FunctionTool("add", "", {"type": "object"}))
SUB = ClientFunction(FunctionTool("sub"), strict=True)
NAMED = {"type": "function", "function": {"name": "add"}}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ("auto", None)),
        ("auto", ("auto", None)),
        ("none", ("none", None)),
        ("required", ("required", None)),
        ("any", ("required", None)),
        (NAMED, ("required", ("functions.add",))),
        ({"type": "function", "name": "sub"}, ("required", ("functions.sub",))),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
            ("auto", ("functions.add",)),
        ),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [NAMED, NAMED]},
            ("required", ("functions.add",)),
        ),
    ],
)
def test_choices_of_tools(value, expected):
    warnings = []
    assert choice_from(value, ["add", "sub"], warnings) == expected
    assert warnings == []


def test_rules_of_a_turn_with_functions():
    warnings = []
    rules = tools_to_rules([ADD, SUB], parallel_calls=False, reasoning=False, warnings=warnings)
    assert [rule.recipient for rule in rules.calls] == ["functions.add", "functions.sub"]
    assert [rule.strict for rule in rules.calls] == [False, True]
    assert rules.calls[1].parameters == {"type": "object"}
    assert not rules.parallel_calls and not rules.reasoning
    assert unique_functions([ADD, SUB, ADD], warnings) == (ADD, SUB) and len(warnings) == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, JsonObject()),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, JsonSchema({}, strict=False)),
        ({"type": "json_schema", "schema": {}, "strict": True}, JsonSchema({}, strict=True)),
        ({"type": "regex", "pattern": "a+"}, Regex("a+")),
        ({"type": "lark", "grammar": 'start: "a"'}, Lark('start: "a"')),
    ],
)
def test_forms_of_the_answer(value, expected):
    assert answer_format_from(value, [])[0] == expected


def test_efforts():
    assert effort_from(None) == (None, True)
    assert effort_from("none") == (Effort.LOW, False)
    assert effort_from("minimal") == (Effort.LOW, True)
    assert effort_from("xhigh") == (Effort.HIGH, True)
    with pytest.raises(ApiError):
        effort_from("")


def test_stops():
    assert stop_from(None) == () and stop_from("a") == ("a",) and stop_from(["a", ""]) == ("a",)


def built(*messages, recall=None, warnings=None):
    builder = ConversationBuilder(recall or Recall(), [] if warnings is None else warnings)
    return builder.build([ChatMessage.model_validate(message) for message in messages])


def test_a_whole_exchange():
    call = {"id": "c1", "function": {"name": "add", "arguments": {"a": 1}}}
    conversation = built(
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "Adding.", "reasoning": "So.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "assistant", "content": "2"},
        {"role": "system", "content": "Be long."},
    )
    found = [(m.role, m.channel, m.recipient, m.text) for m in conversation.messages[2:]]
    assert conversation.messages[1].content.instructions == "Be brief.\n\nBe kind."
    assert found == [
        (Role.USER, None, None, "1+1?"),
        (Role.ASSISTANT, ANALYSIS, None, "So."),
        (Role.ASSISTANT, COMMENTARY, None, "Adding."),
        (Role.ASSISTANT, COMMENTARY, "functions.add", '{"a": 1}'),
        (Role.TOOL, COMMENTARY, "assistant", "2"),
        (Role.ASSISTANT, FINAL, None, "2"),
        (Role.DEVELOPER, None, None, ""),
    ]
    assert conversation.messages[6].name == "functions.add"


names = st.text(st.characters(), max_size=30)


@given(names, names, st.text(max_size=30))
def test_names_and_texts_of_clients_never_become_special_tokens(name, tool, text):
    call = {"id": "c", "function": {"name": name, "arguments": text}}
    conversation = built(
        {"role": "user", "content": text},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": text},
        {"role": "tool", "name": tool, "content": text},
    )
    plain = built(
        {"role": "user", "content": ""},
        {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "x"}}]},
        {"role": "tool", "tool_call_id": "c", "content": ""},
        {"role": "tool", "name": "x", "content": ""},
    )

    def specials(turn):
        return [i for i in render(turn, BYTES) if BYTES.is_special(i)]

    assert specials(conversation) == specials(plain)
    assert all(" " not in (m.name or "") + (m.recipient or "") for m in conversation)


def test_recall_forgets_the_least_recently_used():
    recall = Recall(max_entries=2)
    for call_id in ("a", "b"):
        recall.remember(call_id, call_id.upper())
    assert recall.recall("a") == "A"
    recall.remember("c", "C")
    recall.remember("d", "")
    assert [recall.recall(i) for i in "abcd"] == ["A", None, "C", None] and len(recall) == 2
