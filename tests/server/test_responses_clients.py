"""OpenAI's own client against a server on the loopback interface, with the embedded model."""

import base64
import concurrent.futures
import json
import threading
import time
from typing import Literal

import openai
import pydantic
import pytest
import uvicorn
from tests.server.responses_kit import WEATHER, check_body, check_events

from aperto.server.app import create_app
from aperto.server.services import Services
from aperto.server.settings import ServerSettings


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    state = tmp_path_factory.mktemp("state")
    settings = ServerSettings(models=("nano",), state_dir=state, context_tokens=4096)
    config = uvicorn.Config(
        create_app(Services.create(settings)), port=0, log_level="warning", ws="websockets-sansio"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join()


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def test_create_and_go_on(client):
    first = client.responses.create(model="nano", input="What is 2 + 2?", temperature=0)
    assert first.output_text
    assert first.status == "completed"
    assert [item.type for item in first.output] == ["reasoning", "message"]
    second = client.responses.create(
        model="nano", input="What is 3 + 2?", temperature=0, previous_response_id=first.id
    )
    assert second.usage.input_tokens > first.usage.input_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0
    assert client.responses.retrieve(first.id).output_text == first.output_text
    items = list(client.responses.input_items.list(first.id, order="asc"))
    assert [item.content[0].text for item in items] == ["What is 2 + 2?"]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_the_same_seed_gives_the_same_answer(client):
    answers = [
        client.responses.create(
            model="nano",
            input="Tell me a word.",
            extra_body={"seed": 1},
            top_logprobs=3,
            max_output_tokens=60,
        )
        for _ in range(2)
    ]
    first, second = ([i.to_dict() for i in a.output] for a in answers)
    for item in (*first, *second):
        del item["id"]
    assert first == second


def test_the_stream_helper(client):
    with client.responses.stream(model="nano", input="What is 2 + 2?", temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert events[0].type == "response.created"
    assert final.output_text == "".join(
        e.delta for e in events if e.type == "response.output_text.delta"
    )


def test_raw_events_fit_all_models(client):
    stream = client.responses.create(
        model="nano",
        input="What is 2 + 2?",
        temperature=0,
        stream=True,
        include=["reasoning.encrypted_content", "message.output_text.logprobs"],
        top_logprobs=2,
    )
    check_events([event.to_dict() for event in stream])


class City(pydantic.BaseModel):
    name: Literal["Oslo", "Rome"]
    rainy: bool


def test_parse_gives_what_the_schema_says(client):
    response = client.responses.parse(
        model="nano",
        input="Describe a city.",
        text_format=City,
        temperature=0,
        extra_body={"reasoning": {"max_tokens": 50}},
    )
    assert isinstance(response.output_parsed, City)


def test_a_named_tool_is_called_with_fitting_arguments(client):
    tool = WEATHER | {"strict": True}
    response = client.responses.create(
        model="nano",
        input="What is the weather in Oslo?",
        tools=[tool],
        tool_choice={"type": "function", "name": "get_weather"},
        temperature=0,
        max_output_tokens=400,
        reasoning={"effort": "none"},
    )
    call = response.output[-1]
    assert (call.type, call.name) == ("function_call", "get_weather")
    assert set(json.loads(call.arguments)) == {"city"}
    check_body(response.to_dict())
    answer = client.responses.create(
        model="nano",
        tools=[tool],
        tool_choice="none",
        temperature=0,
        previous_response_id=response.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}],
    )
    assert "function_call" not in [item.type for item in answer.output]


def test_background_cancel_and_resume(client):
    made = client.responses.create(
        model="nano", input="What is 2 + 2?", background=True, stream=True, temperature=0
    )
    events = [event for event, _ in zip(made, range(4), strict=False)]
    made.close()
    response_id = events[0].response.id
    resumed = client.responses.retrieve(
        response_id, stream=True, starting_after=events[-1].sequence_number
    )
    rest = list(resumed)
    check_events([event.to_dict() for event in (*events, *rest)])
    assert client.responses.cancel(response_id).status == "completed"


def test_compact(client):
    compacted = client.responses.compact(
        model="nano", input=[{"role": "user", "content": "What is 2 + 2?"}]
    )
    assert compacted.output[-1].type == "compaction"
    items = [item.to_dict(warnings=False) for item in compacted.output]
    follow = [*items, {"role": "user", "content": "What is 3 + 2?"}]
    assert client.responses.create(model="nano", input=follow, max_output_tokens=50).id


@pytest.mark.filterwarnings("ignore:connect.. must be used:DeprecationWarning")
def test_websocket(client):
    with client.responses.connect() as connection:
        for text in ("What is 2 + 2?", "What is 3 + 2?"):
            connection.response.create(model="nano", input=text, store=False, temperature=0)
            events = []
            for event in connection:
                events.append(event.to_dict())
                if event.type == "response.completed":
                    break
            check_events(events)


def test_requests_of_the_compliance_suite_all_at_once(client):
    pdf = base64.b64encode(b"%PDF-1.4 not really").decode()
    user = {"role": "user", "content": "Say hello."}
    requests = [
        {"input": [user]},
        {"input": [{"role": "system", "content": "Talk like a sailor."}, user]},
        {"input": [user], "tools": [WEATHER]},
        {
            "input": [
                {
                    "type": "message",
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "What is in it?"},
                        {"type": "input_image", "image_url": "data:image/png;base64,AA=="},
                        {
                            "type": "input_file",
                            "filename": "a.pdf",
                            "file_data": f"data:application/pdf;base64,{pdf}",
                        },
                    ],
                }
            ]
        },
        {
            "input": [
                user,
                {"type": "message", "role": "assistant", "content": "Hello."},
                {"role": "user", "content": "What did you say?"},
            ]
        },
    ]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        made = threads.map(
            lambda fields: client.responses.create(
                model="nano", max_output_tokens=200, extra_body={"seed": 3}, **fields
            ),
            requests,
        )
        for response in made:
            check_body(response.to_dict())
            assert response.status in ("completed", "incomplete")


def test_real_errors_have_openais_shape(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="nano", input="word " * 6000)
    assert caught.value.code == "context_length_exceeded"
    events = list(client.responses.create(model="nano", input="word " * 6000, stream=True))
    assert events[-1].response.error.code == "context_length_exceeded"
