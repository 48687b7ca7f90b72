import pytest
from tests.server.responses_kit import WEATHER, check_events, item_types, types

from aperto.chat import Done, PrefillProgress, TokenDrawn, ToolEnd, ToolStart, Warning
from aperto.engine import Timings, Token, Usage
from aperto.harmony import (
    ANALYSIS,
    COMMENTARY,
    FINAL,
    Message,
    MessageEnd,
    MessageStart,
    Repair,
    RepairKind,
    Role,
    TextDelta,
    TurnEnd,
)
from aperto.harmony.messages import tool_result
from aperto.server.response_events import ResponseWriter
from aperto.server.response_tools import ToolTable
from aperto.server.seal import Sealer
from aperto.server.wire_responses import ResponsesRequest, response_body

CUSTOM = {"type": "custom", "name": "patch", "description": "Changes files"}


def message(channel, *texts, recipient=None):
    text = "".join(texts)
    return [
        MessageStart(channel, recipient, None),
        *(TextDelta(channel, piece) for piece in texts),
        MessageEnd(Message(Role.ASSISTANT, text, channel=channel, recipient=recipient)),
    ]


def done(reason="stop"):
    usage = Usage(prompt_tokens=70, cached_tokens=6, completion_tokens=20)
    return Done(reason, None, 5, usage, 9, Timings(0.0, 0.1, 1.0, 19))


def written(*events, request=None, tools=(), **options):
    table = ToolTable(tools)
    body = response_body(request or ResponsesRequest(), "nano", table.echo)
    writer = ResponseWriter(body, table, **options)
    out = writer.start()
    for event in events:
        out += writer.feed(event)
    return writer, out


def test_reasoning_preamble_and_answer_in_order():
    writer, events = written(
        *message(ANALYSIS, "17 * 23", " is 391"),
        *message(COMMENTARY, "Let me see."),
        *message(FINAL, "It is ", "391."),
        TurnEnd("return"),
        done(),
    )
    check_events(events)
    text = [
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ]
    reasoning = [name.replace("output_text", "reasoning_text") for name in text]
    assert types(events) == ["created", "in_progress", *reasoning, *text, *text, "completed"]
    thought, preamble, answer = writer.body["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "17 * 23 is 391"}]
    assert (preamble["phase"], answer["phase"]) == ("commentary", "final_answer")
    assert answer["content"][0]["text"] == "It is 391."
    assert writer.body["seed"] == 5
    assert writer.body["usage"] == {
        "input_tokens": 70,
        "input_tokens_details": {"cached_tokens": 6, "cache_write_tokens": 0},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 9},
        "total_tokens": 90,
    }


def test_deltas_add_up_to_what_done_says():
    _, events = written(*message(FINAL, "a", "b", "c"), TurnEnd("return"), done())
    deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert deltas == ["a", "b", "c"]
    (whole,) = [e for e in events if e["type"] == "response.output_text.done"]
    assert whole["text"] == "abc"


def test_a_snapshot_does_not_change_afterwards():
    _, events = written(*message(FINAL, "abc"), TurnEnd("return"), done())
    assert events[0]["response"]["output"] == []
    assert events[0]["response"]["status"] == "in_progress"
    assert events[-1]["response"]["output"][0]["status"] == "completed"


def test_empty_reasoning_is_no_item():
    writer, events = written(*message(ANALYSIS), *message(FINAL, "Hi"), TurnEnd("return"), done())
    check_events(events)
    assert item_types(writer.body) == ["message"]


def test_parallel_calls_have_argument_deltas_and_ids_of_their_own():
    writer, events = written(
        *message(ANALYSIS, "Two cities."),
        *message(COMMENTARY, '{"city":', ' "Oslo"}', recipient="functions.get_weather"),
        *message(COMMENTARY, '{"city": "Rome"}', recipient="functions.get_weather"),
        TurnEnd("call"),
        done("call"),
        tools=[WEATHER],
    )
    check_events(events)
    assert types(events)[8:12] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    _, oslo, rome = writer.body["output"]
    assert (oslo["name"], oslo["arguments"]) == ("get_weather", '{"city": "Oslo"}')
    assert oslo["call_id"] != rome["call_id"]
    assert writer.reasoning_of == dict.fromkeys((oslo["call_id"], rome["call_id"]), "Two cities.")
    assert writer.body["status"] == "completed"


