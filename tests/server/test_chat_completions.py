"""The chat door, with a model that says what the test has written."""

from __future__ import annotations

import asyncio
import json
import threading

import httpx
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tests.fakes import FakeModel, Script
from tests.server.kit import (
    ANSWER,
    BYTES,
    CHAT,
    FINAL,
    THINKS,
    USER,
    ask,
    chunks_of,
    client_of,
    listening,
    scripted,
    services_of,
    wait_until,
)

from aperto.config import EngineConfig
from aperto.engine import Engine
from aperto.local_model import LocalModel

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = (
    f"{THINKS}<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    '{"city":"Rome"}<|call|>'
)


def chat(text, folder, **fields):
    return ask(text, folder, {"messages": USER, **fields})


def test_an_answer_with_its_reasoning_under_both_names(tmp_path):
    body = chat(ANSWER, tmp_path).json()
    answer = ChatCompletion.model_validate(body)
    message = body["choices"][0]["message"]
    assert message["content"] == "Yes, seven."
    assert message["reasoning"] == message["reasoning_content"] == "Hm."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    # "Hm." is three bytes, and <|end|> is drawn while the channel is still open.
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 4}
    assert "warnings" not in body


def test_a_stream_adds_up_to_the_same_answer(tmp_path):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = chunks_of(chat(ANSWER, tmp_path, **options))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes, seven."
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "Hm."
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm."
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == chat(ANSWER, tmp_path).json()["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


@pytest.mark.parametrize("fields", [{"include_reasoning": False}, {"reasoning": {"exclude": True}}])
def test_reasoning_is_hidden_when_asked(tmp_path, fields):
    message = chat(ANSWER, tmp_path, **fields).json()["choices"][0]["message"]
    assert message["reasoning"] is None and message["content"] == "Yes, seven."


def test_a_call(tmp_path):
    body = chat(CALL, tmp_path, tools=[WEATHER]).json()
    ChatCompletion.model_validate(body)
    choice = body["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city":"Rome"}'}


def test_a_streamed_call_has_its_name_first_and_then_its_arguments(tmp_path):
    chunks = chunks_of(chat(CALL, tmp_path, tools=[WEATHER], stream=True))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    parts = [p for c in chunks for p in c["choices"][0]["delta"].get("tool_calls", ())]
    assert parts[0]["id"].startswith("call_")
    assert parts[0]["function"] == {"name": "weather", "arguments": ""}
    assert "".join(part["function"]["arguments"] for part in parts) == '{"city":"Rome"}'
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_calls_side_by_side(tmp_path):
    one = CALL.replace("<|call|>", "<|end|><|start|>assistant")
    two = CALL.removeprefix(THINKS).replace("Rome", "Oslo")
    calls = chat(one + two, tmp_path, tools=[WEATHER]).json()["choices"][0]["message"]["tool_calls"]
    assert [call["function"]["arguments"] for call in calls] == [
        '{"city":"Rome"}',
        '{"city":"Oslo"}',
    ]
    assert calls[0]["id"] != calls[1]["id"]


def test_words_before_a_call_are_content(tmp_path):
    preamble = "<|channel|>commentary<|message|>Let me look.<|end|><|start|>assistant"
    call = CALL.removeprefix(THINKS)
    message = chat(preamble + call, tmp_path, tools=[WEATHER]).json()["choices"][0]["message"]
    assert message["content"] == "Let me look." and len(message["tool_calls"]) == 1


def recalled_prompt(tmp_path, **fields):
    """Ids that the model reads after a call whose reasoning the client sent in some way."""

    async def run():
        model = scripted(CALL)
        services = services_of(model, tmp_path)
        async with client_of(services) as client:
            first = (await client.post(CHAT, json={"messages": USER, "tools": [WEATHER]})).json()
            call = first["choices"][0]["message"]["tool_calls"][0]
            asked = {"role": "assistant", "tool_calls": [call], **fields}
            result = {"role": "tool", "tool_call_id": call["id"], "content": "Sun"}
            body = {"messages": [*USER, asked, result], "tools": [WEATHER]}
            reply = await client.post("/tokenize", json=body)
            return BYTES.decode(reply.json()["tokens"])

    return asyncio.run(run())


def test_reasoning_that_a_client_dropped_is_recalled_by_the_id_of_its_call(tmp_path):
    text = recalled_prompt(tmp_path)
    assert "<|channel|>analysis<|message|>Hm.<|end|>" in text
    assert text == recalled_prompt(tmp_path, reasoning="Hm.")
    assert "functions.weather to=assistant<|channel|>commentary<|message|>Sun<|end|>" in text


def test_logprobs_are_those_of_the_content(tmp_path):
    body = chat(ANSWER, tmp_path, logprobs=True, top_logprobs=2).json()
    content = body["choices"][0]["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == "Yes, seven."
    assert bytes(b for entry in content for b in entry["bytes"]) == b"Yes, seven."
    assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] < 0 for entry in content)


