import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.responses_kit import WEATHER

from aperto.harmony import ANALYSIS, COMMENTARY, FINAL, Role, TurnRules
from aperto.server.errors import ApiError
from aperto.server.recall import Recall
from aperto.server.response_input import InputReader, own_items
from aperto.server.response_parts import part_text
from aperto.server.response_tools import ToolTable
from aperto.server.seal import Sealer

SEALER = Sealer(bytes(32))
CALL = {
    "type": "function_call",
    "call_id": "c1",
    "name": "get_weather",
    "arguments": '{"city": "Oslo"}',
}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "rain"}


def nothing(item_id):
    return None


def read(given, *, tools=(WEATHER,), recall=None, instructions=None, find=nothing):
    reader = InputReader(ToolTable(tools), SEALER, recall or Recall())
    items = own_items(given, find)
    messages = list(reader.conversation(items, instructions))[1:]
    if tools and messages[0].role is Role.DEVELOPER:
        del messages[0]
    return messages, reader.warnings


def said(messages):
    return [(m.role.value, m.channel, m.recipient, m.text) for m in messages]


def test_text_is_the_users():
    messages, warnings = read("Hello")
    assert said(messages) == [("user", None, None, "Hello")]
    assert warnings == []


@pytest.mark.parametrize("given", [None, "", []])
def test_no_input_is_no_message(given):
    assert read(given)[0] == []


def test_instructions_and_messages_at_the_head_become_one_developer_message():
    given = [
        {"role": "system", "content": "Be brief."},
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "No"}]},
        {"role": "user", "content": "Hi"},
        {"role": "developer", "content": "Now in French."},
    ]
    reader = InputReader(ToolTable([WEATHER]), SEALER, Recall())
    _, developer, user, later = reader.conversation(own_items(given, nothing), "You are kind.")
    assert developer.content.instructions == "You are kind.\n\nBe brief.\n\nNo"
    assert [tool.name for tool in developer.content.tools] == ["get_weather"]
    assert user.text == "Hi"
    assert later.content.instructions == "Now in French."


def test_instructions_may_be_items():
    reader = InputReader(ToolTable([]), None, Recall())
    given = [{"role": "developer", "content": "Be kind."}]
    messages = reader.conversation([], given)
    assert messages.messages[1].content.instructions == "Be kind."


def test_a_turn_with_a_call_keeps_reasoning_preamble_and_result():
    given = [
        {"role": "user", "content": "Weather in Oslo?"},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Ask."}]},
        {"role": "assistant", "content": "Let me look."},
        CALL,
        OUTPUT,
        {"role": "assistant", "content": [{"type": "output_text", "text": "It rains."}]},
    ]
    messages, warnings = read(given)
    assert said(messages)[1:] == [
        ("assistant", ANALYSIS, None, "Ask."),
        ("assistant", COMMENTARY, None, "Let me look."),
        ("assistant", COMMENTARY, "functions.get_weather", '{"city": "Oslo"}'),
        ("tool", COMMENTARY, "assistant", "rain"),
        ("assistant", FINAL, None, "It rains."),
    ]
    assert messages[4].name == "functions.get_weather"
    assert warnings == []


def test_a_phase_decides_where_an_assistants_words_go():
    given = [{"role": "assistant", "content": "One moment.", "phase": "commentary"}]
    assert read(given)[0][0].channel == COMMENTARY
    given = [{"role": "assistant", "content": "Done.", "phase": "final_answer"}, CALL]
    assert read(given)[0][0].channel == FINAL


def test_sealed_reasoning_is_opened_and_a_changed_one_is_a_400():
    sealed = SEALER.seal("Ask.", "reasoning")
    item = {"type": "reasoning", "summary": [], "encrypted_content": sealed}
    assert said(read([item])[0]) == [("assistant", ANALYSIS, None, "Ask.")]
    broken = sealed[:20] + ("A" if sealed[20] != "A" else "B") + sealed[21:]
    with pytest.raises(ApiError) as caught:
        read([item | {"encrypted_content": broken, "content": [{"text": "plain"}]}])
    assert (caught.value.status, caught.value.code) == (400, "invalid_encrypted_content")


def test_a_sealed_summary_is_what_was_said_so_far():
    item = {"type": "compaction", "encrypted_content": SEALER.seal("We agreed.", "compaction")}
    ((role, channel, _, text),) = said(read([item])[0])
    assert (role, channel) == ("assistant", FINAL)
    assert text.endswith("We agreed.")
    with pytest.raises(ApiError, match="cannot be read"):
        read([item | {"encrypted_content": SEALER.seal("We agreed.", "reasoning")}])


def test_dropped_reasoning_is_recalled_once_a_step():
    recall = Recall()
    recall.remember("c1", "Ask.")
    recall.remember("c2", "Ask.")
    second = CALL | {"call_id": "c2"}
    messages, _ = read([CALL, second, OUTPUT], recall=recall)
    assert [m.channel for m in messages] == [ANALYSIS, COMMENTARY, COMMENTARY, COMMENTARY]
    given = [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "Own."}]}, CALL]
    messages, _ = read(given, recall=recall)
    assert [m.text for m in messages][:1] == ["Own."]


def test_a_custom_call_and_its_output():
    tools = [{"type": "custom", "name": "patch"}]
    given = [
        {"type": "custom_tool_call", "call_id": "c1", "name": "patch", "input": 'a "b"'},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": [{"text": "ok"}]},
    ]
    given[1]["output"][0]["type"] = "input_text"
    messages, _ = read(given, tools=tools)
    assert [m.text for m in messages] == ['{"input": "a \\"b\\""}', "ok"]
    assert messages[1].name == "functions.patch"


