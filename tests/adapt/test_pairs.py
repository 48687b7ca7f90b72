"""Pairs of answers: both formats, what is learnt of them, and every bad row named."""

import json

import numpy as np
import pytest

from aperto.adapt.pairs import read_pairs
from aperto.errors import DataError
from aperto.tokenizer import Tokenizer

TOKENIZER = Tokenizer.bundled()
ASK = {"role": "user", "content": "Which bread?"}
RYE = {"role": "assistant", "content": "Rye."}
OAT = {"role": "assistant", "content": "Oats, if you like, or whatever else there may be."}
ROW = {"input": {"messages": [ASK]}, "preferred_output": [RYE], "non_preferred_output": [OAT]}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def learnt(example):
    return TOKENIZER.decode(example.token_ids[example.weights > 0].tolist())


def test_the_answers_alone_are_learnt(tmp_path):
    before = [ASK, OAT, {"role": "user", "content": "And now?"}]
    thinking = {**RYE, "reasoning": "Short is better."}
    row = {"input": {"messages": before}, "preferred_output": [thinking],
           "non_preferred_output": [OAT]}  # fmt: skip
    (pair,) = read_pairs(write(tmp_path / "a.jsonl", ROW, row), TOKENIZER).train[1:]
    assert "Short is better." in learnt(pair.chosen) and "Rye." in learnt(pair.chosen)
    assert "Oats" not in learnt(pair.chosen) and "Oats" in learnt(pair.rejected)
    common = int(np.argmax(pair.chosen.weights > 0))
    assert common == int(np.argmax(pair.rejected.weights > 0))
    np.testing.assert_array_equal(pair.chosen.token_ids[:common], pair.rejected.token_ids[:common])
    assert pair.source.endswith("a.jsonl:2") and len(pair.digests) >= 2


def test_the_columns_of_trl_mean_the_same(tmp_path):
    ours = read_pairs(write(tmp_path / "a.jsonl", ROW), TOKENIZER).train[0]
    messages = {"prompt": [ASK], "chosen": [RYE], "rejected": [OAT]}
    texts = {k: v[0]["content"] for k, v in messages.items()}
    for name, row in (("b.jsonl", messages), ("c.jsonl", texts)):
        theirs = read_pairs(write(tmp_path / name, row), TOKENIZER).train[0]
        np.testing.assert_array_equal(ours.chosen.token_ids, theirs.chosen.token_ids)
        np.testing.assert_array_equal(ours.rejected.token_ids, theirs.rejected.token_ids)


def test_every_bad_row_is_named(tmp_path):
    rows = [
        ROW,
        {"messages": [ASK, RYE]},
        {**ROW, "preferred_output": []},
        {**ROW, "non_preferred_output": [RYE]},
        {**ROW, "non_preferred_output": [ASK]},
        {**ROW, "input": {"messages": [ASK, RYE]}},
        {**ROW, "input": "Which bread?"},
        {**ROW, "preferred_output": [{"role": "assistant", "content": "Rye. " * 200}]},
    ]
    with pytest.raises(DataError) as caught:
        read_pairs(write(tmp_path / "a.jsonl", *rows), TOKENIZER, max_tokens=300)
    for number in range(2, len(rows) + 1):
        assert any(f"a.jsonl:{number}" in line for line in caught.value.problems), number
    assert not any("a.jsonl:1:" in line for line in caught.value.problems)


def test_held_out_pairs_depend_on_their_text_alone(tmp_path):
    rows = [{"prompt": f"{n}?", "chosen": f"{n}.", "rejected": "no"} for n in range(20)]
    one = read_pairs(write(tmp_path / "a.jsonl", *rows), TOKENIZER, held_out=0.25)
    other = read_pairs(write(tmp_path / "b.jsonl", *rows[::-1]), TOKENIZER, held_out=0.25)
    texts = [{tuple(p.chosen.token_ids.tolist()) for p in s.held_out} for s in (one, other)]
    assert len(one.train) == 15 and len(texts[0]) == 5 and texts[0] == texts[1]
    with pytest.raises(DataError, match="held_out is 1"):
        read_pairs(tmp_path / "a.jsonl", TOKENIZER, held_out=1)
