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
    file.write_text(
        'name = "bakery"\nintroduction = "Check."\n'
        '[[categories]]\nname = "bread"\nviolates = "Recipes."\nallowed = "Talk."\n'
    )
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


def chat(text: str, folder: Path, **fields: Any) -> httpx.Response:
    return post(text, folder, {"messages": USER, "moderation": True, **fields}, CHAT)


def test_a_chat_answer_brings_its_verdicts(tmp_path: Path):
    body = chat(says("hate"), tmp_path, n=2).json()
    block = body["moderation"]
    assert block["model"] == "scripted" and block["policy"] == "default"
    assert block["input"]["categories"]["hate"] and len(block["output"]) == 2


def test_a_stream_ends_with_its_verdicts(tmp_path: Path):
    response = chat(says(), tmp_path, stream=True, stream_options={"include_usage": True})
    chunks = chunks_of(response)
    assert chunks[-2]["choices"] == [] and not chunks[-2]["moderation"]["input"]["flagged"]
    assert chunks[-1]["usage"]


def test_a_verdict_that_cannot_be_read_is_no_pass(tmp_path: Path):
    assert chat(ANSWER, tmp_path).status_code == 500


def test_moderation_without_a_judge_is_refused_before_the_answer(tmp_path: Path):
    response = ask(ANSWER, tmp_path, {"messages": USER, "moderation": True})
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
