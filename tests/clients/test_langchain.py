"""LangChain's ChatOpenAI through Chat and Responses: tools, a forced call, a schema, a stream."""

from __future__ import annotations

import pytest
from tests.clients.environments import client_env
from tests.clients.kit import calls, replaying, run_program, says, thinks

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

SCRIPT = (
    thinks("I look it up.") + calls("look_up", bread="rye"),
    thinks("Twelve.") + says("12 g."),
    calls("look_up", bread="roll"),
    thinks("As asked.") + says('{"bread": "rye", "salt_g": 12}'),
    thinks("Again.") + says("Twelve grams of salt."),
)


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_everything_a_chain_asks_for(tmp_path, api):
    python = client_env("langchain")
    with replaying(tmp_path, *SCRIPT) as (url, chat):
        found = run_program(python, "langchain_ask.py", url, tmp_path, arguments=(api,))
    assert found["call"] == ["look_up", {"bread": "rye"}]
    assert found["answer"] == "12 g."
    assert found["forced"] == [["look_up", {"bread": "roll"}]]
    assert found["recipe"] == {"bread": "rye", "salt_g": 12}
    assert found["streamed"] == "Twelve grams of salt."
    assert found["num_chunks"] > 3
    assert found["usage"]["input_token_details"]["cache_read"] == 8
    assert found["usage"]["output_token_details"]["reasoning"] > 0
    assert found["stream_usage"]["total_tokens"] > 0
    # ChatOpenAI drops the reasoning; the model sees it again between its calls.
    assert "<|channel|>analysis<|message|>I look it up.<|end|>" in chat.prompt_text(1)
    rules = [options.rules for _, options in chat.asked]
    assert (rules[2].tool_choice, rules[2].allowed) == ("required", ("functions.look_up",))
    assert rules[3].answer is not None
    assert {options.effort for _, options in chat.asked} == {"low"}
