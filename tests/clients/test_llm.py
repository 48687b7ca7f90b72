"""The `llm` command: models, chat and Responses, a schema, a tool, reasoning."""

from __future__ import annotations

import json

import pytest
from tests.clients.environments import client_env
from tests.clients.kit import calls, nano, offline, replaying, run, says, thinks

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

FUNCTIONS = 'def look_up(bread: str) -> str:\n    "Salt of a bread."\n    return "12 g of salt"\n'
APIS = [pytest.param([], id="chat"), pytest.param(["--responses"], id="responses")]


@pytest.fixture(scope="module")
def llm():
    return str(client_env("llm").parent / "llm")


def ask(llm, url, folder, *words, model="scripted"):
    command = [llm, "openai", "endpoint", f"{url}/v1", *words, "-m", model, "--key", "none"]
    return run(command, offline(folder / "home"), folder)


def test_models_are_listed(llm, tmp_path):
    with replaying(tmp_path) as (url, _):
        command = [llm, "openai", "endpoint", f"{url}/v1", "--models"]
        assert "scripted" in run(command, offline(tmp_path / "home"), tmp_path)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("way", [[], ["--no-stream"]], ids=["stream", "whole"])
def test_an_answer(llm, tmp_path, api, way):
    with replaying(tmp_path, thinks("Twelve.") + says("12 g.")) as (url, chat):
        options = ["-o", "reasoning_effort", "high", "-s", "Be short."]
        told = ask(llm, url, tmp_path, "How much salt?", "-R", *options, *api, *way)
        assert "Be short." in chat.prompt_text()
    assert told.strip() == "12 g."
    assert chat.asked[0][1].effort == "high"


@pytest.mark.parametrize("api", APIS)
def test_a_schema(llm, tmp_path, api):
    with replaying(tmp_path, says('{"bread": "rye", "salt_g": 12}')) as (url, chat):
        schema = ["--schema", "bread, salt_g int"]
        told = ask(llm, url, tmp_path, "A recipe", *schema, *api)
    assert json.loads(told) == {"bread": "rye", "salt_g": 12}
    assert chat.asked[0][1].rules.answer is not None


@pytest.mark.parametrize("api", APIS)
def test_a_tool(llm, tmp_path, api):
    script = (
        thinks("I look it up.") + calls("look_up", bread="rye"),
        thinks("Twelve.") + says("12 g."),
    )
    with replaying(tmp_path, *script) as (url, chat):
        told = ask(llm, url, tmp_path, "How much?", "-R", "--functions", FUNCTIONS, *api)
        shown = chat.prompt_text(1)
    assert told.strip().endswith("12 g.")
    assert "12 g of salt" in shown
    assert "<|channel|>analysis<|message|>I look it up.<|end|>" in shown


def test_nano_answers(llm, tmp_path):
    with nano(tmp_path / "state") as url:
        told = ask(llm, url, tmp_path, "What is 2 + 2?", "-o", "temperature", "0", model="nano")
    assert told.strip()
