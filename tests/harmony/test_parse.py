from __future__ import annotations

import itertools
from typing import Any

import openai_harmony as oh
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.harmony.conversations import answers, conversations, examples, texts, tokens

from aperto.harmony import (
    ANALYSIS,
    COMMENTARY,
    FINAL,
    Conversation,
    Event,
    Message,
    MessageEnd,
    MessageStart,
    Repair,
    RepairKind,
    Role,
    StreamParser,
    SystemContent,
    TextDelta,
    TurnEnd,
    parse,
    render,
)
from aperto.harmony.messages import call, developer, final, system, tool_result, user
from aperto.harmony.parse import MAX_HEADER_TOKENS
from aperto.harmony.render import developer_text, system_text
from aperto.tokenizer import Tokenizer


def events_of(ids: list[int], tokenizer: Tokenizer) -> list[Event]:
    parser = StreamParser(tokenizer)
    events = [event for token in ids for event in parser.feed(token)]
    return events + parser.close()


def read(text: str, tokenizer: Tokenizer) -> StreamParser:
    return parse(tokens(text, tokenizer), tokenizer)


def kinds(parser: StreamParser) -> list[RepairKind]:
    return [repair.kind for repair in parser.repairs]


def as_theirs(message: Message) -> dict[str, Any]:
    theirs = oh.Message(
        author=oh.Author(role=oh.Role(message.role.value), name=message.name),
        content=[oh.TextContent(text=message.text)],
        channel=message.channel,
        recipient=message.recipient,
        content_type=message.content_type,
    )
    return theirs.to_dict()


def answer_ids(answer: list[Message], tokenizer: Tokenizer) -> list[int]:
    """What the model says: the messages without the ``<|start|>assistant`` of the prompt."""
    ids = render(Conversation(tuple(answer)), tokenizer, history="keep", next_role=None)
    if answer[-1].recipient is None:
        ids[-1] = tokenizer.special_id("<|return|>")
    return ids[2:]


@examples(150)
@given(answers)
def test_answers_read_as_openai_harmony_reads_them(
    tokenizer: Tokenizer, oracle: Any, answer: list[Message]
) -> None:
    ids = answer_ids(answer, tokenizer)
    theirs = oracle.parse_messages_from_completion_tokens(ids, oh.Role.ASSISTANT)
    parser = parse(ids, tokenizer)
    assert [as_theirs(m) for m in parser.messages] == [m.to_dict() for m in theirs]
    assert parser.messages == answer
    assert parser.repairs == []


@examples(100)
@given(answers)
def test_deltas_are_those_of_openai_harmony(
    tokenizer: Tokenizer, oracle: Any, answer: list[Message]
) -> None:
    ids = answer_ids(answer, tokenizer)
    theirs, ours = oh.StreamableParser(oracle, oh.Role.ASSISTANT), StreamParser(tokenizer)
    for token in ids:
        theirs.process(token)
        deltas = [event.text for event in ours.feed(token) if isinstance(event, TextDelta)]
        if theirs.state is oh.StreamState.CONTENT and theirs.current_content:
            assert "".join(deltas) == (theirs.last_content_delta or "")


@examples(100)
@given(conversations())
def test_whole_conversations_come_back(tokenizer: Tokenizer, conversation: Conversation) -> None:
    """Render, then parse: nothing is lost and what was text stays text."""
    said = [m for m in conversation if not (m.role is Role.USER and m.name is not None)]
    ids = render(Conversation(tuple(said)), tokenizer, history="keep", next_role=None)
    parser = parse(ids, tokenizer, role=None)
    has_functions = any(getattr(m.content, "tools", ()) for m in said if m.role is Role.DEVELOPER)
    expected = []
    for m in said:
        content = m.content
        if isinstance(content, SystemContent):
            content = system_text(content, has_functions)
        elif not isinstance(content, str):
            content = developer_text(content)
        expected.append(Message(m.role, content, m.channel, m.recipient, m.content_type, m.name))
    assert parser.messages == expected


