"""OpenAI's client in tool loops through both its APIs, with good and malformed harmony; parse."""

from __future__ import annotations

import json

import openai
import pydantic
import pytest
from tests.clients.kit import calls, replaying, says, thinks

SHAPE = {
    "type": "object",
    "properties": {"bread": {"type": "string"}},
    "required": ["bread"],
    "additionalProperties": False,
}
LOOK_UP = {"name": "look_up", "description": "Salt of a bread.", "parameters": SHAPE}
ASKED = {"role": "user", "content": "How much salt is in a rye bread?"}
ARGUMENTS = '{"bread": "rye"}'
GOOD = calls("look_up", bread="rye")
SLIPS = {
    "good": GOOD,
    "role first": f" to=functions.look_up<|channel|>commentary json<|message|>{ARGUMENTS}<|call|>",
    "channel twice": "<|channel|>commentary to=functions.look_up<|channel|>commentary<|message|>"
    f"{ARGUMENTS}<|call|>",
    "on analysis": f"<|channel|>analysis to=functions.look_up code<|message|>{ARGUMENTS}<|call|>",
    "no namespace": f"<|channel|>commentary to=look_up json<|message|>{ARGUMENTS}<|call|>",
    "ended, not called": GOOD.replace("<|call|>", "<|end|>"),
}
ANSWER = thinks("Twelve.") + says("12 g.")
RESULT = "12 g of salt"


class Recipe(pydantic.BaseModel):
    bread: str
    salt_g: int


@pytest.fixture(params=SLIPS.values(), ids=SLIPS.keys())
def server(request, tmp_path):
    """A client, and the chat behind its server: it calls a tool and then answers."""
    script = (thinks("I look it up.") + request.param, ANSWER)
    with (
        replaying(tmp_path, *script) as (url, chat),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client, chat


def check_last_prompt(chat):
    shown = chat.prompt_text()
    assert "<|channel|>analysis<|message|>I look it up.<|end|>" in shown
    assert "<|start|>functions.look_up to=assistant<|channel|>commentary<|message|>" in shown
    assert RESULT in shown


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
def test_a_tool_loop_through_responses(server, is_streamed):
    client, chat = server

    def ask(given):
        body = {"model": "scripted", "input": given, "tools": [{"type": "function", **LOOK_UP}]}
        body |= {"store": False, "include": ["reasoning.encrypted_content"]}
        if not is_streamed:
            return client.responses.create(**body)
        with client.responses.stream(**body) as stream:
            return stream.get_final_response() if list(stream) else None

    first = ask([ASKED])
    reasoning, call = first.output
    assert reasoning.content[0].text == "I look it up."
    assert (call.type, call.name) == ("function_call", "look_up")
    assert json.loads(call.arguments) == {"bread": "rye"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
    last = ask([ASKED, *(item.to_dict() for item in first.output), result])
    assert [item.type for item in last.output] == ["reasoning", "message"]
    assert last.output_text == "12 g."
    check_last_prompt(chat)


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
def test_a_tool_loop_through_chat(server, is_streamed):
    client, chat = server

    def ask(messages):
        body = {"model": "scripted", "messages": messages}
        body["tools"] = [{"type": "function", "function": LOOK_UP}]
        if not is_streamed:
            return client.chat.completions.create(**body).choices[0]
        with client.chat.completions.stream(**body) as stream:
            for _ in stream:
                pass
            return stream.get_final_completion().choices[0]

    first = ask([ASKED])
    (call,) = first.message.tool_calls
    assert first.finish_reason == "tool_calls"
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "look_up",
        {"bread": "rye"},
    )
    assert first.message.reasoning == first.message.reasoning_content == "I look it up."
    # The reasoning is not sent back: the server knows it by the call's id.
    said = {"role": "assistant", "tool_calls": [call.to_dict()]}
    last = ask([ASKED, said, {"role": "tool", "tool_call_id": call.id, "content": RESULT}])
    assert (last.message.content, last.finish_reason) == ("12 g.", "stop")
    check_last_prompt(chat)


def test_parse_through_both(tmp_path):
    script = thinks("As asked.") + says('{"bread": "rye", "salt_g": 12}')
    with (
        replaying(tmp_path, script, script) as (url, chat),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        body = {"model": "scripted"}
        found = client.responses.parse(**body, input="A recipe", text_format=Recipe)
        typed = client.chat.completions.parse(**body, messages=[ASKED], response_format=Recipe)
    recipe = Recipe(bread="rye", salt_g=12)
    assert found.output_parsed == typed.choices[0].message.parsed == recipe
    assert all(options.rules.answer is not None for _, options in chat.asked)
