"""An MCP server behind `aperto serve --tool mcp:…`: OpenAI's client asks, the server calls."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import openai
import pytest
import tests.tools.mcp_server
from tests.clients.kit import calls, says, thinks
from tests.fakes import FakeModel
from tests.server.kit import BYTES, listening, services_of
from tests.test_tool_rounds import Turns

from aperto.config import EngineConfig
from aperto.engine import Engine
from aperto.local_model import LocalModel

SCRIPT = Path(tests.tools.mcp_server.__file__)
CONTEXT = 16_384
ADD = thinks("I add.") + calls("add", a=17, b=25)
ANSWER = says("It is 42.")
FAIL = calls("fail", why="salt")


@pytest.fixture
def client(request, tmp_path):
    """OpenAI's client at a server with an MCP server for a tool; the model says what is given."""
    model = FakeModel(vocab_size=BYTES.vocab_size, max_context=CONTEXT)
    config = EngineConfig(context_tokens=CONTEXT)
    engine = Engine(model, config, sampler=Turns(*request.param, tokenizer=BYTES))
    tool = f"mcp:{shlex.join([sys.executable, str(SCRIPT)])}"
    services = services_of(LocalModel("scripted", engine, BYTES), tmp_path, tools=(tool,))
    with (
        listening(services, ws="websockets-sansio") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as found,
    ):
        yield found


def ask(client, **options):
    tools = [{"type": "mcp", "server_label": "test"}]
    return client.responses.create(model="scripted", input="17 + 25?", tools=tools, **options)


@pytest.mark.parametrize("client", [(ADD, ANSWER)], indirect=True)
def test_a_call_is_made_by_the_server(client):
    response = ask(client)
    assert [item.type for item in response.output] == ["reasoning", "mcp_call", "message"]
    call = response.output[1]
    assert (call.name, json.loads(call.arguments)) == ("add", {"a": 17, "b": 25})
    assert (call.output, call.error) == ("42", None)
    assert response.output_text == "It is 42."


@pytest.mark.parametrize("client", [(ADD, FAIL, ANSWER)], indirect=True)
def test_a_stream_tells_of_every_call_and_of_failures(client):
    events = list(ask(client, stream=True))
    told = [event.type for event in events]
    assert told.count("response.mcp_call.in_progress") == 2
    assert told.count("response.mcp_call.completed") == 2
    added, failed = (item for item in events[-1].response.output if item.type == "mcp_call")
    assert added.output == "42"
    assert "Error executing tool fail" in failed.output
    assert events[-1].response.output_text == "It is 42."