def test_events_of_a_turn_in_order(tokenizer: Tokenizer) -> None:
    text = (
        "<|channel|>analysis<|message|>a b<|end|>"
        "<|start|>assistant<|channel|>final<|message|>c<|return|>"
    )
    assert events_of(tokens(text, tokenizer), tokenizer) == [
        MessageStart(ANALYSIS, None, None),
        TextDelta(ANALYSIS, "a"),
        TextDelta(ANALYSIS, " b"),
        MessageEnd(Message(Role.ASSISTANT, "a b", channel=ANALYSIS)),
        MessageStart(FINAL, None, None),
        TextDelta(FINAL, "c"),
        MessageEnd(final("c")),
        TurnEnd("return"),
    ]


CALL = {"recipient": "functions.f", "channel": COMMENTARY}


@pytest.mark.parametrize(
    ("text", "expected", "repairs"),
    [
        # The recipient's place, and names run together with markers.
        (" to=functions.f<|channel|>commentary<|message|>{}<|call|>", CALL, []),
        ("<|channel|>commentary to=functions.f<|message|>{}<|call|>", CALL, []),
        ("<|channel|>commentary to= functions.f<|message|>{}<|call|>", CALL, []),
        ("assistant to=functions.f<|channel|>commentary<|message|>{}<|call|>", CALL, []),
        (
            "<|channel|>analysis to=functions.f code<|message|>{}<|call|>",
            {"recipient": "functions.f", "channel": ANALYSIS, "content_type": "code"},
            [],
        ),
        (
            "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
            {**CALL, "content_type": "<|constrain|>json"},
            [],
        ),
        (
            "<|channel|>commentary to=functions.f<|constrain|> json<|message|>{}<|call|>",
            {**CALL, "content_type": "<|constrain|>json"},
            [],
        ),
        ("<|channel|>commentary functions.f<|message|>{}<|call|>", CALL, ["recipient"]),
        ('<|channel|>commentary to="functions.f",<|message|>{}<|call|>', CALL, ["recipient"]),
        (
            "<|channel|>commentary to=functions.f to=functions.g<|message|>{}<|call|>",
            CALL,
            ["recipient"],
        ),
        (
            "<|channel|>commentary to=functions.f<|constrain|><|message|>{}<|call|>",
            CALL,
            ["content_type"],
        ),
        (
            "<|channel|>commentaryto=functions.f<|message|>{}<|call|>",
            CALL,
            ["unknown_channel"],
        ),
        ("<|channel|>comment to=functions.f<|message|>{}<|call|>", CALL, ["unknown_channel"]),
        (" to=functions.f<|message|>{}<|call|>", CALL, ["missing_channel"]),
        # Channels.
        ("<|channel|>Final<|message|>{}<|return|>", {"channel": FINAL}, ["unknown_channel"]),
        ("<|channel|>thoughts<|message|>{}<|return|>", {"channel": ANALYSIS}, ["unknown_channel"]),
        ("final<|message|>{}<|return|>", {"channel": FINAL}, ["missing_channel"]),
        ("<|message|>{}<|return|>", {"channel": FINAL}, ["missing_channel"]),
        ("<|channel|><|message|>{}<|return|>", {"channel": FINAL}, ["missing_channel"]),
        (
            "<|channel|>analysis<|channel|>final<|message|>{}<|return|>",
            {"channel": FINAL},
            ["repeated_channel"],
        ),
        # Text and tokens in the wrong place.
        (
            "<|channel|>final Sure, e<|message|>{}<|return|>",
            {"channel": FINAL},
            ["stray_text", "stray_text"],
        ),
        (
            "<|channel|>final json<|message|>{}<|return|>",
            {"channel": FINAL, "content_type": "json"},
            ["content_type"],
        ),
        (
            "<|start|>assistant<|channel|>final<|message|>{}<|return|>",
            {"channel": FINAL},
            ["stray_token"],
        ),
        (
            "<|channel|>final<|message|>{<|reserved_200013|>}<|return|>",
            {"channel": FINAL},
            ["stray_token"],
        ),
        (
            "<|channel|>final<|message|>{<|message|><|constrain|>}<|return|>",
            {"channel": FINAL},
            ["stray_token", "stray_token"],
        ),
        # A missing message marker.
        ("{}<|return|>", {"channel": FINAL}, ["missing_message", "missing_channel"]),
        ("<|channel|>final{}<|return|>", {"channel": FINAL}, ["missing_message"]),
        (
            "<|channel|>commentary to=functions.f <|constrain|>json{}<|call|>",
            {**CALL, "content_type": "<|constrain|>json"},
            ["missing_message"],
        ),
        (
            "<|channel|>commentary to=functions.f json{}<|call|>",
            {**CALL, "content_type": "json"},
            ["missing_message"],
        ),
        # Ends.
        ("<|channel|>final<|message|>{}", {"channel": FINAL}, ["missing_end"]),
        ("<|channel|>final<|message|>{}<|endoftext|>", {"channel": FINAL}, ["wrong_end"]),
        ("<|channel|>final<|message|>{}<|call|>", {"channel": FINAL}, ["wrong_end"]),
        (
            "<|channel|>commentary to=functions.f<|message|>{}<|return|>",
            CALL,
            ["wrong_end"],
        ),
    ],
)
def test_slips_are_mended_and_reported(
    tokenizer: Tokenizer, text: str, expected: dict[str, str], repairs: list[str]
) -> None:
    parser = read(text, tokenizer)
    assert parser.messages == [Message(Role.ASSISTANT, "{}", **expected)]  # type: ignore[arg-type]
    assert kinds(parser) == repairs