def test_a_call_on_the_analysis_channel_is_a_call():
    writer, _ = written(
        *message(ANALYSIS, "{}", recipient="functions.get_weather"), TurnEnd("call"), done("call")
    )
    assert item_types(writer.body) == ["function_call"]


def test_a_custom_tool_with_a_grammar_gets_its_text_as_it_comes():
    shape = {"type": "grammar", "syntax": "lark", "definition": "start: /(?s:.*)/"}
    writer, events = written(
        *message(COMMENTARY, '{"input":', ' "x"}', recipient="functions.patch"),
        TurnEnd("call"),
        done("call"),
        tools=[CUSTOM | {"format": shape}],
    )
    check_events(events)
    (item,) = writer.body["output"]
    assert (item["type"], item["input"]) == ("custom_tool_call", '{"input": "x"}')
    deltas = [event["delta"] for event in events if event["type"].endswith("input.delta")]
    assert deltas == ['{"input":', ' "x"}']


def test_a_custom_tool_gets_its_text_without_the_json_around_it():
    writer, events = written(
        *message(COMMENTARY, '{"input": "line 1\\n', 'line 2"}', recipient="functions.patch"),
        TurnEnd("call"),
        done("call"),
        tools=[CUSTOM],
    )
    check_events(events)
    (item,) = writer.body["output"]
    assert (item["type"], item["input"]) == ("custom_tool_call", "line 1\nline 2")
    assert types(events)[2:-1] == [
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
    ]


def test_a_call_of_a_namespace_names_it():
    tools = [{"type": "namespace", "name": "mail", "description": "", "tools": [WEATHER]}]
    writer, _ = written(
        *message(COMMENTARY, "{}", recipient="functions.mail__get_weather"),
        TurnEnd("call"),
        done("call"),
        tools=tools,
    )
    (item,) = writer.body["output"]
    assert (item["namespace"], item["name"]) == ("mail", "get_weather")


def test_a_tool_of_the_server_shows_its_answer():
    asked = Message(Role.ASSISTANT, "print(1)", channel=ANALYSIS, recipient="python")
    writer, events = written(
        *message(ANALYSIS, "print(1)", recipient="python"),
        TurnEnd("call"),
        ToolStart(asked),
        ToolEnd(asked, (tool_result("python", "1\n", ANALYSIS),)),
        *message(FINAL, "One."),
        TurnEnd("return"),
        done(),
        is_served=lambda recipient: recipient == "python",
    )
    check_events(events)
    call, _ = writer.body["output"]
    assert (call["name"], call["arguments"], call["output"]) == ("python", "print(1)", "1\n")
    assert types(events)[2:8] == [
        "output_item.added",
        "mcp_call.in_progress",
        "mcp_call_arguments.delta",
        "mcp_call_arguments.done",
        "mcp_call.completed",
        "output_item.done",
    ]


def test_an_answer_cut_at_the_limit_is_incomplete_with_its_reason():
    writer, events = written(
        *message(ANALYSIS, "Well"),
        *message(FINAL, "It is"),
        TurnEnd("end_of_stream"),
        done("length"),
    )
    check_events(events)
    assert writer.body["status"] == "incomplete"
    assert writer.body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in writer.body["output"]] == ["completed", "incomplete"]
    assert writer.body["completed_at"] is None


def test_an_answer_that_ends_without_a_mark_is_complete():
    writer, _ = written(*message(FINAL, "It is"), TurnEnd("end_of_stream"), done())
    assert writer.body["output"][0]["status"] == "completed"


def test_a_failure_closes_what_is_open():
    writer, events = written(*message(FINAL, "It is")[:-1])
    events += writer.fail("server_error", "the engine stopped")
    check_events(events)
    assert types(events)[-2:] == ["output_item.done", "failed"]
    assert writer.body["error"] == {"code": "server_error", "message": "the engine stopped"}
    assert writer.body["output"][0]["status"] == "incomplete"


