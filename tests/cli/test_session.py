import json
import logging

import pytest
from tests.cli.scripted import ANSWER, CALL, ScriptedChat

from aperto.cli.answer import Answer
from aperto.cli.screen import SilentScreen
from aperto.cli.session import Asking, Session
from aperto.errors import EngineError, UsageError
from aperto.harmony import Effort, Role


class Recorder(SilentScreen):
    """Keeps what it is told."""

    def __init__(self):
        self.log = []

    def wait(self):
        self.log.append("wait")

    def reasoning(self, text):
        self.log.append(("reasoning", text))

    def answer(self, text):
        self.log.append(("answer", text))

    def call(self, recipient, arguments):
        self.log.append(("call", recipient, arguments))

    def end(self, answer):
        self.log.append("end")

    def abort(self):
        self.log.append("abort")


def joined(log, kind):
    return "".join(entry[1] for entry in log if entry[0] == kind)


def test_an_answer_is_shown_and_kept():
    session, screen = Session(ScriptedChat(ANSWER), Asking(seed=5)), Recorder()
    answer = session.ask("What is 17 * 23?", screen)
    assert (answer.text, answer.reasoning) == ("It is **391**.", "17 * 23 is 17 * 20 + 51.")
    assert joined(screen.log, "answer") == answer.text
    assert joined(screen.log, "reasoning") == answer.reasoning
    assert (screen.log[0], screen.log[-1]) == ("wait", "end")
    assert [message.role for message in session.turns] == [
        Role.USER,
        Role.ASSISTANT,
        Role.ASSISTANT,
    ]
    assert (answer.seed, answer.prompt_tokens, answer.tokens_per_s) == (5, 70, 10.0)
    assert answer.total_s >= answer.first_token_s > 0


def test_how_it_is_asked_reaches_the_model():
    chat = ScriptedChat(ANSWER)
    asking = Asking(
        effort="high", system="Be brief.", seed=3, temperature=0.5, top_p=0.9, max_tokens=11
    )
    Session(chat, asking).ask("Hi", Recorder())
    conversation, options = chat.asked[0]
    assert conversation.messages[0].content.effort is Effort.HIGH
    assert conversation.messages[1].content.instructions == "Be brief."
    assert conversation.messages[2].content == "Hi"
    assert options.max_tokens == 11
    sampling = options.sampling
    assert (sampling.seed, sampling.temperature, sampling.top_p) == (3, 0.5, 0.9)


def test_without_a_seed_each_answer_has_its_own():
    chat = ScriptedChat(ANSWER, ANSWER)
    session = Session(chat, Asking())
    seeds = {session.ask("Hi", Recorder()).seed for _ in range(2)}
    assert len(seeds) == 2
    assert seeds == {options.sampling.seed for _, options in chat.asked}


def test_the_second_question_comes_with_the_first():
    chat = ScriptedChat(ANSWER, ANSWER)
    session = Session(chat, Asking())
    session.ask("one", Recorder())
    session.ask("two", Recorder())
    texts = [message.text for message in chat.asked[1][0]]
    assert texts == ["", "one", "17 * 23 is 17 * 20 + 51.", "It is **391**.", "two"]


def test_a_call_is_shown_whole_and_not_as_answer():
    screen = Recorder()
    answer = Session(ScriptedChat(CALL), Asking()).ask("add", screen)
    assert answer.text == ""
    assert answer.calls == [{"recipient": "functions.add", "arguments": '{"a": 1}'}]
    assert ("call", "functions.add", '{"a": 1}') in screen.log
    assert answer.finish_reason == "call"


def interrupt_at(token):
    def before_token(index):
        if index == token:
            raise KeyboardInterrupt

    return before_token


@pytest.mark.parametrize("token", [0, 5, 25])
def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on(token):
    chat = ScriptedChat(ANSWER, ANSWER, before_token=interrupt_at(token))
    session, screen = Session(chat, Asking()), Recorder()
    answer = session.ask("one", screen)
    assert answer.finish_reason == "cancelled"
    assert screen.log[-1] == "end"
    assert chat.num_closed == 1
    assert session.turns[-1].channel == "final"
    assert session.turns[-1].text == answer.text
    chat.before_token = lambda index: None
    assert session.ask("two", screen).text == "It is **391**."


