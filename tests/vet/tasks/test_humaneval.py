from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from aperto.errors import ResourceError
from aperto.tools.sandbox import Probe, probe
from aperto.vet.sources import fetch
from aperto.vet.suites.item import Answer
from aperto.vet.tasks import humaneval

ROW = {
    "task_id": "Bakery/0",
    "prompt": 'FLOUR = 2\n\n\ndef loaves(n):\n    """Twice as many."""\n',
    "entry_point": "loaves",
    "canonical_solution": "    return FLOUR * n\n",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate(0) == 0\n",
}

needs_sandbox = pytest.mark.skipif(
    probe().confinement is None, reason=f"no sandbox works here: {probe()}"
)


@needs_sandbox
@pytest.mark.parametrize(
    ("final", "label"),
    [
        ("```python\ndef loaves(n):\n    return FLOUR * n\n```", "passed"),
        ("    return FLOUR * n\n", "passed"),
        ("```python\ndef loaves(n):\n    return n\n```", "failed"),
        ("```python\ndef loaves(n)\n    return n\n```", "failed"),
        ("I would rather bake.", "no code"),
        ("```python\ndef loaves(n):\n    raise SystemExit(0)\n```", "failed"),
        ("```python\nimport os\nos._exit(0)\n```", "died"),
        ("```python\nprint('passed')\ndef check(candidate):\n    pass\n```", "failed"),
    ],
)
def test_grade(tmp_path: Path, final: str, label: str) -> None:
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(ROW) + "\n").encode()))
    (item,) = humaneval.load(path)
    grade = humaneval.grade(item, Answer(final))
    assert (grade.label, grade.score) == (label, float(label == "passed"))


@needs_sandbox
def test_endless_loops_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(humaneval, "TIME_LIMIT_S", 0.5)
    assert humaneval.run("def loaves(n):\n    while True:\n        pass\n", ROW) == "time"


def test_without_a_sandbox_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(humaneval, "probe", lambda: Probe(None, ("made up",)))
    with pytest.raises(ResourceError, match="sandbox"):
        humaneval.run("def loaves(n):\n    return 6\n", ROW)


@pytest.mark.long
@needs_sandbox
def test_all_shipped_solutions_pass_and_empty_ones_fail() -> None:
    path = fetch("humaneval").path
    items = humaneval.load(path)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(items) == len(rows) == 164
    for item, row in zip(items, rows, strict=True):
        assert humaneval.run(row["canonical_solution"], item.expected) == "passed", item.id
        assert humaneval.run("    pass\n", item.expected) == "failed", item.id
