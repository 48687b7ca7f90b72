"""The moderation door: the server's judge and policy, in the shape that clients know."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.server.kit import (
    ANSWER,
    CHAT,
    FINAL,
    USER,
    ask,
    chunks_of,
    client_of,
    scripted,
    services_of,
)

from aperto.errors import UsageError
from aperto.moderation import default_policy

PATH = "/v1/moderations"
BREAD = (
    'name = "bakery"\nintroduction = "Check."\n'
    '[[categories]]\nname = "bread"\nviolates = "Recipes."\nallowed = "Talk."\n'
)


def says(*names: str) -> str:
    return f"{FINAL}{json.dumps({'violations': names, 'reason': 'because'})}<|return|>"


def post(
    text: str, folder: Path, body: dict[str, Any], path: str = PATH, **settings: Any
) -> httpx.Response:
    async def run() -> httpx.Response:
        chosen = {"moderation_model": "scripted", **settings}
        async with client_of(services_of(scripted(text, 16384), folder, **chosen)) as client:
            return await client.post(path, json=body)

    return asyncio.run(run())


def test_a_text_is_judged_by_the_default_policy(tmp_path: Path):
    found = post(says("hate", "violence"), tmp_path, {"input": "some text"}).json()
    (result,) = found["results"]
    assert result["flagged"] and result["rationale"] == "because"
    assert [name for name, hit in result["categories"].items() if hit] == ["hate", "violence"]
    assert result["category_scores"]["hate"] == 1.0 and result["category_scores"]["sexual"] == 0.0
    assert found["model"] == "scripted" and found["policy_sha256"] == default_policy().sha256


def test_every_input_has_its_result(tmp_path: Path):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    for given in (["one", "two"], parts):
        found = post(says(), tmp_path, {"input": given}).json()
        assert [result["flagged"] for result in found["results"]] == [False, False]


def test_a_company_brings_its_own_policy(tmp_path: Path):
    file = tmp_path / "policy.toml"
    file.write_text(BREAD)
    found = post(says("bread"), tmp_path, {"input": "x"}, moderation_policy=file).json()
    assert found["policy"] == "bakery"
    assert found["results"][0]["categories"] == {"bread": True}


def test_a_damaged_policy_stops_the_server_at_its_start(tmp_path: Path):
    file = tmp_path / "policy.toml"
    file.write_text('name = "bakery"')
    with pytest.raises(UsageError, match="expected a policy"):
        post(says(), tmp_path, {"input": "x"}, moderation_policy=file)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"input": "x", "model": "omni-moderation-latest"}, 200),
        ({"input": "x", "model": "scripted"}, 200),
        ({"input": "x", "model": "other"}, 404),
        ({"input": []}, 400),
        ({"input": [{"type": "image_url"}]}, 400),
        ({"input": ["x"] * 200}, 400),
        ({}, 400),
    ],
)
def test_what_may_be_asked(tmp_path: Path, body: dict[str, Any], status: int):
    assert post(says(), tmp_path, body).status_code == status


MODERATION = {"model": "omni-moderation-latest"}


def chat(text: str, folder: Path, **fields: Any) -> httpx.Response:
    body = {"messages": USER, "moderation": MODERATION, **fields}
    return post(text, folder, body, CHAT)


def test_a_chat_answer_brings_its_verdicts(tmp_path: Path):
    response = chat(says("hate"), tmp_path, n=2)
    found = openai.types.chat.ChatCompletion.model_validate(response.json()).moderation
    assert found is not None and found.input.type == found.output.type == "moderation_results"
    assert found.input.results[0].categories["hate"] and len(found.output.results) == 2


def test_a_stream_ends_with_its_verdicts(tmp_path: Path):
    response = chat(says(), tmp_path, stream=True, stream_options={"include_usage": True})
    chunks = chunks_of(response)
    read = openai.types.chat.ChatCompletionChunk.model_validate(chunks[-2])
    assert read.choices == [] and read.moderation is not None
    assert not read.moderation.input.results[0].flagged
    assert chunks[-1]["usage"]


def test_a_response_brings_its_verdicts(tmp_path: Path):
    body = {"input": "Hello", "moderation": MODERATION}
    response = post(says("hate"), tmp_path, body, "/v1/responses")
    found = openai.types.responses.Response.model_validate(response.json()).moderation
    assert found is not None and found.input.type == "moderation_result"
    assert found.input.flagged and found.output.flagged


def test_a_streamed_response_ends_with_its_verdicts(tmp_path: Path):
    body = {"input": "Hello", "moderation": MODERATION, "stream": True}
    response = post(says("hate"), tmp_path, body, "/v1/responses")
    events = [
        json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")
    ]
    (end,) = [event for event in events if event["type"] == "response.completed"]
    assert end["response"]["moderation"]["output"]["categories"]["hate"]


def test_a_verdict_that_cannot_be_read_is_no_pass(tmp_path: Path):
    file = tmp_path / "policy.toml"
    file.write_text(BREAD)
    judge = f"{FINAL}It is fine.<|return|>"
    with_rules = post(judge, tmp_path, {"input": "x"}, moderation_policy=file)
    assert with_rules.status_code == 500
    body = chat(judge, tmp_path).json()["moderation"]
    for side in ("input", "output"):
        (verdict,) = body[side]["results"]
        assert verdict["type"] == "error" and "flagged" not in verdict


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"model": "other"}, 404),
        ({"model": "scripted", "policy": {"input": {"mode": "block"}}}, 400),
        ({"model": "scripted", "policy": {"output": {"mode": "score"}}}, 200),
    ],
)
def test_what_is_not_served_is_refused_before_the_answer(tmp_path: Path, asked, status: int):
    assert chat(says(), tmp_path, moderation=asked).status_code == status
    body = {"input": "Hello", "moderation": asked}
    assert post(says(), tmp_path, body, "/v1/responses").status_code == status


def test_moderation_without_a_judge_is_refused_before_the_answer(tmp_path: Path):
    response = ask(ANSWER, tmp_path, {"messages": USER, "moderation": MODERATION})
    assert response.status_code == 404 and "--moderation-model" in response.text


def test_without_a_judge_the_door_says_how_to_get_one(tmp_path: Path):
    response = post(ANSWER, tmp_path, {"input": "x"}, moderation_model=None)
    assert response.status_code == 404
    assert "--moderation-model" in response.json()["error"]["message"]


def test_openai_s_client_reads_it(tmp_path: Path):
    async def run() -> openai.types.ModerationCreateResponse:
        settings = {"moderation_model": "scripted"}
        services = services_of(scripted(says("harassment"), 16384), tmp_path, **settings)
        async with client_of(services) as http:
            client = openai.AsyncOpenAI(
                api_key="none", base_url="http://127.0.0.1/v1", http_client=http
            )
            return await client.moderations.create(input="some text")

    found = asyncio.run(run())
    assert found.results[0].flagged and found.results[0].categories.harassment
