from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest

from aperto.errors import EvidenceError
from aperto.vet.published import figures_of
from aperto.vet.suites.item import Answer
from aperto.vet.tasks import SUITES, aime, choice


def table(path: Path, number: int) -> Path:
    names = ["Question", "Correct Answer", *(f"Incorrect Answer {n}" for n in (1, 2, 3))]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for n in range(number):
            writer.writerow(
                dict(zip(names, (f"Loaf {n}?", "rye\n", "tin", "rug", "jug"), strict=True))
            )
    return path


def test_gpqa(tmp_path: Path) -> None:
    items = choice.load_gpqa(table(tmp_path / "made.csv", 200))
    assert items == choice.load_gpqa(tmp_path / "made.csv")
    assert items != choice.load_gpqa(tmp_path / "made.csv", seed=1)
    right = Counter(item.expected["answer"] for item in items)
    # 200 draws at 1/4: mean 50, standard deviation 6.1; four of them either way.
    assert all(25 <= right[letter] <= 75 for letter in "ABCD")
    for item in items:
        letter = item.expected["answer"]
        assert f"\n{letter}) rye\n" in item.turns[0].text + "\n"
        assert choice.grade(item, Answer(f"Answer: {letter}")).score == 1.0
        assert choice.grade(item, Answer("Because the data are missing.")).label == "no answer"


def test_permutations_share_a_cluster(tmp_path: Path) -> None:
    items = choice.load_gpqa(table(tmp_path / "made.csv", 3), permutations=4)
    assert len({item.id for item in items}) == 12
    assert len({item.cluster for item in items}) == 3


def test_mmlu(tmp_path: Path) -> None:
    row = {"question": "Bread rises by", "choices": ["salt", "yeast"], "answer": 1, "subject": "b"}
    (tmp_path / "mmlu.jsonl").write_text(json.dumps(row) + "\n")
    (item,) = choice.load_mmlu(tmp_path / "mmlu.jsonl")
    assert choice.grade(item, Answer("B")).score == 1.0
    (tmp_path / "mmlu.jsonl").write_text(json.dumps(row | {"answer": 2}) + "\n")
    with pytest.raises(EvidenceError, match="answer 2 of 2"):
        choice.load_mmlu(tmp_path / "mmlu.jsonl")


def test_aime(tmp_path: Path) -> None:
    rows = [{"Problem": "How many loaves?", "Answer": 204}, {"problem": "?", "answer": "073"}]
    (tmp_path / "aime.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = aime.load(tmp_path / "aime.jsonl", "aime2025")
    assert aime.grade(first, Answer(r"so \boxed{204}")).score == 1.0
    assert aime.grade(first, Answer("I cannot say", analysis=r"\boxed{204}")).label == "no answer"
    assert aime.grade(second, Answer(r"\boxed{73}")).score == 1.0


def test_published_figures_are_there_and_sampling_is_pinned() -> None:
    for suite in SUITES.values():
        assert suite.temperature == suite.top_p == 1.0
        assert suite.published is None or figures_of(suite.published), suite.name
