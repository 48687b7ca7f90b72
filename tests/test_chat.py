"""Conversation in, events out, with an engine that says what the test has written."""

from __future__ import annotations

import asyncio
import gc

import pytest
from tests.fakes import FakeModel, Script
from tests.fakes import sample as draw

from aperto.chat import Chat, ChatOptions, Done, StopStrings, TokenDrawn
from aperto.config import EngineConfig
from aperto.engine import Engine, SamplingParams
from aperto.errors import ConfigError, ContextLengthError
from aperto.harmony import (
    ANALYSIS,
    FINAL,
    Conversation,
    DeveloperContent,
    Effort,
    Message,
    MessageEnd,
    MessageStart,
    Repair,
    Role,
    SystemContent,
    TextDelta,
    TurnEnd,
    from_chat,
)
from aperto.local_model import LocalModel, acollect, collect
from aperto.tokenizer import HARMONY_SPECIAL, Tokenizer

TOKENIZER = Tokenizer(
    {bytes([i]): i for i in range(256)}, {n: 256 + i for i, n in enumerate(HARMONY_SPECIAL)}
)
HELLO = from_chat([{"role": "user", "content": "Hello"}])
THINKS = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
ANSWERS = "<|channel|>final<|message|>Yes, seven.<|return|>"


def ids_of(text):
    return Script.ids(TOKENIZER, text)


@pytest.fixture
def say():
    """A Chat whose model says the given text, special tokens included."""
    engines = []

    def make(text, **config):
        model = FakeModel(vocab_size=TOKENIZER.vocab_size, max_context=2048)
        settings = EngineConfig(**{"context_tokens": 2048, **config})
        engines.append(Engine(model, settings, sampler=Script(TOKENIZER, text)))
        return Chat(engines[-1], TOKENIZER)

    yield make
    for engine in engines:
        engine.close()


def test_an_answer_is_told_in_events(say):
    events = list(say(THINKS + ANSWERS).stream(HELLO))
    assert events[0] == MessageStart(ANALYSIS, None, None)
    assert [e for e in events if isinstance(e, MessageEnd)] == [
        MessageEnd(Message(Role.ASSISTANT, "Hm.", channel=ANALYSIS)),
        MessageEnd(Message(Role.ASSISTANT, "Yes, seven.", channel=FINAL)),
    ]
    assert events[-2] == TurnEnd("return")
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.finish_reason, done.stop) == ("stop", None)
    assert done.usage.completion_tokens == len(ids_of(THINKS + ANSWERS))
    assert done.reasoning_tokens == len("Hm.") + 1  # and the token that ends the message
    assert done.timings.decode_tokens == done.usage.completion_tokens - 1


def test_the_whole_answer_keeps_reasoning_apart(say):
    answer = collect(say(THINKS + ANSWERS).stream(HELLO))
    assert str(answer) == answer.text == "Yes, seven."
    assert answer.reasoning == "Hm."
    assert answer.finish_reason == "stop"
    assert answer.repairs == ()
    assert answer.calls == ()


def test_async_gives_the_same_events(say):
    async def events(chat):
        return [event async for event in chat.astream(HELLO)]

    chat = say(THINKS + ANSWERS)
    plain, later = list(chat.stream(HELLO))[:-1], asyncio.run(events(chat))[:-1]
    assert plain == later
    answer = asyncio.run(acollect(say("ab").acomplete("x", ChatOptions(max_tokens=2))))
    assert answer.text == "ab"


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("seven",), "Yes, "),
        ((", se", "ven"), "Yes"),
        (("zzz", "."), "Yes, seven"),
        (("Y",), ""),
        (("seven.!",), "Yes, seven."),
        (("Hm",), "Yes, seven."),
        (("es, seven", "Yes, s"), ""),
    ],
)
def test_stop_strings_end_the_answer_and_none_leaks(say, stop, expected):
    chat = say(THINKS + ANSWERS)
    answer = collect(chat.stream(HELLO, ChatOptions(stop=stop)))
    assert answer.text == expected
    assert answer.messages[-1].text == expected
    assert answer.reasoning == "Hm."
    assert answer.finish_reason == "stop"
    if expected != "Yes, seven.":
        assert answer.done.stop in stop
    stats = chat.engine.stats()
    assert stats.num_waiting <= 1


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_stop_strings_are_found_however_the_text_arrives(size):
    text = "one two aab three"
    for stops, expected, found in [
        (("aab",), "one two ", "aab"),
        (("two", "one two aab three!"), "one ", "two"),
        (("ab", "aab"), "one two ", "aab"),
        (("threes",), text, None),
        ((), text, None),
    ]:
        matcher = StopStrings(stops)
        out = ""
        for start in range(0, len(text), size):
            out += matcher.feed(text[start : start + size])
            if matcher.found:
                break
        out += matcher.flush()
        assert (out, matcher.found) == (expected, found)


