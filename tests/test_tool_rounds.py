"""Answers that stop for tools, keep to rules and budgets, and say how far a prompt is."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from tests.fakes import FakeModel, Script, sample

import aperto
from aperto.chat import (
    Chat,
    ChatOptions,
    Done,
    PrefillProgress,
    ToolEnd,
    ToolStart,
    Warning,
)
from aperto.config import EngineConfig
from aperto.engine import Engine, SamplingParams
from aperto.errors import ConfigError
from aperto.harmony import (
    PYTHON,
    CallRule,
    FunctionTool,
    JsonSchema,
    TurnRules,
    from_chat,
)
from aperto.harmony.messages import tool_result
from aperto.local_model import collect
from aperto.tokenizer import HARMONY_SPECIAL, Tokenizer

TOKENIZER = Tokenizer(
    {bytes([i]): i for i in range(256)}, {n: 256 + i for i, n in enumerate(HARMONY_SPECIAL)}
)
HELLO = from_chat([{"role": "user", "content": "Hello"}])
ANSWERS = "<|channel|>final<|message|>Seven.<|return|>"
AGAIN = "<|start|>assistant"
ADD = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def calls(recipient: str, arguments: str = '{"a": 1}', end: str = "<|call|>") -> str:
    return f"<|channel|>commentary to={recipient} <|constrain|>json<|message|>{arguments}{end}"


ADDS = FunctionTool("add", "Adds.", ADD)


class Turns(Script):
    """Says one text after the other, one a request."""

    def __init__(self, *texts: str, tokenizer: Tokenizer = TOKENIZER) -> None:
        self._texts = [self.ids(tokenizer, text) for text in texts]
        self._rows: dict[object, tuple[int, list[int]]] = {}

    def __call__(self, logits, rows):
        results = sample(logits, rows)
        for i, row in enumerate(rows):
            if row not in self._rows:
                self._rows[row] = (row.position, self._texts.pop(0))
            start, ids = self._rows[row]
            results[i] = (ids[row.position - start], *results[i][1:])
        return results


class Adder:
    """A tool that notes its calls."""

    name = "adder"

    def __init__(self, namespace=None, functions=(ADDS,)) -> None:
        self.namespace = namespace
        self.functions = functions
        self.asked: list[str] = []
        self.threads: set[int] = set()

    def accepts(self, recipient):
        return recipient in ("functions.add", "python")

    def run(self, call):
        self.asked.append(call.text)
        self.threads.add(threading.get_ident())
        return (tool_result(call.recipient, f"result {len(self.asked)}", call.channel),)

    def close(self):
        pass


@pytest.fixture
def say():
    """A Chat whose model says the given texts, one a turn."""
    engines = []

    def make(*texts, model=None, **config):
        model = model or FakeModel(vocab_size=TOKENIZER.vocab_size, max_context=2048)
        settings = EngineConfig(**{"context_tokens": 2048, **config})
        engines.append(Engine(model, settings, sampler=Turns(*texts)))
        return Chat(engines[-1], TOKENIZER)

    yield make
    for engine in engines:
        engine.close()


def run_async(events):
    async def gather():
        return [event async for event in events]

    return asyncio.run(gather())


@pytest.mark.parametrize("is_async", [False, True])
def test_a_tool_is_run_and_the_model_goes_on(say, is_async):
    tool = Adder()
    chat = say(calls("functions.add"), ANSWERS)
    options = ChatOptions(tools=(tool,))
    if is_async:
        events = run_async(chat.astream(HELLO, options))
        assert threading.get_ident() not in tool.threads
    else:
        events = list(chat.stream(HELLO, options))
    assert tool.asked == ['{"a": 1}']
    start, end = (e for e in events if isinstance(e, ToolStart | ToolEnd))
    assert start.call == end.call
    assert [message.text for message in end.results] == ["result 1"]
    assert [type(e) for e in events].count(Done) == 1
    answer = collect(iter(events))
    assert answer.text == "Seven."
    assert answer.finish_reason == "stop"
    drawn = sum(len(Script.ids(TOKENIZER, text)) for text in (calls("functions.add"), ANSWERS))
    assert answer.usage.completion_tokens == drawn
    assert answer.usage.prompt_tokens > 2 * len(chat.prompt_ids(HELLO))


def test_the_next_turn_sees_call_and_result(say):
    chat = say(calls("functions.add"), ANSWERS)
    seen = []
    submit = chat.engine.submit
    chat.engine.submit = lambda request: seen.append(request) or submit(request)
    events = list(chat.stream(HELLO, ChatOptions(tools=(Adder(),))))
    text = TOKENIZER.decode(seen[1].prompt)
    assert (
        '<|start|>assistant to=functions.add<|channel|>commentary <|constrain|>json<|message|>{"a"'
        ": 1}<|call|><|start|>functions.add to=assistant<|channel|>commentary<|message|>result 1"
        "<|end|><|start|>assistant"
    ) in text
    assert len(seen[1].prompt) in seen[1].cut_points
    assert seen[1].sampling.seed == events[-1].seed


def test_tools_are_announced_where_they_belong(say):
    text = TOKENIZER.decode(
        say().prompt_ids(HELLO, ChatOptions(tools=(Adder(), Adder(PYTHON, ())), system="Be kind."))
    )
    assert "## python\n" in text.split("<|end|>")[0]
    assert "type add = (_: {" in text.split("<|end|>")[1]
    assert "Be kind." in text
    again = from_chat([{"role": "user", "content": "Hello"}])
    assert (
        TOKENIZER.decode(say().prompt_ids(again, ChatOptions(tools=(Adder(),)))).count("add") == 1
    )


def test_parallel_calls_are_all_answered(say):
    tool = Adder()
    both = calls("functions.add", end="<|end|>") + AGAIN + calls("functions.add", '{"a": 2}')
    answer = collect(say(both, ANSWERS).stream(HELLO, ChatOptions(tools=(tool,))))
    assert tool.asked == ['{"a": 1}', '{"a": 2}']
    assert answer.text == "Seven."


def test_calls_of_others_end_the_turn(say):
    tool = Adder()
    events = list(say(calls("functions.mine")).stream(HELLO, ChatOptions(tools=(tool,))))
    assert (events[-1].finish_reason, tool.asked) == ("call", [])
    both = calls("functions.add", end="<|end|>") + AGAIN + calls("functions.mine")
    events = list(say(both).stream(HELLO, ChatOptions(tools=(tool,))))
    assert (events[-1].finish_reason, len(tool.asked)) == ("call", 1)


def test_rounds_are_limited_and_then_the_model_has_to_answer(say):
    tool = Adder()
    chat = say(calls("functions.add"), calls("functions.add"), ANSWERS)
    answer = collect(chat.stream(HELLO, ChatOptions(tools=(tool,), max_tool_rounds=2)))
    assert (answer.text, len(tool.asked)) == ("Seven.", 2)
    with pytest.raises(aperto.ApertoError, match="refused token"):
        collect(
            say(calls("functions.add"), calls("functions.add")).stream(
                HELLO, ChatOptions(tools=(Adder(),), max_tool_rounds=1)
            )
        )


def test_a_required_call_is_required_once(say):
    rules = TurnRules(tool_choice="required", calls=(CallRule(recipient="functions.f"),))
    options = ChatOptions(tools=(Adder(),), rules=rules)
    answer = collect(say(calls("functions.add"), ANSWERS).stream(HELLO, options))
    assert answer.text == "Seven."


def test_max_tokens_holds_over_all_turns(say):
    call = calls("functions.add")
    num = len(Script.ids(TOKENIZER, call))
    for more, reason in [(3, "length"), (0, "length")]:
        tool = Adder()
        options = ChatOptions(tools=(tool,), max_tokens=num + more)
        answer = collect(say(call, ANSWERS).stream(HELLO, options))
        assert (answer.finish_reason, answer.usage.completion_tokens) == (reason, num + more)
        assert len(tool.asked) == 1


def test_progress_is_told_while_nothing_is_drawn(say):
    model = FakeModel(vocab_size=TOKENIZER.vocab_size, max_context=2048)
    model.gate = threading.Semaphore(0)
    chat = say(ANSWERS, model=model, max_batch_tokens=32)

    async def events():
        found = []
        async for event in chat.astream(HELLO, ChatOptions(announce_prefill_s=0.01)):
            found.append(event)
            if isinstance(event, PrefillProgress):
                model.gate.release(1 if len(found) < 4 else 1000)
        return found

    told = asyncio.run(events())
    progress = [e for e in told if isinstance(e, PrefillProgress)]
    total = len(chat.prompt_ids(HELLO))
    assert progress[0].done_tokens < total
    assert {e.total_tokens for e in progress} == {total}
    done = [e.done_tokens for e in progress]
    assert done == sorted(done)
    assert told[: len(progress)] == progress
    assert isinstance(told[-1], Done)


def test_what_a_schema_cannot_say_is_a_warning(say):
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)"}}}
    said = '<|channel|>final<|message|>{"a": "y"}<|return|>'
    options = ChatOptions(rules=TurnRules(answer=JsonSchema(schema)))
    for events in (
        list(say(said).stream(HELLO, options)),
        run_async(say(said).astream(HELLO, options)),
    ):
        assert isinstance(events[0], Warning)
        assert events[0].text.startswith("answer.a: pattern")
        assert [type(e) for e in events].count(Warning) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("reasoning_tokens", -1),
        ("answer_tokens", -1),
        ("max_tool_rounds", 0),
        ("announce_prefill_s", 0.0),
    ],
)
def test_options_out_of_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"{field} is {value}"):
        ChatOptions(**{field: value})


@pytest.fixture
def babbler():
    """A Chat whose model thinks whenever it may, and says nothing but "a"."""
    model = FakeModel(vocab_size=TOKENIZER.vocab_size, max_context=2048)
    with Engine(model, EngineConfig(context_tokens=2048), sampler=sample) as engine:
        yield Chat(engine, TOKENIZER)


BABBLE = SamplingParams(logit_bias={ord("a"): 100.0}, seed=1)


def test_without_headroom_reasoning_eats_the_answer(babbler):
    options = ChatOptions(rules=TurnRules(), sampling=BABBLE, max_tokens=60)
    answer = collect(babbler.stream(HELLO, options))
    assert (answer.finish_reason, answer.text) == ("length", "")
    assert set(answer.reasoning) == {"a"}


@pytest.mark.parametrize("kept", [1, 20, 70])
def test_headroom_keeps_room_for_the_answer(babbler, kept):
    options = ChatOptions(rules=TurnRules(), sampling=BABBLE, max_tokens=60, answer_tokens=kept)
    answer = collect(babbler.stream(HELLO, options))
    assert answer.finish_reason == "length"  # the answer never ends by itself
    assert len(answer.text) >= min(kept, 60 - len("<|channel|>final") - 1)
    assert bool(answer.reasoning) is (kept < 70)


@pytest.mark.parametrize("limit", [0, 3])
def test_a_budget_closes_the_reasoning(babbler, limit):
    options = ChatOptions(rules=TurnRules(), sampling=BABBLE, max_tokens=60, reasoning_tokens=limit)
    answer = collect(babbler.stream(HELLO, options))
    assert answer.reasoning == "a" * limit
    assert set(answer.text) == {"a"}
    assert answer.done.reasoning_tokens == (limit and limit + 1)  # and the one that ends it


# --- with nano -----------------------------------------------------------------------------------

SUM = [{"role": "user", "content": "What is 2 + 2?"}]


@pytest.fixture(scope="module")
def nano():
    with aperto.load("nano", threads=1) as model:
        yield model


def test_nano_answers_within_its_headroom(nano):
    for seed in range(5):
        answer = nano.chat(
            SUM, seed=seed, effort="high", max_tokens=40, answer_tokens=26, rules=TurnRules()
        )
        assert answer.text
        assert answer.done.reasoning_tokens <= 8


def test_effort_none_answers_at_once(nano):
    answer = nano.chat(SUM, effort="none", seed=1, max_tokens=60)
    assert (answer.reasoning, answer.done.reasoning_tokens) == ("", 0)
    assert answer.text
    assert {message.channel for message in answer.messages} == {"final"}


def test_rules_hold_on_a_real_model(nano):
    rules = TurnRules(
        tool_choice="required",
        parallel_calls=False,
        calls=(
            CallRule(recipient="functions.add", parameters=ADD),
            CallRule(
                recipient="functions.pick",
                parameters={"type": "object", "properties": {"k": {"enum": ["a", "b"]}}},
            ),
        ),
    )
    for seed in range(8):
        answer = nano.chat(SUM, seed=seed, max_tokens=200, rules=rules)
        if answer.finish_reason == "call":
            (call,) = answer.calls
            json.loads(call.text)
            assert answer.repairs == ()
    answers = [
        nano.chat(SUM, seed=s, max_tokens=200, rules=TurnRules(answer=JsonSchema(ADD)))
        for s in range(4)
    ]
    assert {tuple(json.loads(a.text)) for a in answers if a.finish_reason == "stop"} == {("a",)}


def test_the_grammar_changes_nothing_that_was_valid(nano):
    for seed in range(3):
        free = nano.chat(SUM, seed=seed, temperature=0.0)
        held = nano.chat(SUM, seed=seed, temperature=0.0, rules=TurnRules())
        assert free.repairs == ()
        assert held.messages == free.messages


def test_constrained_answers_are_the_same_in_any_company(nano):
    rules = TurnRules(answer=JsonSchema(ADD))
    options = [
        ChatOptions(rules=rules, sampling=SamplingParams(seed=s), max_tokens=60, logprobs=True)
        for s in range(4)
    ]
    prompt = from_chat(SUM)
    alone = [collect(nano.conversations.stream(prompt, o)).logprobs for o in options]
    streams = [nano.conversations.stream(prompt, o) for o in options]
    assert [collect(s).logprobs for s in streams] == alone