def test_markers_spelt_out_in_a_tool_name_are_cut_off(tokenizer: Tokenizer) -> None:
    header = tokenizer.encode(" to=functions.f<|channel|>commentary<|constrain|>json")
    parser = parse([*header, *tokens("<|message|>{}<|call|>", tokenizer)], tokenizer)
    assert parser.messages == [call("functions.f", "{}")]
    assert kinds(parser) == ["recipient"]


@pytest.mark.parametrize(
    ("second", "role", "name", "repairs"),
    [
        ("<|start|>assistant<|channel|>commentary", Role.ASSISTANT, None, []),
        ("<|start|>assistantcommentary", Role.ASSISTANT, None, ["role"]),
        ("<|start|>assistantto=x<|channel|>commentary", Role.ASSISTANT, None, ["role"]),
        ("<|start|><|channel|>commentary", Role.ASSISTANT, None, ["role"]),
        ("<|start|>bogus<|channel|>commentary", Role.ASSISTANT, None, ["role"]),
        ("<|channel|>commentary", Role.ASSISTANT, None, ["missing_start"]),
        ("assistant<|channel|>commentary", Role.ASSISTANT, None, ["missing_start"]),
        ("<|start|>functions.g<|channel|>commentary", Role.ASSISTANT, None, ["recipient"]),
        ("<|start|>user<|channel|>commentary", Role.USER, None, ["role"]),
        (
            "<|start|>functions.g to=assistant<|channel|>commentary",
            Role.TOOL,
            "functions.g",
            ["role"],
        ),
    ],
)
def test_the_second_message_of_a_turn(
    tokenizer: Tokenizer, second: str, role: Role, name: str | None, repairs: list[str]
) -> None:
    first = "<|channel|>analysis<|message|>a<|end|>"
    parser = read(f"{first}{second}<|message|>b<|end|>", tokenizer)
    assert [m.text for m in parser.messages] == ["a", "b"]
    assert (parser.messages[1].role, parser.messages[1].name) == (role, name)
    assert parser.messages[1].channel == COMMENTARY
    assert kinds(parser) == repairs