def test_a_tool_call_ends_the_turn(say):
    call = "<|channel|>commentary to=functions.add <|constrain|>json<|message|>{}<|call|>"
    answer = collect(say(call).stream(HELLO))
    assert answer.finish_reason == "call"
    assert [c.recipient for c in answer.calls] == ["functions.add"]
    assert answer.text == ""


def test_repairs_are_passed_through(say):
    events = list(say("<|message|>Hi<|return|>").stream(HELLO))
    assert any(isinstance(event, Repair) for event in events)
    assert collect(iter(events)).repairs


def test_words_put_into_the_users_mouth_end_the_turn(say):
    invented = "<|channel|>final<|message|>Yes.<|end|><|start|>user<|message|>And now?<|return|>"
    events = list(say(invented).stream(HELLO))
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "Yes."
    assert any(isinstance(e, Repair) and e.kind == "role" for e in events)
    assert isinstance(events[-1], Done) and events[-1].finish_reason == "stop"


def test_reasoning_of_ended_turns_is_not_shown_again(say):
    turn = [
        Message(Role.ASSISTANT, "secret", channel=ANALYSIS),
        Message(Role.ASSISTANT, "Yes.", channel=FINAL),
    ]
    asked = Message(Role.USER, "Sure?")
    called = Message(Role.ASSISTANT, "{}", channel="commentary", recipient="functions.f")
    again = Conversation(
        (*HELLO, *turn, asked, Message(Role.ASSISTANT, "Hm", channel=ANALYSIS), called)
    )
    text = TOKENIZER.decode(say(ANSWERS).prompt_ids(again))
    assert "secret" not in text
    assert "Hm" in text


def test_an_answer_cut_by_the_limit_says_so(say):
    answer = collect(say(THINKS + ANSWERS).stream(HELLO, ChatOptions(max_tokens=3)))
    assert answer.finish_reason == "length"
    assert answer.usage.completion_tokens == 3
    assert collect(say("x" * 5000).complete("ab")).usage.completion_tokens == 2046


def test_logprobs_come_with_their_channel(say):
    options = ChatOptions(logprobs=True, num_top_logprobs=2)
    answer = collect(say(THINKS + ANSWERS).stream(HELLO, options))
    assert [t.token.id for t in answer.logprobs] == ids_of(THINKS + ANSWERS)
    final = [t for t in answer.logprobs if t.channel == FINAL]
    assert bytes(t.token.id for t in final[:-1]) == b"Yes, seven."
    assert all(len(t.token.top_logprobs) == 2 for t in answer.logprobs)
    assert all(isinstance(t, TokenDrawn) for t in answer.logprobs)


def prompt_text(chat, conversation, **options):
    return TOKENIZER.decode(chat.prompt_ids(conversation, ChatOptions(**options)))