def test_streamed_logprobs_fit_the_text_beside_them(tmp_path):
    for chunk in chunks_of(chat(ANSWER, tmp_path, logprobs=True, stream=True, stop="even")):
        choice = chunk["choices"][0]
        if "content" in choice["delta"] and choice["delta"]["content"]:
            tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
            assert "".join(tokens) == choice["delta"]["content"]


def test_choices_take_seeds_that_follow(tmp_path):
    body = chat(ANSWER, tmp_path, n=3, seed=7).json()
    assert [choice["seed"] for choice in body["choices"]] == [7, 8, 9]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    one = chat(ANSWER, tmp_path).json()["usage"]
    assert body["usage"]["prompt_tokens"] == one["prompt_tokens"]
    assert body["usage"]["completion_tokens"] == 3 * one["completion_tokens"]


def test_a_stop_string_ends_the_answer(tmp_path):
    choice = chat(ANSWER, tmp_path, stop=["seven", ""]).json()["choices"][0]
    assert choice["message"]["content"] == "Yes, " and choice["finish_reason"] == "stop"


def test_the_limit_of_tokens_is_said(tmp_path):
    choice = chat(ANSWER, tmp_path, max_completion_tokens=8).json()["choices"][0]
    assert choice["finish_reason"] == "length"


def test_more_tokens_than_there_is_room_for_are_lowered_with_a_warning(tmp_path):
    body = chat(ANSWER, tmp_path, max_tokens=100000).json()
    assert body["choices"][0]["message"]["content"] == "Yes, seven."
    assert "max_tokens: 100000 was lowered to " in body["warnings"][0]


def test_a_prompt_that_does_not_fit_says_so_with_the_numbers(tmp_path):
    for stream in (False, True):
        long = [{"role": "user", "content": "x" * 5000}]
        response = ask(ANSWER, tmp_path, {"messages": long, "stream": stream})
        error = response.json()["error"]
        assert response.status_code == 400
        assert error["code"] == "context_length_exceeded" and "4096" in error["message"]


def test_what_is_not_supported_is_skipped_with_a_warning(tmp_path):
    body = chat(
        ANSWER,
        tmp_path,
        verbosity="low",
        user="me",
        tools=[{"type": "web_search"}, {"type": "custom", "custom": {"name": "x"}}],
        tool_choice="required",
        response_format={"type": "poem"},
    ).json()
    assert body["choices"][0]["message"]["content"] == "Yes, seven."
    assert [line.split(":")[0] for line in body["warnings"]] == [
        "verbosity",
        "tools.0",
        "tools.1",
        "response_format",
        "tool_choice",
    ]


def test_an_image_becomes_an_honest_note(tmp_path):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    parts = [{"type": "text", "text": "What is this?"}, image]
    body = ask(ANSWER, tmp_path, {"messages": [{"role": "user", "content": parts}]}).json()
    assert body["choices"][0]["message"]["content"] == "Yes, seven."
    assert "cannot see" in body["warnings"][0]


