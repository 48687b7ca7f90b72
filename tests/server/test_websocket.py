import contextlib
import time

import openresponses_types as spec
import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from tests.server.responses_kit import (
    ANSWER,
    CALL,
    WEATHER,
    ScriptedChat,
    check_events,
    item_types,
    scripted_services,
    types,
)

from aperto.server.app import create_app

LONG = "<|channel|>final<|message|>" + "word " * 400 + "<|return|>"


@contextlib.contextmanager
def connected(tmp_path, *script, headers=None, delay_s=0.0, **settings):
    chat = ScriptedChat(*script, delay_s=delay_s)
    services = scripted_services(chat, tmp_path, **settings)
    with TestClient(create_app(services)) as client:
        client.chat = chat
        client.services = services
        with client.websocket_connect("/v1/responses", headers=headers or {}) as socket:
            yield client, socket


def create(socket, **fields):
    socket.send_json({"type": "response.create", "input": "What is 17 * 23?", **fields})


def events_of(socket):
    events = []
    while not events or not events[-1]["type"].endswith(("completed", "incomplete", "failed")):
        events.append(socket.receive_json())
        assert events[-1]["type"] != "error", events[-1]
    return events


def error_of(socket):
    event = socket.receive_json()
    spec.types.WebSocketErrorEvent.model_validate(event)
    return event


def test_turns_on_one_connection_go_on_from_each_other_without_being_stored(tmp_path):
    with connected(tmp_path, ANSWER, ANSWER) as (client, socket):
        create(socket, store=False)
        first = events_of(socket)
        check_events(first)
        response = first[-1]["response"]
        assert item_types(response) == ["reasoning", "message"]
        assert client.services.store.get(response["id"]) is None
        create(socket, store=False, input="And 24?", previous_response_id=response["id"])
        check_events(events_of(socket))
        assert "It is 391.<|end|>" in client.chat.prompt_text()


def test_a_tool_loop_on_one_connection(tmp_path):
    with connected(tmp_path, CALL, ANSWER) as (client, socket):
        create(socket, store=False, tools=[WEATHER])
        events = events_of(socket)
        check_events(events)
        assert "function_call_arguments.delta" in types(events)
        response = events[-1]["response"]
        (call,) = [item for item in response["output"] if item["type"] == "function_call"]
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "rain"}
        going_on = {"previous_response_id": response["id"], "input": [output]}
        create(socket, store=False, tools=[WEATHER], **going_on)
        events = events_of(socket)
        check_events(events)
        assert item_types(events[-1]["response"]) == ["reasoning", "message"]
        shown = client.chat.prompt_text()
        assert "17 * 23 is 391.<|end|>" in shown
        assert "<|start|>functions.get_weather to=assistant<|channel|>commentary" in shown


def test_stored_responses_are_known_on_every_connection(tmp_path):
    with connected(tmp_path, ANSWER, ANSWER) as (client, socket):
        create(socket)
        response = events_of(socket)[-1]["response"]
        assert client.get(f"/v1/responses/{response['id']}").json() == response
        with client.websocket_connect("/v1/responses") as other:
            create(other, previous_response_id=response["id"])
            check_events(events_of(other))


def test_another_connection_does_not_know_what_was_not_stored(tmp_path):
    with connected(tmp_path, ANSWER) as (client, socket):
        create(socket, store=False)
        response = events_of(socket)[-1]["response"]
        with client.websocket_connect("/v1/responses") as other:
            create(other, previous_response_id=response["id"])
            error = error_of(other)
    assert (error["status"], error["error"]["code"]) == (400, "previous_response_not_found")
    assert error["error"]["param"] == "previous_response_id"


def test_a_warm_up_is_a_response_to_go_on_from(tmp_path):
    with connected(tmp_path, ANSWER, ANSWER) as (client, socket):
        create(socket, generate=False, instructions="Be kind.", input="Tools are ready.")
        warmed = events_of(socket)[-1]["response"]
        assert warmed["output"] == []
        create(socket, previous_response_id=warmed["id"])
        check_events(events_of(socket))
        assert "Tools are ready." in client.chat.prompt_text()


def test_lanes_run_side_by_side_and_each_in_order(tmp_path):
    with connected(tmp_path, LONG, ANSWER, ANSWER, delay_s=0.001) as (_, socket):
        create(socket, stream_id="slow")
        assert socket.receive_json()["stream_id"] == "slow"
        create(socket, stream_id="fast", input="1")
        create(socket, stream_id="fast", input="2")
        ended = []
        while len(ended) < 3:
            event = socket.receive_json()
            if event["type"] == "response.completed":
                ended.append(event["stream_id"])
    assert ended == ["fast", "fast", "slow"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "invalid_json"),
        ("[]", "unsupported_event"),
        ('{"type": "response.steer"}', "unsupported_event"),
        ('{"type": "response.create", "stream_id": 3}', "invalid_value"),
        ('{"type": "response.create", "temperature": "hot"}', "invalid_value"),
        ('{"type": "response.create", "model": "gpt-9"}', "model_not_found"),
    ],
)
def test_a_wrong_message_is_an_error_and_the_connection_lives_on(tmp_path, text, code):
    with connected(tmp_path, ANSWER) as (_, socket):
        socket.send_text(text)
        assert error_of(socket)["error"]["code"] == code
        create(socket)
        check_events(events_of(socket))


def test_a_message_that_is_too_long_is_refused(tmp_path):
    with connected(tmp_path, max_body_bytes=1000) as (_, socket):
        create(socket, input="x" * 2000)
        assert error_of(socket)["status"] == 413


def test_a_client_that_goes_away_ends_its_answer(tmp_path):
    with connected(tmp_path, LONG, delay_s=0.005) as (client, socket):
        create(socket)
        for _ in range(10):
            socket.receive_json()
        socket.close()
        for _ in range(400):
            if client.chat.num_open == 0:
                break
            time.sleep(0.01)
        assert client.chat.num_open == 0


def test_a_key_is_asked_for(tmp_path):
    with (
        pytest.raises(WebSocketDisconnect),
        connected(tmp_path, api_keys=("secret",)) as (_, socket),
    ):
        socket.receive_json()
    headers = {"Authorization": "Bearer secret"}
    with connected(tmp_path, ANSWER, api_keys=("secret",), headers=headers) as (_, socket):
        create(socket)
        check_events(events_of(socket))