def test_effort_and_instructions_go_where_they_belong(say):
    chat = say(ANSWERS)
    assert "Reasoning: medium" in prompt_text(chat, HELLO)
    assert "Reasoning: high" in prompt_text(chat, HELLO, effort=Effort.HIGH)
    bare = Conversation((Message(Role.USER, "Hello"),))
    assert prompt_text(chat, bare) == prompt_text(chat, HELLO)
    assert "# Instructions\n\nBe brief." in prompt_text(chat, HELLO, system="Be brief.")
    told = Conversation(
        (
            Message(Role.SYSTEM, SystemContent()),
            Message(Role.DEVELOPER, DeveloperContent("Speak Latin.")),
            Message(Role.USER, "Hello"),
        )
    )
    assert "Be brief.\n\nSpeak Latin." in prompt_text(chat, told, system="Be brief.")


def test_raw_text_is_continued_without_special_tokens(say):
    events = list(say("caf\u00e9<|start|>!<|endoftext|>").complete("A "))
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "caf\u00e9!"
    assert {e.channel for e in events if isinstance(e, TextDelta)} == {None}
    assert events[-1].finish_reason == "stop"
    answer = collect(say("one, two").complete("A ", ChatOptions(stop=(", ",))))
    assert (answer.text, answer.done.stop) == ("one", ", ")
    cut = collect(say("\u00e9").complete([65], ChatOptions(max_tokens=1)))
    assert cut.text == "\ufffd"


@pytest.mark.parametrize("drop", [True, False])
def test_leaving_the_events_cancels_the_request(say, drop):
    chat = say("x" * 2000)
    events = chat.complete("a")
    next(events)
    if drop:
        del events
        gc.collect()
    else:
        events.close()
    for _ in range(1000):
        if chat.engine.stats().num_running == 0:
            break
        asyncio.run(asyncio.sleep(0.005))
    assert chat.engine.stats().num_running == 0


def test_refusals_come_before_the_first_event(say):
    chat = say(ANSWERS, context_tokens=64)
    with pytest.raises(ContextLengthError, match="context holds 64"):
        chat.stream(HELLO)
    with pytest.raises(ConfigError, match="stop is"):
        ChatOptions(stop=("",))
    with pytest.raises(ConfigError, match="max_tokens is 0"):
        ChatOptions(max_tokens=0)


def test_a_next_turn_reuses_the_prompt(say):
    chat = say(ANSWERS)
    first = collect(chat.stream(HELLO))
    longer = HELLO.plus(*first.messages, Message(Role.USER, "Sure?"))
    second = collect(chat.stream(longer))
    # All of the first prompt but its last page, which the answer shares.
    assert second.usage.cached_tokens >= first.usage.prompt_tokens - FakeModel().page_tokens
    assert second.usage.cached_tokens < second.usage.prompt_tokens


def test_local_model_takes_options_by_name(say):
    model = LocalModel("fake", say(THINKS + ANSWERS).engine, TOKENIZER)
    assert str(model.chat("Hello", effort="low", seed=3, stop="seven")) == "Yes, "
    assert model.chat([{"role": "user", "content": "Hello"}], seed=3).seed == 3
    deltas = [e.text for e in model.chat("Hello", stream=True) if isinstance(e, TextDelta)]
    assert "".join(deltas) == "Hm.Yes, seven."
    assert str(asyncio.run(model.achat(HELLO))) == "Yes, seven."
    assert model.complete("ab", max_tokens=2, temperature=0.0).usage.completion_tokens == 2
    with pytest.raises(ConfigError, match=r"unknown options temprature; known ones: .*effort"):
        model.chat("Hello", temprature=1)
    with pytest.raises(
        ConfigError, match="effort is 'huge'; expected one of none, low, medium, high"
    ):
        model.chat("Hello", effort="huge")
    with model:
        pass


def test_a_drawn_answer_repeats_from_its_seed():
    model = FakeModel(vocab_size=TOKENIZER.vocab_size, max_context=512)
    with LocalModel("fake", Engine(model, sampler=draw), TOKENIZER) as local:
        first = local.complete("Once", max_tokens=50, temperature=2.0)
        again = local.complete("Once", max_tokens=50, temperature=2.0, seed=first.seed)
        assert again.text == first.text
        params = SamplingParams(temperature=2.0, seed=first.seed)
        assert local.complete("Once", max_tokens=50, sampling=params).text == first.text
