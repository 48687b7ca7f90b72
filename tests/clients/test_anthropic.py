"""Anthropic's own client at /v1/messages: tools, thinking, streams, schemas, counting, errors."""

from __future__ import annotations

import anthropic
import pydantic
import pytest
from tests.clients.kit import calls, nano, replaying, says, thinks

LOOK_UP = {
    "name": "look_up",
    "description": "Salt of a bread.",
    "input_schema": {
        "type": "object",
        "properties": {"bread": {"type": "string", "enum": ["rye", "roll"]}},
        "required": ["bread"],
        "additionalProperties": False,
    },
}
THINKING = {"type": "enabled", "budget_tokens": 1024}
ASKED = {"role": "user", "content": "How much salt is in a rye bread?"}
CALL = thinks("I look it up.") + calls("look_up", bread="rye")
SLIP = thinks("I look it up.") + " to=functions.look_up<|channel|>commentary json<|message|>"
SLIP += '{"bread": "rye"}<|call|>'
ENDED = CALL.replace("<|call|>", "<|end|>")
ANSWER = thinks("Twelve.") + says("12 g.")


class Recipe(pydantic.BaseModel):
    bread: str
    salt_g: int


def client_at(url):
    return anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)


def told(client, is_streamed, **body):
    """The message, streamed or not; a stream's text must be that of its message."""
    body = {"model": "scripted", "max_tokens": 2048, **body}
    if not is_streamed:
        return client.messages.create(**body)
    with client.messages.stream(**body) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == "".join(block.text for block in message.content if block.type == "text")
    return message


@pytest.mark.parametrize("call", [CALL, SLIP, ENDED], ids=["good", "malformed", "ended"])
@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("is_sent_back", [True, False], ids=["thinking kept", "thinking lost"])
def test_a_tool_loop(tmp_path, is_streamed, is_sent_back, call):
    with replaying(tmp_path, call, ANSWER) as (url, chat), client_at(url) as client:
        options = {"tools": [LOOK_UP], "thinking": THINKING, "is_streamed": is_streamed}
        first = told(client, messages=[ASKED], **options)
        assert [block.type for block in first.content] == ["thinking", "tool_use"]
        thought, use = first.content
        assert (thought.thinking, use.name, use.input) == (
            "I look it up.",
            "look_up",
            {"bread": "rye"},
        )
        assert first.stop_reason == "tool_use"
        blocks = first.content if is_sent_back else [use]
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "12 g of salt"}
        turn = [{"role": "assistant", "content": blocks}, {"role": "user", "content": [result]}]
        last = told(client, messages=[ASKED, *turn], **options)
        shown = chat.prompt_text()
    assert [block.type for block in last.content] == ["thinking", "text"]
    assert last.content[-1].text == "12 g."
    assert last.stop_reason == "end_turn"
    assert (last.usage.cache_read_input_tokens, last.usage.input_tokens > 0) == (8, True)
    assert "<|channel|>analysis<|message|>I look it up.<|end|>" in shown
    assert "<|start|>functions.look_up to=assistant<|channel|>commentary<|message|>" in shown
    assert "12 g of salt" in shown


def test_a_schema(tmp_path):
    script = says('{"bread": "rye", "salt_g": 12}')
    with replaying(tmp_path, script) as (url, chat), client_at(url) as client:
        message = client.messages.parse(
            model="scripted", max_tokens=500, messages=[ASKED], output_format=Recipe
        )
    assert message.parsed_output == Recipe(bread="rye", salt_g=12)
    assert chat.asked[0][1].rules.answer is not None


def test_instructions_are_counted_and_a_changed_signature_is_refused(tmp_path):
    with replaying(tmp_path, ANSWER) as (url, chat), client_at(url) as client:
        body = {"model": "scripted", "messages": [ASKED], "system": "Be short.", "tools": [LOOK_UP]}
        counted = client.messages.count_tokens(**body)
        first = client.messages.create(**body, thinking=THINKING, max_tokens=2048)
        usage = first.usage
        assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
        assert "Be short." in chat.prompt_text()
        forged = first.content[0].model_copy(update={"signature": first.content[0].signature[:-4]})
        turn = [{"role": "assistant", "content": [forged]}, ASKED]
        with pytest.raises(anthropic.BadRequestError, match="signature"):
            client.messages.create(model="scripted", max_tokens=9, messages=[ASKED, *turn])


def test_nano_is_held_to_a_call_and_errors_have_the_clients_types(tmp_path):
    with nano(tmp_path / "state", api_keys=("secret",)) as url, client_at(url) as client:
        with pytest.raises(anthropic.AuthenticationError):
            client.messages.create(model="nano", max_tokens=9, messages=[ASKED])
        client.api_key = "secret"
        options = {"max_tokens": 400, "extra_body": {"temperature": 0}, "tools": [LOOK_UP]}
        options["tool_choice"] = {"type": "any"}
        for is_streamed in (False, True):
            message = told(client, is_streamed, model="nano", messages=[ASKED], **options)
            uses = [block for block in message.content if block.type == "tool_use"]
            assert message.stop_reason == "tool_use"
            assert {use.input["bread"] for use in uses} <= {"rye", "roll"}
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(model="llama", max_tokens=9, messages=[ASKED])
        long = {"role": "user", "content": "bread " * 9000}
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
            client.messages.create(model="nano", max_tokens=9, messages=[long])
        assert [model.id for model in client.models.list()] == ["nano"]
