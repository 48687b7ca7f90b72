"""The executor: its ring of pages gives what a cache without reuse gives; its commands answer."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import FakeModel
from tests.tiny import write_tiny

from aperto.measure import executor


@given(
    windows=st.lists(st.integers(0, 20), min_size=1, max_size=3, unique=True),
    chunks=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    batch_tokens=st.integers(1, 16),
)
@settings(max_examples=40, deadline=None)
def test_pages_behind_a_window_are_reused_without_a_trace(
    windows: list[int], chunks: list[int], batch_tokens: int
) -> None:
    tokens = np.arange(sum(chunks), dtype=np.int32) % 61
    model = FakeModel(windows=windows)
    sequence = executor.Sequence(model, len(tokens), batch_tokens)
    whole = executor.Sequence(model, len(tokens), len(tokens))  # every page stays
    start = 0
    for count in chunks:
        part = tokens[start : start + count]
        assert np.array_equal(sequence.append(part), whole.append(part))
        start += count
    assert sequence.depth == len(tokens)


def test_windowed_groups_hold_few_pages() -> None:
    model = FakeModel(windows=(8, 0))
    sequence = executor.Sequence(model, 200, 4)
    held = [len(slots) for slots in sequence._cache.slots]
    # A window of 8 and a batch of 4 touch at most 12 positions: 3 pages of 4, and one more where
    # they straddle; one is spare.
    assert held == [5, 50]


def test_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_tiny(tmp_path / "tiny")
    load = {"do": "load", "path": str(model), "threads": 1, "context": 64}
    load |= {"precision": "q8", "cache_dir": str(tmp_path), "isa": "reference"}
    commands = [
        load,
        {"do": "feed", "ids": list(range(30))},
        {"do": "decode", "ids": [1, 2, 3]},
        {"do": "clear"},
        {"do": "feed", "ids": list(range(64))},
        {"do": "generate", "ids": [5], "tokens": 4},
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(map(json.dumps, commands))))
    executor.main()
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answers[0]["engine"] == "aperto, reference"
    assert all(answers[index]["seconds"] > 0 for index in (0, 1, 2, 4, 5))
    assert answers[3] == {}
    assert answers[5]["tokens"] == 3, "the first token belongs to the prompt"


def test_reading_through_reads_it_all(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(40 << 20))
    executor.read_through(file)
    with pytest.raises(FileNotFoundError):
        executor.read_through(tmp_path / "missing")