def test_a_cancelled_response_says_so():
    writer, events = written(*message(FINAL, "It is")[:-1])
    events += writer.cancel()
    check_events(events)
    assert writer.body["status"] == "cancelled"
    assert writer.is_over


def test_reasoning_is_sealed_and_hidden_as_asked():
    sealer = Sealer(bytes(32))
    events_in = (*message(ANALYSIS, "a secret"), *message(FINAL, "Hi"), TurnEnd("return"), done())
    writer, events = written(
        *events_in,
        seal=lambda text: sealer.seal(text, "reasoning"),
        is_reasoning_hidden=True,
    )
    check_events(events)
    assert "secret" not in str(events)
    thought = writer.body["output"][0]
    assert sealer.unseal(thought["encrypted_content"], "reasoning") == "a secret"
    assert thought["content"] == []
    assert writer.whole[0]["content"] == [{"type": "reasoning_text", "text": "a secret"}]


def test_logprobs_come_with_the_text_of_their_tokens():
    pieces = {1: b"caf", 2: b"\xc3", 3: b"\xa9", 4: None}
    drawn = [TokenDrawn(Token(i, -0.5, ((i, -0.5), (1, -1.0))), FINAL) for i in pieces]
    start, *_ = message(FINAL, "")
    _, events = written(
        start,
        drawn[0],
        TextDelta(FINAL, "caf"),
        drawn[1],
        drawn[2],
        TextDelta(FINAL, "é"),
        drawn[3],
        MessageEnd(Message(Role.ASSISTANT, "café", channel=FINAL)),
        TurnEnd("return"),
        done(),
        piece=pieces.get,
    )
    check_events(events)
    first, second = (e for e in events if e["type"] == "response.output_text.delta")
    assert [entry["token"] for entry in first["logprobs"]] == ["caf"]
    assert [entry["bytes"] for entry in second["logprobs"]] == [[0xC3], [0xA9]]
    assert first["logprobs"][0]["top_logprobs"][1] == {
        "token": "caf",
        "bytes": list(b"caf"),
        "logprob": -1.0,
    }
    (part,) = [e["part"] for e in events if e["type"] == "response.content_part.done"]
    assert part["logprobs"] == [*first["logprobs"], *second["logprobs"]]


def test_no_logprobs_of_reasoning():
    token = TokenDrawn(Token(1, -0.5), ANALYSIS)
    _, events = written(*message(ANALYSIS, "x")[:2], token, piece=lambda token_id: b"x")
    assert "logprob" not in str(events[2:])


def test_progress_is_told_with_numbers_that_advance():
    writer, events = written(PrefillProgress(100, 400), PrefillProgress(300, 400))
    events += writer.heartbeat()
    assert types(events) == ["created", *["in_progress"] * 4]
    assert [e.get("prefill") for e in events[2:]] == [
        {"done_tokens": 100, "total_tokens": 400},
        {"done_tokens": 300, "total_tokens": 400},
        None,
    ]
    check_events([*events, *writer.fail("server_error", "stop")])


def test_a_queued_response_says_that_it_is_queued():
    _, events = written(request=ResponsesRequest(background=True))
    assert types(events) == ["created", "queued", "in_progress"]
    assert [e["response"]["status"] for e in events] == ["queued", "queued", "in_progress"]


def test_warnings_and_repairs_are_listed_once():
    writer, _ = written(
        Warning("tools.x: loosened"),
        Warning("tools.x: loosened"),
        Repair(RepairKind.UNKNOWN_TOKEN, "7"),
        done(),
    )
    assert writer.body["warnings"] == ["tools.x: loosened"]
    assert len(writer.body["repairs"]) == 1


@pytest.mark.parametrize("reason", ["stop", "length", "cancelled"])
def test_an_answer_without_any_message_still_ends(reason):
    writer, events = written(TurnEnd("end_of_stream"), done(reason))
    check_events(events)
    assert writer.is_over
    assert writer.body["output"] == []
