"""The openai package against a real server on this machine, with nano."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion
from pydantic import BaseModel
from tests.server.kit import listening

from aperto.server import ServerSettings, Services

QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    settings = ServerSettings(
        models=("nano",), context_tokens=4096, state_dir=tmp_path_factory.mktemp("state")
    )
    with listening(Services.create(settings)) as address:
        yield address


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client, **fields):
    fields = {"model": "nano", "messages": QUESTION, "seed": 1, "max_tokens": 300, **fields}
    raw = client.chat.completions.with_raw_response.create(**fields)
    ChatCompletion.model_validate(json.loads(raw.text))
    return raw.parse()


def test_an_answer_repeats_itself_and_its_stream(client):
    answer = ask(client)
    message = answer.choices[0].message
    assert message.content and message.reasoning == message.reasoning_content
    again = ask(client)
    assert again.choices[0].message == message
    assert again.usage.prompt_tokens_details.cached_tokens > 0
    assert again.system_fingerprint == answer.system_fingerprint
    fields = {"model": "nano", "messages": QUESTION, "seed": 1, "max_tokens": 300}
    with client.chat.completions.stream(**fields) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == message.content


@pytest.mark.parametrize("effort", ["none", "low"])
def test_a_required_call_with_and_without_reasoning(client, effort):
    answer = ask(client, tools=[TOOL], tool_choice="required", reasoning_effort=effort)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    for call in choice.message.tool_calls:
        assert call.function.name == "get_weather"
        assert list(json.loads(call.function.arguments)) == ["city"]
    if effort == "none":
        assert choice.message.reasoning is None
        assert answer.usage.completion_tokens_details.reasoning_tokens == 0


class Sum(BaseModel):
    carry: bool
    digit: int


def test_parse_gives_an_object(client):
    answer = client.chat.completions.parse(
        model="nano",
        messages=QUESTION,
        response_format=Sum,
        seed=2,
        reasoning_effort="none",
        logit_bias={},
    )
    assert isinstance(answer.choices[0].message.parsed, Sum)


def test_reasoning_keeps_to_its_budget(client):
    answer = ask(client, extra_body={"reasoning": {"effort": "high", "max_tokens": 3}})
    assert answer.usage.completion_tokens_details.reasoning_tokens <= 3 + 1  # and its <|end|>
    assert answer.choices[0].message.content


def test_errors_have_the_types_that_the_client_knows(client):
    with pytest.raises(openai.NotFoundError) as missing:
        ask(client, model="gpt-4")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(client, messages=[{"role": "user", "content": "word " * 5000}])
    assert wrong.value.code == "context_length_exceeded"


def test_models(client, url):
    (model,) = client.models.list().data
    assert model.id == "nano" and model.context_window == 4096
    raw = httpx.get(f"{url}/v1/models/nano").json()
    assert Model.model_validate(raw).id == "nano"
    (entry,) = httpx.get(f"{url}/v1/models").json()["models"]
    assert entry["slug"] == "nano" and entry["context_window"] == 4096
    # Codex 0.169 reads no catalogue in which an entry lacks one of these.
    assert entry.keys() >= {
        "base_instructions",
        "experimental_supported_tools",
        "shell_type",
        "support_verbosity",
        "supported_in_api",
        "truncation_policy",
        "visibility",
    }


def complete(client, **fields):
    raw = client.completions.with_raw_response.create(model="nano", **fields)
    body = json.loads(raw.text)
    for choice in body["choices"]:
        if choice["logprobs"]:  # the first of an echoed prompt is null, which the model forbids
            choice["logprobs"] = None
    Completion.model_validate(body)
    return json.loads(raw.text)["choices"]


def test_echoed_logprobs_are_those_with_which_the_text_was_drawn(client, url):
    prompt = httpx.post(f"{url}/tokenize", json={"prompt": "One two three"}).json()["tokens"]
    fields = {"max_tokens": 6, "temperature": 0, "logprobs": 1}
    (drawn,) = complete(client, prompt=prompt, extra_body={"return_token_ids": True}, **fields)
    ids = prompt + drawn["token_ids"]
    (echoed,) = complete(client, prompt=ids, max_tokens=0, echo=True, logprobs=1)
    count = len(drawn["token_ids"])
    # Bit for bit: read at once or drawn one by one, a token has the same logprob.
    assert echoed["logprobs"]["token_logprobs"][-count:] == drawn["logprobs"]["token_logprobs"]
    assert echoed["logprobs"]["token_logprobs"][0] is None
    assert echoed["logprobs"]["top_logprobs"][0] is None
    greedy = zip(
        echoed["logprobs"]["token_logprobs"][-count:],
        echoed["logprobs"]["top_logprobs"][-count:],
        strict=True,
    )
    assert all(logprob == max(top.values()) for logprob, top in greedy)


def test_several_prompts_with_echo_as_harnesses_send_them(client):
    choices = complete(
        client, prompt=["Hello there", "One two three"], max_tokens=1, echo=True, logprobs=1, seed=0
    )
    assert [choice["index"] for choice in choices] == [0, 1]
    for choice, prompt in zip(choices, ["Hello there", "One two three"], strict=True):
        assert choice["text"].startswith(prompt)
        found = choice["logprobs"]
        pieces = zip(found["tokens"], found["text_offset"], strict=True)
        for token, offset in pieces:
            assert choice["text"][offset : offset + len(token)] == token


def test_streamed_completions_add_up(client):
    stream = client.completions.create(
        model="nano",
        prompt=["a", "b"],
        n=2,
        seed=3,
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts, usage = ["", "", "", ""], None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    whole = complete(client, prompt=["a", "b"], n=2, seed=3, max_tokens=5)
    assert [choice["text"] for choice in whole] == texts
    assert usage is not None and usage.prompt_tokens == 2


def test_tokens_go_round(url):
    text = "Grüße, <|end|> 東京"
    body = {"prompt": text, "return_token_strs": True}
    found = httpx.post(f"{url}/tokenize", json=body).json()
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    back = httpx.post(f"{url}/detokenize", json={"tokens": found["tokens"]})
    assert back.json() == {"prompt": text}
    assert httpx.post(f"{url}/tokenize", json={}).status_code == 400


def test_special_tokens_are_named_and_have_their_ids_alone(url):
    info = httpx.get(f"{url}/tokenizer_info").json()
    assert info["eos_token"] == "<|return|>" and info["model_max_length"] == 4096
    for kind in ("bos_token", "eos_token", "pad_token"):
        name = info[kind]
        (token,) = httpx.post(f"{url}/tokenize", json={"prompt": name}).json()["tokens"]
        assert token == info["special_tokens"][name]
        ids = httpx.post(f"{url}/tokenize", json={"prompt": f"a {name}"}).json()["tokens"]
        assert token not in ids


def test_health_and_metrics(client, url):
    ask(client, max_tokens=1)
    health = httpx.get(f"{url}/health").json()
    assert health["status"] == "ok" and health["loaded"] == ["nano"]
    text = httpx.get(f"{url}/metrics").text
    assert 'aperto_answers_total{finish_reason="length",model="nano"}' in text
    assert 'aperto_requests_total{path="/v1/chat/completions",status="200"}' in text
    assert 'aperto_cache_pages{group="0",model="nano",state="held"} 0.0' in text
    assert 'aperto_prompt_cache_tokens_total{model="nano",way="fetched"} 0.0' in text