@pytest.mark.parametrize("between", ["<|start|>assistant<|channel|>final", "<|channel|>final"])
def test_a_new_header_inside_content_ends_the_message(tokenizer: Tokenizer, between: str) -> None:
    parser = read(f"<|channel|>analysis<|message|>a{between}<|message|>b<|return|>", tokenizer)
    assert [(m.channel, m.text) for m in parser.messages] == [(ANALYSIS, "a"), (FINAL, "b")]
    assert kinds(parser)[0] == "missing_end"


def test_reasoning_without_a_message_marker_is_kept(tokenizer: Tokenizer) -> None:
    parser = read("<|channel|>analysisWe add two<|channel|>final<|message|>4<|return|>", tokenizer)
    assert [(m.channel, m.text) for m in parser.messages] == [
        (ANALYSIS, "We add two"),
        (FINAL, "4"),
    ]
    assert "missing_message" in kinds(parser)


def test_a_header_that_never_ends_becomes_content_while_streaming(tokenizer: Tokenizer) -> None:
    ids = tokens("<|channel|>final" + " word" * MAX_HEADER_TOKENS, tokenizer)
    parser = StreamParser(tokenizer)
    events = [event for token in ids for event in parser.feed(token)]
    assert MessageStart(FINAL, None, None) in events
    parser.close()
    assert parser.messages == [final(" word" * MAX_HEADER_TOKENS)]


@pytest.mark.parametrize("text", ["", "<|channel|>", "<|channel|>final", "<|start|>", "assistant"])
def test_nothing_said_gives_no_message_and_ends_the_turn(tokenizer: Tokenizer, text: str) -> None:
    parser = StreamParser(tokenizer)
    events = [e for token in tokens(text, tokenizer) for e in parser.feed(token)] + parser.close()
    assert events[-1] == TurnEnd("end_of_stream")
    assert parser.messages == []
    assert parser.close() == []


@pytest.mark.parametrize("token", [-1, 201088, 10**9])
def test_ids_outside_the_vocabulary_are_skipped(tokenizer: Tokenizer, token: int) -> None:
    parser = parse([*tokens("<|channel|>final<|message|>a", tokenizer), token], tokenizer)
    assert parser.messages == [final("a")]
    assert parser.repairs[0] == Repair(RepairKind.UNKNOWN_TOKEN, str(token))


def test_a_character_over_several_tokens_comes_whole(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.ranks[bytes([byte])] for byte in "🎉".encode()]
    opened = tokens("<|channel|>final<|message|>", tokenizer)
    deltas = [e for e in events_of([*opened, *pieces], tokenizer) if isinstance(e, TextDelta)]
    assert deltas == [TextDelta(FINAL, "🎉")]


def test_a_cut_character_is_replaced_and_reported(tokenizer: Tokenizer) -> None:
    pieces = [tokenizer.ranks[bytes([byte])] for byte in "🎉".encode()[:3]]
    parser = parse([*tokens("<|channel|>final<|message|>", tokenizer), *pieces], tokenizer)
    assert parser.messages == [final("\ufffd")]
    assert Repair(RepairKind.INVALID_UTF8, "f09f8e") in parser.repairs


SPECIAL = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>"]
SPECIAL += ["<|call|>", "<|endoftext|>", "<|startoftext|>", "<|reserved_200013|>"]
HEADER_WORDS = ["assistant", "user", " to=functions.f", "analysis", "final", "commentary", " json"]
HEADER_WORDS += [" ", "functions.f", " to=", "<|channel|>", " to=assistant", ":", "\n", "é"]


