"""Inspect AI's openai-api provider, through Chat and Responses, streamed and not."""

from __future__ import annotations

import pytest
from tests.clients.environments import client_env
from tests.clients.kit import calls, nano, replaying, run_program, says, thinks

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

ADD = thinks("I add.") + calls("add", x=17, y=25)
FORTY_TWO = thinks("The tool says 42.") + says("It is 42.")
SEVEN = thinks("Seven.") + says('{"digit": 7}')


@pytest.fixture(scope="module")
def python():
    return client_env("inspect")


@pytest.mark.parametrize("way", ["whole", "stream"])
@pytest.mark.parametrize("api", ["chat", "responses"])
def test_a_tool_and_a_schema(python, tmp_path, api, way):
    with replaying(tmp_path, ADD, FORTY_TWO, SEVEN) as (url, chat):
        found = run_program(python, "inspect_ask.py", url, tmp_path, arguments=(api, way))
    assert found["tool"]["status"] == "success", found
    assert found["tool"]["score"] == found["schema"]["score"] == "C", found
    assert found["tool"]["roles"] == ["user", "assistant", "tool", "assistant"]
    assert found["tool"]["reasoning"] == ["I add.", "The tool says 42."]
    (usage,) = found["tool"]["usage"]
    assert usage["input_tokens_cache_read"] == 2 * 8
    assert usage["reasoning_tokens"] > 0
    options = [options for _, options in chat.asked]
    assert [option.effort for option in options] == ["low", "low", "high"]
    assert options[0].max_tokens == 200
    assert options[2].rules.answer is not None
    (rule,) = options[0].rules.calls
    assert rule.strict is (api == "chat")  # Inspect says strict: false through Responses
    assert "<|channel|>analysis<|message|>I add.<|end|>" in chat.prompt_text(1)


def test_multiple_choice_with_nano(python, tmp_path):
    with nano(tmp_path / "state") as url:
        found = run_program(python, "inspect_choices.py", url, tmp_path)
    assert found["status"] == "success"
    for sample in found["samples"]:
        assert sample["stop"] in ("stop", "max_tokens")
        assert bool(sample["text"]) == bool(sample["logprobs"])
        assert 0 < sample["tokens"] <= 200