def test_json_is_not_spoiled_by_words_before_it(tmp_path):
    words = f"{THINKS}{FINAL}" + '{"a":1}<|return|>'
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    body = chat(words, tmp_path, response_format=form).json()
    assert body["choices"][0]["message"]["content"] == '{"a":1}'


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role"),
        ({"tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"response_format": {"type": "json_schema"}}, "response_format.schema"),
        ({"temperature": -1}, None),
        ({"logit_bias": {"x": 1}}, None),
        ({"logit_bias": {"99999999999999999999": 1}}, None),
        ({"top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_what_cannot_be_understood_is_a_400(tmp_path, fields, param):
    response = chat(ANSWER, tmp_path, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error" and error["param"] == param


def test_unknown_models_and_adapters(tmp_path):
    assert chat(ANSWER, tmp_path, model="gpt-oss:20b").json()["model"] == "scripted"
    response = chat(ANSWER, tmp_path, model="other")
    assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"
    response = chat(ANSWER, tmp_path, model="scripted:law")
    assert response.status_code == 404 and "no adapter 'law'" in response.json()["error"]["message"]


def held_model(text):
    """A model that computes only what the test permits."""
    core = FakeModel(vocab_size=BYTES.vocab_size, max_context=4096)
    core.gate = threading.Semaphore(0)
    engine = Engine(core, EngineConfig(context_tokens=4096), sampler=Script(BYTES, text))
    return LocalModel("held", engine, BYTES), core.gate


def test_a_long_prefill_sends_data_that_clients_count(tmp_path):
    model, gate = held_model(ANSWER)
    services = services_of(model, tmp_path, heartbeat_s=0.05)
    body = {"messages": USER, "stream": True}
    beats = []
    with listening(services) as url, httpx.stream("POST", url + CHAT, json=body) as response:
        for line in response.iter_lines():
            if '"prefill"' in line:
                beats.append(json.loads(line.removeprefix("data: ")))
            if len(beats) == 3:
                gate.release(100000)
    assert len(beats) >= 3 and line == "" and model.engine.stats().num_running == 0
    for chunk in beats:
        ChatCompletionChunk.model_validate(chunk)
        assert chunk["choices"][0]["delta"] == {}
        assert chunk["prefill"]["done_tokens"] <= chunk["prefill"]["total_tokens"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("permits", [0, 3])
def test_a_client_that_goes_away_frees_its_pages(tmp_path, stream, permits):
    model, gate = held_model(FINAL + "on and on " * 300)
    services = services_of(model, tmp_path)
    body = {"messages": USER, "stream": stream}
    with listening(services) as url, httpx.Client(base_url=url) as client:
        if permits:
            gate.release(permits)
        with pytest.raises(httpx.ReadTimeout):
            client.post(CHAT, json=body, timeout=0.5)
        client.close()
        gate.release(1)  # the step under way ends; no other may follow
        wait_until(lambda: sum(model.engine.stats().pages_held) == 0)
        stats = model.engine.stats()
        assert stats.num_running == stats.num_waiting == 0
        gate.release(100000)


def test_an_error_in_the_middle_of_a_stream_is_an_error_event(tmp_path):
    model, gate = held_model(ANSWER)
    services = services_of(model, tmp_path, heartbeat_s=0.05)
    body = {"messages": USER, "stream": True}
    with listening(services) as url, httpx.stream("POST", url + CHAT, json=body) as response:
        lines = response.iter_lines()
        assert response.status_code == 200 and '"role"' in next(lines)
        closing = threading.Thread(target=model.engine.close)
        closing.start()
        gate.release(1)
        rest = [line.removeprefix("data: ") for line in lines if line]
        closing.join()
    assert rest[-1] == "[DONE]"
    assert json.loads(rest[-2])["error"]["code"] == "server_shutting_down"


def test_too_many_requests_get_429_and_a_time_to_wait(tmp_path):
    core = FakeModel(vocab_size=BYTES.vocab_size, max_context=4096)
    core.gate = threading.Semaphore(0)
    config = EngineConfig(context_tokens=4096, max_sequences=1, max_waiting=1)
    model = LocalModel("held", Engine(core, config, sampler=Script(BYTES, ANSWER)), BYTES)

    async def run():
        async with client_of(services_of(model, tmp_path)) as client:
            asks = [client.post(CHAT, json={"messages": USER}) for _ in range(6)]
            waiting = asyncio.gather(*asks)
            await asyncio.sleep(0.3)
            core.gate.release(100000)
            return await waiting

    responses = asyncio.run(run())
    statuses = sorted(response.status_code for response in responses)
    assert statuses[0] == 200 and statuses[-1] == 429
    refused = next(response for response in responses if response.status_code == 429)
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json()["error"]["type"] == "rate_limit_error"
