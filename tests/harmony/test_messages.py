from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from tests.harmony.conversations import conversations, examples

from aperto.errors import UsageError
from aperto.harmony import (
    Conversation,
    DeveloperContent,
    Effort,
    Message,
    ResponseFormat,
    Role,
    SystemContent,
    from_chat,
)
from aperto.harmony.messages import analysis, developer, final, system, user


@examples(100)
@given(conversations())
def test_conversations_survive_json(conversation: Conversation) -> None:
    text = json.dumps(conversation.to_dict())
    assert Conversation.from_dict(json.loads(text)) == conversation


def test_response_formats_and_weights_survive_json() -> None:
    content = DeveloperContent(response_formats=(ResponseFormat("list", {"type": "object"}),))
    conversation = Conversation((developer(content), final("x", weight=0.25)))
    assert Conversation.from_dict(conversation.to_dict()) == conversation


def test_defaults_are_left_out_of_json() -> None:
    assert user("hi").to_dict() == {"role": "user", "content": "hi"}
    assert system(SystemContent()).to_dict() == {"role": "system", "content": {"system": {}}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"messages": [], "model": "x"}, r"keys \['messages', 'model'\]; expected"),
        ({"messages": [{"role": "robot", "content": ""}]}, "role is 'robot'; expected one of sys"),
        ({"messages": [{"content": "x"}]}, "role is None"),
        ({"messages": [{"role": "user"}]}, "content is None; expected text"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "'mood'.*it takes role"),
        ({"messages": [{"role": "user", "content": {"image": {}}}]}, r"keys \['image'\]; expected"),
        (
            {"messages": [{"role": "system", "content": {"system": {"effort": "max"}}}]},
            "effort is 'max'; expected one of low, medium, high",
        ),
        (
            {"messages": [{"role": "developer", "content": {"developer": {"tools": [{}]}}}]},
            "FunctionTool has the fields",
        ),
    ],
)
def test_json_that_is_no_conversation_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Conversation.from_dict(data)


def test_chat_messages_become_a_conversation() -> None:
    content = SystemContent(effort=Effort.LOW)
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello", "reasoning": "A greeting."},
        {"role": "assistant", "content": "Again"},
    ]
    assert from_chat(chat, content).messages == (
        system(content),
        developer("Be kind."),
        user("Hi"),
        analysis("A greeting."),
        final("Hello"),
        final("Again"),
    )
    assert from_chat([]).messages == (system(SystemContent()),)


@pytest.mark.parametrize(
    "message",
    [{"role": "tool", "content": "x"}, {"role": "user", "content": [{"type": "text"}]}, {}],
)
def test_other_chat_messages_are_refused(message: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        from_chat([message])


def test_a_conversation_grows_by_copies() -> None:
    first = Conversation((user("a"),))
    assert len(first.plus(user("b"))) == 2
    assert len(first) == 1
    assert first.messages[0] == Message(Role.USER, "a")
    assert developer("x").text == ""
