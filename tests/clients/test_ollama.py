"""The ollama package at /api: models, chat with a tool and thinking, schemas, streams, errors."""

from __future__ import annotations

import json

import ollama
import pytest
from tests.clients.kit import calls, nano, replaying, says, thinks

CALL = thinks("I look it up.") + calls("look_up", bread="rye")
ANSWER = thinks("Twelve.") + says("12 g.")
ASKED = {"role": "user", "content": "How much salt is in a rye bread?"}
SHAPE = {
    "type": "object",
    "properties": {"rye": {"type": "boolean"}},
    "required": ["rye"],
    "additionalProperties": False,
}


def look_up(bread: str) -> str:
    """Salt of a bread.

    Args:
        bread: its name
    """
    return f"{bread}: 12 g of salt"


def told(client, is_streamed, **options):
    """One message: whole, or put together from a stream."""
    if not is_streamed:
        return client.chat("scripted", **options).message
    whole = ollama.Message(role="assistant", content="", thinking="", tool_calls=[])
    for part in client.chat("scripted", stream=True, **options):
        whole.content += part.message.content or ""
        whole.thinking += part.message.thinking or ""
        whole.tool_calls = [*whole.tool_calls, *(part.message.tool_calls or ())]
    assert part.done
    return whole


@pytest.mark.parametrize("is_streamed", [False, True], ids=["whole", "stream"])
def test_a_tool_loop(tmp_path, is_streamed):
    with replaying(tmp_path, CALL, ANSWER) as (url, chat), ollama.Client(url) as client:
        options = {"tools": [look_up], "think": "high"}
        first = told(client, is_streamed, messages=[ASKED], **options)
        (call,) = first.tool_calls
        assert first.thinking == "I look it up."
        result = look_up(**call.function.arguments)
        done = {"role": "tool", "content": result, "tool_name": call.function.name}
        last = told(client, is_streamed, messages=[ASKED, first, done], **options)
        shown = chat.prompt_text()
    assert (last.content, last.thinking) == ("12 g.", "Twelve.")
    assert [options.effort for _, options in chat.asked] == ["high"] * 2
    assert "<|channel|>analysis<|message|>I look it up.<|end|>" in shown
    assert "<|start|>functions.look_up to=assistant<|channel|>commentary<|message|>" in shown
    assert "rye: 12 g of salt" in shown


def test_models_answers_and_errors_with_nano(tmp_path):
    with nano(tmp_path / "state") as url, ollama.Client(url) as client:
        assert [model.model for model in client.list().models] == ["nano"]
        assert "tools" in client.show("nano").capabilities
        assert client.pull("nano").status == "success"
        with pytest.raises(ollama.ResponseError) as caught:
            client.pull("llama")
        assert caught.value.status_code == 404
        options = {"seed": 1, "temperature": 0.5, "num_predict": 200}
        ways = [
            client.chat("nano", [ASKED], format=SHAPE, think=think, options=options)
            for think in (True, False)
        ]
        for answer in ways:
            assert isinstance(json.loads(answer.message.content)["rye"], bool)
            assert answer.done_reason == "stop"
            assert answer.eval_count > 0 and answer.eval_duration > 0
        assert not ways[1].message.thinking
        whole = client.generate("nano", "What is 2 + 2?", options=options)
        parts = client.generate("nano", "What is 2 + 2?", options=options, stream=True)
        assert "".join(part.response for part in parts) == whole.response
        raw = client.generate("nano", "Bread is", raw=True, options={**options, "num_predict": 5})
        assert 0 < raw.eval_count <= 5
        assert [model.model for model in client.ps().models] == ["nano"]
