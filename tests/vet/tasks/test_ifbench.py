from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from tests.vet.tasks.publishers import ifbench_checker

from aperto.vet.sources import DataUnavailableError, fetch
from aperto.vet.suites.item import Answer
from aperto.vet.tasks import ifbench
from aperto.vet.tasks.ifbench_checks import APPROXIMATE, CHECKS
from aperto.vet.tasks.sentences import sentences


@pytest.mark.parametrize(
    ("name", "arguments", "text", "expected"),
    [
        ("count:word_count_range", {"min_words": 2, "max_words": 3}, "rye, bread!", True),
        ("count:word_count_range", {"min_words": 2, "max_words": 3}, "rye", False),
        ("count:numbers", {"N": 2.0}, "2 loaves of 500 g", True),
        ("count:punctuation", {}, "Rye. Oats, wheat; spelt: what?! Bread!?", True),
        ("count:punctuation", {}, "Rye?! Oats.", False),
        ("words:alphabet", {}, "Any bread can delight.", True),
        ("words:alphabet", {}, "Any rye can delight.", False),
        ("words:vowel", {}, "bread and rye", True),
        ("words:prime_lengths", {}, "rye oats", False),
        ("format:parentheses", {}, "([{([bread])}])", True),
        ("format:parentheses", {}, "(bread)", False),
        ("format:options", {"options": "yes/no/maybe"}, "Maybe.", True),
        ("format:options", {"options": "a), b), c), d)"}, "a)", True),
        ("format:options", {"options": "a), b), c), d)"}, "A)", False),
        ("format:line_indent", {}, "rye\n oats\n  wheat", True),
        ("format:title_case", {}, "Rye And Oats", True),
        ("format:title_case", {}, "Rye and Oats", False),
        ("format:emoji", {}, "Bread rises 🍞.", True),
        ("format:emoji", {}, "Bread rises.", False),
        ("sentence:increment", {"small_n": 1}, "Rye. Rye bread. Warm rye bread.", True),
        ("sentence:keyword", {"N": 2.0, "word": "rye"}, "Bread? Take Rye.", True),
        ("words:words_position", {"keyword": "rye"}, "The rye is good rye.", True),
        ("custom:date_format_list", {}, "1800-02-29, 1801-12-31", True),
        ("custom:date_format_list", {}, "1900-02-01", False),
        (
            "repeat:repeat_span",
            {"prompt_to_repeat": "a b c d", "n_start": 1, "n_end": 3},
            "B c",
            True,
        ),
    ],
)
def test_checks(name: str, arguments: dict[str, object], text: str, expected: bool) -> None:
    assert ifbench.follows((name, arguments), text) is expected


def test_nothing_follows_nothing() -> None:
    for name in CHECKS:
        assert not ifbench.follows((name, {}), " ")


def test_sentences() -> None:
    text = "Dr. Rye bakes 2.5 loaves at bread.org. Good... Is it? “Yes.” E.g. this. Wow!"
    assert sentences(text) == [
        "Dr. Rye bakes 2.5 loaves at bread.org.",
        "Good...",
        "Is it?",
        "“Yes”.",
        "E.g. this.",
        "Wow!",
    ]


def test_items_and_loose_grades(tmp_path: Path) -> None:
    row = {
        "key": "7",
        "prompt": "Answer yes or no, in one word.",
        "instruction_id_list": ["format:options", "format:no_whitespace"],
        "kwargs": [{"options": "yes/no/maybe", "N": None}, {}],
    }
    path = tmp_path / "made.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (item,) = ifbench.load(path)
    assert "N" not in item.expected["instructions"]
    assert ifbench.grade(item, Answer("yes")).label == "2 of 2"
    assert ifbench.grade(item, Answer("Here you are:\n**yes**")).score == 1.0
    assert ifbench.grade_strict(item, Answer("Here you are:\n**yes**")).score == 0.0
    assert ifbench.grade(item, Answer("", analysis="yes")).label == "0 of 2"


def _near(rng: random.Random, text: str) -> str:
    """A text near another: cut, shuffled, with other marks and capitals."""
    words = text.split(" ")
    kind = rng.randrange(7)
    if kind == 0:
        return " ".join(words[: rng.randrange(1, 40)])
    if kind == 1:
        return rng.choice(sentences(text) or [text])
    if kind == 2:
        return text.translate(str.maketrans(".", rng.choice("?!,")))
    if kind == 3:
        return "\n".join(" " * n + word for n, word in enumerate(words[:12]))
    if kind == 4:
        return " ".join(rng.sample(words, min(len(words), 12)))
    if kind == 5:
        return f"*{words[0]}* ({text[:60]}) - \"'{words[-1]}'\" 7, 14. Mr. X vs. U.S. at 3.14..."
    return rng.choice((text.title(), text.lower(), text.upper(), text.replace("\n\n", "\n")))


@pytest.mark.long
def test_agrees_with_the_publishers_checks_on_every_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, samples = ifbench_checker(tmp_path, monkeypatch)
    try:
        items = ifbench.load(fetch("ifbench").path)
    except DataUnavailableError:
        pytest.skip("the data cannot be had here")
    rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    said = {row["prompt"]: row["response"] for row in rows}
    rng = random.Random(11)
    compared: Counter[bool] = Counter()
    for item in items:
        answer = said.get(item.turns[0].text) or rng.choice(rows)["response"]
        others = [rng.choice(rows)["response"] for _ in range(4)]
        texts = [answer, *others, *(_near(rng, text) for text in [answer, *others] * 2)]
        for name, arguments in json.loads(item.expected["instructions"]):
            for text in [] if name in APPROXIMATE else texts:
                try:
                    expected = theirs((name, arguments), text)
                except (IndexError, ZeroDivisionError, ValueError):
                    expected = False  # their check falls over; the answer follows nothing
                assert ifbench.follows((name, arguments), text) == expected, (name, arguments, text)
                compared[expected] += 1
    assert min(compared.values()) > 300, compared