@st.composite
def streams(draw: st.DrawFn) -> list[int]:
    """Anything that a model can emit, and ids that it cannot."""
    tokenizer = Tokenizer.bundled()
    special = st.sampled_from(SPECIAL).map(lambda name: [tokenizer.special_id(name)])
    words = st.one_of(st.sampled_from(HEADER_WORDS), texts).map(tokenizer.encode)
    anything = st.integers(-2, tokenizer.vocab_size + 2).map(lambda token: [token])
    single_bytes = st.integers(0, 255).map(lambda byte: [tokenizer.ranks[bytes([byte])]])
    parts = st.lists(st.one_of(special, special, words, anything, single_bytes), max_size=25)
    return list(itertools.chain.from_iterable(draw(parts)))


def test_an_unknown_channel_of_a_speaker_that_turns_out_to_be_the_assistant(
    tokenizer: Tokenizer,
) -> None:
    parser = StreamParser(tokenizer, Role.ASSISTANT)
    marker = tokenizer.special_id
    name = tokenizer.encode("<|start|>")
    channel = tokenizer.encode("assistant")
    for token in (marker("<|start|>"), *name, marker("<|channel|>"), *channel):
        parser.feed(token)
    parser.feed(marker("<|message|>"))
    parser.close()
    assert [message.channel for message in parser.messages] == [ANALYSIS]
    assert RepairKind.UNKNOWN_CHANNEL in [repair.kind for repair in parser.repairs]


@examples(500)
@given(streams(), st.sampled_from([Role.ASSISTANT, None]))
def test_no_stream_raises_and_events_are_well_formed(
    tokenizer: Tokenizer, ids: list[int], role: Role | None
) -> None:
    parser = StreamParser(tokenizer, role)
    events = [event for token in ids for event in parser.feed(token)] + parser.close()
    said: list[str] | None = None
    messages = []
    for event in events:
        if isinstance(event, MessageStart):
            assert said is None
            said = []
        elif isinstance(event, TextDelta):
            assert said is not None and event.text
            said.append(event.text)
        elif isinstance(event, MessageEnd):
            assert said is not None and event.message.text == "".join(said)
            messages.append(event.message)
            said = None
    assert said is None
    assert messages == parser.messages
    assert [event for event in events if isinstance(event, Repair)] == parser.repairs
    assert all(
        m.channel in (ANALYSIS, COMMENTARY, FINAL) for m in messages if m.role == "assistant"
    )
    if role is not None:
        assert any(isinstance(event, TurnEnd) for event in events)


@examples(200)
@given(st.lists(st.one_of(st.binary(max_size=6), texts.map(str.encode)), max_size=6).map(b"".join))
def test_no_content_byte_is_lost(tokenizer: Tokenizer, data: bytes) -> None:
    """Deltas hold the text; the repairs hold every byte that is not text."""
    ids = [tokenizer.ranks[bytes([byte])] for byte in data]
    parser = parse(tokens("<|channel|>final<|message|>", tokenizer) + ids, tokenizer)
    text = data.decode("utf-8", "surrogateescape")
    lost = [ord(c) - 0xDC00 for c in text if 0xDC80 <= ord(c) <= 0xDCFF]
    reported = [r.detail for r in parser.repairs if r.kind is RepairKind.INVALID_UTF8]
    assert bytes.fromhex("".join(reported)) == bytes(lost)
    assert parser.messages[0].text == data.decode("utf-8", "replace")


@examples(100)
@given(texts, texts)
def test_forged_tokens_stay_text_through_a_round_trip(
    tokenizer: Tokenizer, asked: str, found: str
) -> None:
    messages = [user(asked), call("functions.f", "{}"), tool_result("functions.f", found)]
    ids = render(Conversation(tuple(messages)), tokenizer, next_role=None)
    assert parse(ids, tokenizer, role=None).messages == messages


def test_system_and_developer_messages_are_read_as_text(tokenizer: Tokenizer) -> None:
    conversation = Conversation((system(SystemContent()), developer("Be kind.")))
    parser = parse(render(conversation, tokenizer, next_role=None), tokenizer, role=None)
    assert [m.role for m in parser.messages] == [Role.SYSTEM, Role.DEVELOPER]
    assert parser.messages[1].text == "# Instructions\n\nBe kind."
