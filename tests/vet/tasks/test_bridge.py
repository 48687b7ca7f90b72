from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("inspect_ai")

from inspect_ai import eval as inspect_eval
from inspect_ai.model import ModelOutput
from tests.vet.tasks.scripted import output, scripted

from aperto.errors import UsageError
from aperto.vet.sources import DataUnavailableError
from aperto.vet.suites.item import Answer, Function, Grade, Item, Turn
from aperto.vet.tasks import SUITES, entry, registry
from aperto.vet.tasks.bridge import answer_of, drawn, task_of
from aperto.vet.tasks.suite import Suite, judged

BAKE = Function("bake", "Bake.", {"type": "object", "properties": {"n": {"type": "integer"}}})


# inspect_ai's own: a renamed argument of tenacity, and streams that it leaves to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'initial' parameter:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed <MemoryObject:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def items(number: int = 4) -> tuple[Item, ...]:
    return tuple(
        Item("bread", f"bread/{n}", f"bread/{n}", (Turn("user", f"{n}?"),), {"right": "SECRET"})
        for n in range(number)
    )


def grade(item: Item, answer: Answer) -> Grade:
    right = item.expected["right"] in answer.final
    return Grade(float(right), "right" if right else "wrong")


SUITE = Suite("bread", "made up", "aperto/bread/1", None, lambda data: items(), grade, 4)


def test_reasoning_never_reaches_the_grade() -> None:
    answer = answer_of(output("I do not know.", "It is SECRET."))
    assert answer == Answer("I do not know.", "It is SECRET.")
    assert judged(SUITE, items()[0], answer).score == 0.0


def test_cut_answers_are_wrong_and_still_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SUITES, "bread", SUITE)
    assert answer_of(output("SECRET", stop="max_tokens")).truncated
    assert answer_of(ModelOutput(model="m", choices=[])).final == ""
    answers = [output("SECRET"), output("SECRET", stop="max_tokens"), output(""), output("SECRET")]
    model = scripted(lambda messages: answers[int(messages[-1].text[:1])])
    (log,) = inspect_eval(task_of(SUITE), model=model, log_dir=str(tmp_path), display="none")
    assert log.status == "success" and log.samples is not None, log.error
    scores = [sample.scores["graded"] for sample in log.samples if sample.scores]
    assert sorted(str(score.answer) for score in scores) == ["right", "right", "truncated", "wrong"]
    assert sum(bool((score.metadata or {})["truncated"]) for score in scores) == 1
    assert log.results is not None
    assert log.results.scores[0].metrics["accuracy"].value == 0.5
    assert log.eval.model_generate_config.temperature is None  # the task's own settings hold
    assert log.plan.config.temperature == log.plan.config.top_p == 1.0
    assert (log.eval.metadata or {})["prompt_id"] == "aperto/bread/1"
    shown = json.dumps([[str(m.content) for m in sample.messages[:1]] for sample in log.samples])
    assert "SECRET" not in shown


def test_a_draw_depends_on_its_seed_alone() -> None:
    all_items = items(50)
    assert drawn(all_items, None, 0) == all_items == drawn(all_items, 50, 3)
    first = drawn(all_items, 10, 0)
    assert len(first) == 10 and first == drawn(all_items, 10, 0) != drawn(all_items, 10, 1)
    assert [item.id for item in all_items if item in first] == [item.id for item in first]


def test_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(registry()) == set(SUITES)
    with pytest.raises(UsageError, match="humaneval"):
        entry("sourdough")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataUnavailableError, match="not run"):
        entry("humaneval").factory(data_dir=tmp_path)
