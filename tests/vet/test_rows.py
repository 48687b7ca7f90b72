"""Rows survive their file, and nothing is lost or counted twice."""

from __future__ import annotations

import math
from pathlib import Path

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.vet.made import first, rows

from aperto.errors import EvidenceError, UsageError
from aperto.vet.rows import Row, item_scores, read_rows, rows_hash, share, write_rows

made_rows = st.builds(
    Row,
    suite=st.sampled_from(["a", "a/b"]),
    item=st.uuids().map(str),
    cluster=st.text(min_size=1, max_size=5),
    epoch=st.integers(0, 9),
    arm=st.sampled_from(["base", "adapted"]),
    effort=st.sampled_from(["low", "high"]),
    score=st.floats(-1, 2),
    label=st.none() | st.text(max_size=20),
    truncated=st.booleans(),
    output_tokens=st.none() | st.integers(0, 10**6),
)


@given(st.lists(made_rows, max_size=20, unique_by=lambda row: row.key))
def test_rows_survive_their_file(tmp_path_factory: pytest.TempPathFactory, made: list[Row]):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path, made)
    assert list(read_rows(path)) == made
    assert rows_hash(made) == rows_hash(reversed(made))


def test_the_hash_sees_a_changed_score():
    made = rows("a", "base", first(0.5), items=10)
    other = [*made[:-1], made[-1].model_copy(update={"score": 0.5})]
    assert rows_hash(made) != rows_hash(other)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('{"suite": "a"', "line 2"),
        ('{"suite": "a"}', "item: Field required"),
        (
            '{"suite":"a","item":"q","cluster":"q","epoch":0,"arm":"b","score":"1"}',
            "score: Input should be a valid number",
        ),
        (
            '{"suite":"a","item":"q","cluster":"q","epoch":0,"arm":"b","score":1,"scor":1}',
            "scor: Extra inputs",
        ),
        (
            '{"suite":"a","item":"q","cluster":"q","epoch":0,"arm":"b","score":NaN}',
            "score",
        ),
    ],
)
def test_damaged_lines_are_named(tmp_path: Path, line: str, text: str):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + line + "\n")
    with pytest.raises(EvidenceError, match=text):
        read_rows(path)


def test_an_answer_twice_in_a_file_is_refused(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    made = rows("a", "base", first(0.5), items=3)
    write_rows(path, [*made, made[1]])
    with pytest.raises(EvidenceError, match="item 'q0001', epoch 0"):
        read_rows(path)


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(pydantic.ValidationError, match="finite"):
        Row(suite="a", item="q", cluster="q", epoch=0, arm="b", score=math.inf)


def test_repeats_become_item_means():
    made = rows("a", "base", lambda item, epoch: float(epoch < item), items=3, epochs=2)
    found = item_scores(made)
    assert found.items == ("q0000", "q0001", "q0002")
    assert found.means.tolist() == [0.0, 0.5, 1.0]
    assert found.repeats == (2, 2, 2) and not found.is_binary and not found.is_clustered
    assert item_scores(rows("a", "base", first(0.5), items=4)).is_binary


def test_an_item_lies_in_one_cluster():
    made = rows("a", "base", first(1.0), items=2, epochs=2)
    with pytest.raises(UsageError, match="lies in the clusters"):
        item_scores([*made[:-1], made[-1].model_copy(update={"cluster": "other"})])
    with pytest.raises(UsageError, match="no rows"):
        item_scores([])


def test_shares_of_mishaps():
    made = rows("a", "base", first(1.0), items=4)
    made[0] = made[0].model_copy(update={"truncated": True, "repairs": 3})
    assert share(made, "truncated") == share(made, "repairs") == 0.25
    assert share(made, "error") == 0