def fail(index):
    raise EngineError("the request failed")


def test_a_failed_question_leaves_the_conversation_as_it_was():
    chat = ScriptedChat(ANSWER, ANSWER, before_token=fail)
    session, screen = Session(chat, Asking()), Recorder()
    with pytest.raises(EngineError):
        session.ask("one", screen)
    assert session.turns == []
    assert screen.log[-1] == "abort"


def test_retry_answers_the_last_question_again():
    chat = ScriptedChat(ANSWER, ANSWER)
    session = Session(chat, Asking())
    session.ask("one", Recorder())
    before = list(session.turns)
    session.retry(Recorder())
    assert session.turns == before
    assert len(chat.asked[1][0]) == 2


def test_a_failed_retry_keeps_the_first_answer():
    chat = ScriptedChat(ANSWER, ANSWER)
    session = Session(chat, Asking())
    session.ask("one", Recorder())
    before = list(session.turns)
    chat.before_token = fail
    with pytest.raises(EngineError):
        session.retry(Recorder())
    assert session.turns == before


def test_retry_needs_a_question():
    with pytest.raises(UsageError, match="no question yet"):
        Session(ScriptedChat(), Asking()).retry(Recorder())


def test_repairs_are_reported_and_logged(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("aperto"), "propagate", True)
    caplog.set_level(logging.INFO, "aperto")
    answer = Session(ScriptedChat("<|channel|>finale<|message|>Hi.<|return|>"), Asking()).ask(
        "Hi", Recorder()
    )
    assert answer.repairs[0].startswith("unknown_channel")
    assert "unknown_channel" in caplog.text


def test_save_and_load(tmp_path):
    session = Session(ScriptedChat(ANSWER), Asking(effort="low", system="Be brief."))
    session.ask("Grüße", Recorder())
    session.save(tmp_path / "talk.json")
    other = Session(ScriptedChat(), Asking())
    other.load(tmp_path / "talk.json")
    assert other.turns == session.turns
    assert (other.asking.effort, other.asking.system) == ("low", "Be brief.")


@pytest.mark.parametrize("text", ["[]", "{", '{"messages": [{"role": "cook"}]}', '{"a": 1}'])
def test_a_file_that_holds_no_conversation_changes_nothing(tmp_path, text):
    session = Session(ScriptedChat(ANSWER), Asking())
    session.ask("one", Recorder())
    before = list(session.turns)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UsageError):
        session.load(tmp_path / "x.json")
    assert session.turns == before


def test_files_that_cannot_be_used_are_named(tmp_path):
    session = Session(ScriptedChat(), Asking())
    with pytest.raises(UsageError, match="cannot be read"):
        session.load(tmp_path / "none.json")
    with pytest.raises(UsageError, match="cannot be written"):
        session.save(tmp_path / "none" / "x.json")


def test_the_json_of_an_answer():
    answer = Session(ScriptedChat(ANSWER), Asking(seed=5)).ask("Hi", Recorder())
    fields = json.loads(json.dumps(answer.to_dict(model="nano", effort="low")))
    assert fields["answer"] == "It is **391**."
    assert fields["model"] == "nano"
    assert fields["seed"] == 5
    assert set(fields["usage"]) == {"prompt_tokens", "cached_tokens", "completion_tokens"}
    assert set(fields["timings"]) == {"first_token_s", "total_s", "tokens_per_s"}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(completion_tokens=9, tokens_per_s=3.21, seed=4), "9 tokens · 3.2 tokens/s"),
        (Answer(finish_reason="length", seed=4), "cut at the limit"),
        (Answer(finish_reason="cancelled", seed=4), "stopped · seed 4"),
    ],
)
def test_the_closing_line(answer, words):
    assert words in answer.summary()
    assert "seed 4" in answer.summary()
