"""Samples, the held-out split, packing and the vocabulary."""

from __future__ import annotations

import json
import random
from pathlib import Path

import data
import heldout
import pytest
import skills
import vocab

import aperto
from aperto.formats import TokenizerSource
from aperto.harmony import FINAL, Conversation, render
from aperto.tokenizer import Tokenizer

NANO = Path(aperto.__file__).parent / "nano"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_checkpoint(TokenizerSource("hf", NANO / "tokenizer.json"))


@pytest.mark.parametrize("skill", sorted(skills.TURNS))
def test_every_sample_ends_in_one_answer(skill, tokenizer):
    rng = random.Random(skill)
    for _ in range(40):
        sample = skills.make(rng, skill)
        last = sample.messages[-1]
        assert (last.channel == FINAL) is ("final" in sample.expected)
        ids, weights = data.tokens(sample, tokenizer)
        assert len(ids) == len(weights)
        assert weights[-1] == 1.0
        assert set(weights) <= {0.0, 1.0}


def test_the_same_seed_gives_the_same_rows(tokenizer):
    first, second = (data.rows("1/2/3", "full", tokenizer, 3, 320) for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert not (data.rows("1/2/4", "full", tokenizer, 3, 320)[0] == first[0]).all()


def test_packing_keeps_samples_whole():
    lengths = (5, 7, 3, 9, 2, 4)
    source = [([n] * n, [1.0] * n) for n in lengths]
    ids, segments, weights = data.pack(source, 2, 16)
    found = []
    for row in range(2):
        for part in range(1, int(segments[row].max()) + 1):
            own = ids[row][segments[row] == part]
            assert (own == len(own)).all()
            found.append(len(own))
    assert sorted(found) == sorted(lengths)
    assert (weights[segments > 0] == 1).all()
    assert (weights[segments == 0] == 0).all()


def test_training_never_sees_a_held_out_key():
    source = data.samples(random.Random(5), "full")
    assert not any(data.held_out(next(source).key) for _ in range(500))


@pytest.mark.parametrize("name", ["add_subtract", "refuse", "tool_call"])
def test_held_out_files_are_what_the_script_writes(name, monkeypatch, tmp_path):
    make, count, efforts = heldout.FILES[name]
    monkeypatch.setattr(heldout, "FILES", {name: (make, count, efforts)})
    committed = (heldout.FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
    monkeypatch.setattr(heldout, "FOLDER", tmp_path)
    heldout.main()
    assert (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8") == committed
    assert len(committed.splitlines()) == count * len(efforts)
    assert all("expected" in json.loads(line) for line in committed.splitlines())


def test_the_vocabulary_cuts_its_own_text_as_o200k_does(tokenizer):
    full, source = Tokenizer.bundled(), data.samples(random.Random(11), "full")
    same = total = 0
    for _ in range(200):
        conversation = Conversation(tuple(next(source).messages))
        for message in conversation:
            if not message.text:
                continue
            ours = [tokenizer.decode_bytes([i]) for i in tokenizer.encode(message.text)]
            theirs = [full.decode_bytes([i]) for i in full.encode(message.text)]
            split = [
                part
                for piece in theirs
                for part in ([bytes([b]) for b in piece] if piece.isdigit() else [piece])
            ]
            total += 1
            same += ours == split
    # Words are drawn from 3,000 and 2,048 entries do not hold them all.
    assert same > 0.6 * total


def test_numbers_are_single_digits(tokenizer):
    assert len(tokenizer.encode("1234567890")) == 10


def test_the_vocabulary_is_rebuilt_from_the_same_text(tokenizer):
    token = b" multiplied"
    closed = vocab.closure(token, vocab.texts.ranks())
    assert token in closed
    assert all(len(t) == 1 or set(vocab.parents(t, vocab.texts.ranks())) <= closed for t in closed)


def test_prompts_render_with_the_shipped_vocabulary(tokenizer):
    line = json.loads((heldout.FOLDER / "tool_call.jsonl").read_text().splitlines()[0])
    ids = render(Conversation.from_dict({"messages": line["messages"]}), tokenizer)
    assert max(ids) < tokenizer.vocab_size == 2048