def test_a_custom_call_of_a_tool_with_a_grammar_is_plain_text():
    shape = {"type": "grammar", "syntax": "regex", "definition": "[ab]+"}
    given = [{"type": "custom_tool_call", "call_id": "c1", "name": "patch", "input": "ab"}]
    messages, _ = read(given, tools=[{"type": "custom", "name": "patch", "format": shape}])
    assert [(m.text, m.content_type) for m in messages] == [("ab", None)]


def test_a_namespaced_call_goes_to_its_tool():
    tools = [{"type": "namespace", "name": "mail__", "tools": [WEATHER]}]
    messages, _ = read([CALL | {"namespace": "mail__"}, OUTPUT], tools=tools)
    assert messages[0].recipient == "functions.mail__get_weather"


def test_a_call_that_the_server_ran_is_shown_with_its_answer():
    item = {"type": "mcp_call", "name": "python", "arguments": "print(1)", "output": "1"}
    assert said(read([item])[0]) == [
        ("assistant", ANALYSIS, "python", "print(1)"),
        ("tool", ANALYSIS, "assistant", "1"),
    ]


def test_a_call_of_an_mcp_tool_is_one_of_a_function():
    item = {"type": "mcp_call", "name": "add", "arguments": '{"a": 1}', "output": "1"}
    assert said(read([item])[0]) == [
        ("assistant", COMMENTARY, "functions.add", '{"a": 1}'),
        ("tool", COMMENTARY, "assistant", "1"),
    ]


def test_an_output_without_its_call_is_read_with_a_warning():
    messages, warnings = read([OUTPUT | {"name": "get_weather"}])
    assert messages[0].name == "functions.get_weather"
    assert "no call before it" in warnings[0]


def test_what_the_model_cannot_see_is_left_out_with_one_warning_a_kind():
    given = [{"type": "web_search_call", "id": "w"}, {"type": "web_search_call"}, "x"][:2]
    messages, warnings = read(given)
    assert messages == []
    assert len(warnings) == 1
    assert "web_search_call" in warnings[0]


def test_images_and_sound_are_honest_notes():
    given = [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "What is this?"},
                {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
                {"type": "input_audio", "input_audio": {}},
            ],
        }
    ]
    messages, warnings = read(given)
    assert "cannot see" in messages[0].text
    assert "cannot hear" in messages[0].text
    assert len(warnings) == 2


def test_text_in_files_is_read_and_other_files_are_named():
    encoded = base64.b64encode("Grüße".encode()).decode()
    part = {
        "type": "input_file",
        "filename": "a.txt",
        "file_data": f"data:text/plain;base64,{encoded}",
    }
    assert part_text(part) == ("File a.txt:\nGrüße", None)
    for broken in ({"file_id": "file_1"}, {"file_url": "http://x"}, {}, {"file_data": "%%"}):
        text, warning = part_text({"type": "input_file", "filename": "a.bin", **broken})
        assert "a.bin" in text
        assert "a.bin" in warning


@pytest.mark.parametrize(
    "part", ["plain", 7, {"type": "video"}, {"type": "refusal", "refusal": "No"}]
)
def test_no_part_raises(part):
    text, _ = part_text(part)
    assert text in ("plain", "", "No")


def test_items_get_ids_types_and_lists():
    user, assistant, call = own_items(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, CALL], nothing
    )
    assert user["id"].startswith("msg_")
    assert user["content"] == [{"type": "input_text", "text": "Hi"}]
    assert assistant["content"] == [{"type": "output_text", "text": "Ho", "annotations": []}]
    assert call["id"].startswith("fc_")
    assert {item["status"] for item in (user, assistant, call)} == {"completed"}


def test_references_are_looked_up():
    stored = {"type": "message", "id": "msg_1", "role": "user", "content": []}
    assert own_items([{"id": "msg_1"}], {"msg_1": stored}.get) == [stored]
    for item in ({"type": "item_reference", "id": "no"}, {"id": "no"}):
        with pytest.raises(ApiError) as caught:
            own_items([item], nothing)
        assert caught.value.status == 404


def test_an_item_that_is_nothing_is_refused_with_its_place():
    with pytest.raises(ApiError, match=r"input\[1\]"):
        own_items([{"role": "user", "content": "Hi"}, {"content": "x"}], nothing)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
WORDS = st.sampled_from(
    [
        "message",
        "reasoning",
        "function_call",
        "function_call_output",
        "custom_tool_call",
        "mcp_call",
        "compaction",
        "item_reference",
        "namespace",
        "function",
        "custom",
        "allowed_tools",
        "user",
        "developer",
        "assistant",
    ]
)
THINGS = st.dictionaries(
    st.sampled_from(
        [
            "type",
            "role",
            "content",
            "id",
            "name",
            "namespace",
            "tools",
            "function",
            "call_id",
            "output",
            "arguments",
            "input",
            "encrypted_content",
            "summary",
            "parameters",
            "format",
            "phase",
            "mode",
        ]
    ),
    WORDS | JSON,
)


@settings(max_examples=40)
@given(st.lists(THINGS, max_size=4), st.lists(THINGS, max_size=3), THINGS)
def test_whatever_comes_is_read_or_refused(items, tools, choice):
    try:
        table = ToolTable(tools)
        table.choice(choice)
        reader = InputReader(table, SEALER, Recall())
        conversation = reader.conversation(own_items(items, nothing), None)
    except ApiError as error:
        assert error.status in (400, 404)
    else:
        assert conversation.messages[0].role is Role.SYSTEM
        TurnRules(calls=table.calls)
