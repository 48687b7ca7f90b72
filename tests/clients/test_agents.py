"""openai-agents: two agents with a handoff, a tool and an answer by schema."""

from __future__ import annotations

import json

import pytest
from tests.clients.environments import client_env
from tests.clients.kit import calls, replaying, run_program, says, thinks

pytestmark = [pytest.mark.long, pytest.mark.timeout(1500)]

HANDOFF = thinks("A baker knows.") + calls("transfer_to_baker")
LOOK_UP = thinks("I look it up.") + calls("look_up", bread="rye")
ANSWER = thinks("Twelve.") + says('{"bread": "rye", "salt_g": 12}')
SLIP = (
    "<|channel|>commentary to=functions.transfer_to_baker<|channel|>commentary json"
    "<|message|>{}<|call|>"
)


@pytest.fixture(scope="module")
def python():
    return client_env("agents")


@pytest.mark.parametrize("handoff", [HANDOFF, SLIP], ids=["good", "malformed"])
@pytest.mark.parametrize("way", ["whole", "stream"])
@pytest.mark.parametrize("api", ["responses", "chat"])
def test_a_handoff_a_tool_and_a_typed_answer(python, tmp_path, api, way, handoff):
    with replaying(tmp_path, handoff, LOOK_UP, ANSWER) as (url, chat):
        found = run_program(python, "handoff.py", url, tmp_path, arguments=(api, way))
        shown = chat.prompt_text()
    assert found["last"] == "Baker"
    assert found["output"] == {"bread": "rye", "salt_g": 12}
    kinds = [kind for kind in found["items"] if kind != "reasoning_item"]
    assert kinds == [
        "handoff_call_item",
        "handoff_output_item",
        "tool_call_item",
        "tool_call_output_item",
        "message_output_item",
    ]
    if way == "stream":
        assert {"handoff_requested", "handoff_occured", "tool_called", "tool_output"} <= set(
            found["events"]
        )
    assert len(chat.asked) == 3
    first, _, last = (conversation for conversation, _ in chat.asked)
    # The reasoning between the calls is seen again, whether or not the client sends it back.
    assert "<|channel|>analysis<|message|>I look it up.<|end|>" in shown
    assert "<|start|>functions.look_up to=assistant<|channel|>commentary<|message|>" in shown
    assert "rye: 12 g of salt" in shown
    assert json.dumps("Look the bread up.")[1:-1] in shown
    assert len(last.messages) > len(first.messages)
    assert chat.asked[-1][1].rules.answer is not None
