import json

import pytest
from tests.cli.scripted import ANSWER, ScriptedChat

from aperto.cli import local


class ScriptedModel:
    """A loaded model as `load_local` gives it."""

    def __init__(self, conversations):
        self.conversations = conversations
        self.is_closed = False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.is_closed = True


@pytest.fixture
def loaded(monkeypatch):
    """Replaces loading; returns the (name, settings) that were asked for, then the model."""
    asked = []
    model = ScriptedModel(ScriptedChat(ANSWER))

    def load(name, settings, adapters):
        asked.append((name, settings))
        return model

    monkeypatch.setattr(local, "load_local", load)
    return asked, model


def question(model):
    return model.conversations.asked[0][0].messages[-1].text


def test_a_first_word_that_is_no_model_names_the_prompt_option(aperto):
    result = aperto("chat", "What is 17 * 23?")
    assert result.exit_code == 2
    assert "no model 'What is 17 * 23?'" in result.stderr
    assert "-p/--prompt" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_long_text_in_place_of_a_model_is_the_same_error(aperto):
    result = aperto("chat", "word " * 2000)
    assert result.exit_code == 2
    assert "-p/--prompt" in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_a_prompt_for_the_default_model(aperto, loaded, tiny, tmp_path, monkeypatch):
    config = tmp_path / "config.toml"
    config.write_text(f'default_model = "{tiny}"\neffort = "low"\nmax_tokens = 99\n')
    monkeypatch.setenv("APERTO_CONFIG", str(config))
    asked, model = loaded
    result = aperto("chat", "-p", "What is 17 * 23?", "--max-tokens", "7")
    assert result.exit_code == 0
    assert result.stdout == "It is **391**.\n"
    name, settings = asked[0]
    assert (name, settings.effort, settings.max_tokens) == (str(tiny), "low", 7)
    assert question(model) == "What is 17 * 23?"
    assert model.is_closed


def test_a_model_and_a_prompt(aperto, loaded, tiny):
    asked, model = loaded
    assert aperto("chat", str(tiny), "Hi").stdout == "It is **391**.\n"
    assert asked[0][0] == str(tiny)
    assert question(model) == "Hi"


def test_piped_input_is_the_prompt(aperto, loaded):
    aperto("chat", stdin="What is it?\n")
    assert question(loaded[1]) == "What is it?"


def test_piped_input_goes_below_the_prompt(aperto, loaded):
    aperto("chat", "-p", "Sum up:", stdin="a long text\n")
    assert question(loaded[1]) == "Sum up:\n\na long text"


def test_two_prompts_are_one_too_many(aperto, tiny):
    result = aperto("chat", str(tiny), "one", "-p", "two")
    assert (result.exit_code, "two prompts" in result.stderr) == (2, True)


def test_an_empty_prompt_is_refused(aperto, loaded):
    result = aperto("chat", stdin="")
    assert (result.exit_code, "empty" in result.stderr) == (2, True)
    assert loaded[0] == []


def test_json_is_one_object(aperto, loaded):
    result = aperto("chat", "-p", "Hi", "--json", "--seed", "5", "--effort", "high")
    fields = json.loads(result.stdout)
    assert fields["answer"] == "It is **391**."
    assert fields["reasoning"] == "17 * 23 is 17 * 20 + 51."
    assert (fields["seed"], fields["effort"], fields["model"]) == (5, "high", "nano")


def test_ctrl_c_during_a_one_shot_answer_exits_with_130(aperto, loaded):
    def stop(index):
        raise KeyboardInterrupt

    loaded[1].conversations.before_token = stop
    assert aperto("chat", "-p", "Hi").exit_code == 130


def test_a_wrong_option_value_is_refused(aperto):
    for arguments in (["--effort", "max"], ["--seed", "-1"], ["--top-p", "2"], ["--threads", "0"]):
        assert aperto("chat", "-p", "Hi", *arguments).exit_code == 2


def test_a_real_model_answers_from_end_to_end(aperto, tiny):
    runs = [
        aperto(
            "chat",
            str(tiny),
            "Hi",
            "--json",
            "--seed",
            "1",
            "--max-tokens",
            "20",
            "--threads",
            threads,
        )
        for threads in ("1", "2")
    ]
    first, second = (json.loads(run.stdout) for run in runs)
    assert 1 <= first["usage"]["completion_tokens"] <= 20
    assert first["usage"]["prompt_tokens"] > 20
    assert [first[key] for key in ("answer", "reasoning", "repairs")] == [
        second[key] for key in ("answer", "reasoning", "repairs")
    ]


def test_too_little_memory_says_what_to_do(aperto, tiny, monkeypatch):
    monkeypatch.setattr("aperto.machine.available_bytes", lambda: 1000)
    result = aperto("chat", str(tiny), "Hi")
    assert result.exit_code == 4
    assert f"aperto info {tiny}" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_prompt_that_does_not_fit_gives_the_numbers(aperto, tiny):
    result = aperto("chat", str(tiny), "word " * 300, "--context", "256")
    assert result.exit_code == 1
    assert "256" in result.stderr


def test_an_intervention_answers_and_says_that_it_is_not_vetted(aperto, tiny, tmp_path):
    change = {"point": "layers.*.moe.topk", "count": 1}
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"format": "aperto-variant", "version": 1, "changes": [change]}))
    common = ("chat", str(tiny), "Hi", "--json", "--seed", "1", "--max-tokens", "20")
    plain, varied = aperto(*common), aperto(*common, "--adapter", str(path))
    assert plain.exit_code == varied.exit_code == 0
    assert "one, vetted: no" in varied.stderr and "vetted" not in plain.stderr
    assert json.loads(plain.stdout) != json.loads(varied.stdout)
    missing = aperto(*common, "--adapter", str(tmp_path / "none"))
    assert missing.exit_code != 0 and "is no variant" in missing.stderr
