"""Data to learn from: what is read, what is learnt of it, and what is refused, by line."""

import gzip
import importlib.resources
import json

import numpy as np
import openai_harmony as harmony
import pytest

from aperto.adapt.data import read_dataset, read_examples
from aperto.errors import DataError
from aperto.tokenizer import Tokenizer

TOKENIZER = Tokenizer.bundled()
ASK = {"role": "user", "content": "What is baked on Monday?"}
SAY = {"role": "assistant", "content": "Rye bread."}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def learnt(example):
    """The text that the loss counts."""
    return TOKENIZER.decode([int(i) for i in example.token_ids[example.weights > 0]])


def test_what_the_assistant_says_is_learnt_and_nothing_else(tmp_path):
    (example,) = read_examples(write(tmp_path / "a.jsonl", {"messages": [ASK, SAY]}), TOKENIZER)
    assert learnt(example) == "<|channel|>final<|message|>Rye bread.<|return|>"
    assert example.source.endswith("a.jsonl:1")


def test_ids_are_those_of_openai_harmony(tmp_path, monkeypatch):
    packed = importlib.resources.files("aperto") / "data" / "o200k_base.tiktoken.gz"
    (tmp_path / "o200k_base.tiktoken").write_bytes(gzip.decompress(packed.read_bytes()))
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", str(tmp_path))
    encoding = harmony.load_harmony_encoding("HarmonyGptOss")
    (example,) = read_examples(write(tmp_path / "a.jsonl", {"messages": [ASK, SAY]}), TOKENIZER)
    turn = harmony.Message.from_role_and_content
    head = harmony.SystemContent.new().with_reasoning_effort(harmony.ReasoningEffort.MEDIUM)
    conversation = harmony.Conversation.from_messages(
        [
            turn(harmony.Role.SYSTEM, head),
            turn(harmony.Role.USER, ASK["content"]),
            turn(harmony.Role.ASSISTANT, SAY["content"]).with_channel("final"),
        ]
    )
    expected = encoding.render_conversation_for_training(conversation)
    assert example.token_ids.tolist() == expected


def test_reasoning_is_learnt_as_analysis(tmp_path):
    said = {**SAY, "reasoning": "Monday is rye day."}
    (example,) = read_examples(write(tmp_path / "a.jsonl", {"messages": [ASK, said]}), TOKENIZER)
    assert learnt(example).startswith("<|channel|>analysis<|message|>Monday is rye day.<|end|>")


def test_weight_0_is_read_and_not_learnt(tmp_path):
    first = {"role": "assistant", "content": "Wheat.", "weight": 0}
    row = {"messages": [ASK, first, {"role": "user", "content": "Are you sure?"}, SAY]}
    examples = read_examples(write(tmp_path / "a.jsonl", row), TOKENIZER)
    assert [learnt(e) for e in examples] == ["<|channel|>final<|message|>Rye bread.<|return|>"]
    assert "Wheat." in TOKENIZER.decode([int(i) for i in examples[0].token_ids])


def test_a_call_is_learnt_with_its_recipient(tmp_path):
    function = {"name": "baked", "description": "d", "parameters": {"type": "object"}}
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "baked", "arguments": '{"day": "Monday"}'},
    }
    row = {
        "messages": [ASK, {"role": "assistant", "tool_calls": [call]}],
        "tools": [{"type": "function", "function": function}],
    }
    (example,) = read_examples(write(tmp_path / "a.jsonl", row), TOKENIZER)
    assert "functions.baked" in learnt(example)
    assert learnt(example).endswith('{"day": "Monday"}<|call|>')
    assert "namespace functions" in TOKENIZER.decode([int(i) for i in example.token_ids])


def test_prompt_and_completion_and_text(tmp_path):
    write(
        tmp_path / "a.jsonl",
        {"prompt": "Monday?", "completion": "Rye."},
        {"text": "Bread is baked at four."},
    )
    pair, text = read_examples(tmp_path / "a.jsonl", TOKENIZER)
    assert learnt(pair) == "<|channel|>final<|message|>Rye.<|return|>"
    assert TOKENIZER.decode(text.token_ids.tolist()) == "Bread is baked at four.<|endoftext|>"
    assert text.weights[0] == 0


def test_long_text_is_cut_so_that_every_token_but_the_first_is_learnt(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(" ".join(str(n) for n in range(200)), encoding="utf-8")
    parts = read_examples(path, TOKENIZER, max_tokens=64)
    whole = TOKENIZER.encode(path.read_text())
    assert sum(part.num_learnt for part in parts) == len(whole)
    assert all(len(part) <= 64 for part in parts)


def test_every_bad_row_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        json.dumps({"messages": [ASK, SAY]}),
        "not json",
        json.dumps({"messages": [ASK]}),
        json.dumps({"messages": [{"role": "baker", "content": "x"}, SAY]}),
        json.dumps({"question": "?", "answer": "!"}),
        json.dumps({"messages": [ASK, {**SAY, "weight": 3}]}),
    ]
    path.write_text("\n".join(rows), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_examples(path, TOKENIZER)
    for number in range(2, 7):
        assert any(f"a.jsonl:{number}" in problem for problem in caught.value.problems), number
    assert not any("a.jsonl:1" in problem for problem in caught.value.problems)


def test_too_long_conversations(tmp_path):
    path = write(tmp_path / "a.jsonl", {"messages": [ASK, SAY]}, {"messages": [ASK, SAY] * 30})
    with pytest.raises(DataError, match=r"a.jsonl:2"):
        read_examples(path, TOKENIZER, max_tokens=128)
    assert len(read_examples(path, TOKENIZER, max_tokens=128, too_long="drop")) >= 1
    dropped = read_dataset(path, TOKENIZER, max_tokens=128, too_long="drop")
    assert any("128 tokens" in note for note in dropped.notes)


def test_held_out_rows_depend_on_their_text_alone(tmp_path):
    rows = [{"prompt": f"{n}?", "completion": f"{n}."} for n in range(40)]
    one = read_dataset(write(tmp_path / "a.jsonl", *rows), TOKENIZER, held_out=0.25)
    other = read_dataset(write(tmp_path / "b.jsonl", *rows[::-1]), TOKENIZER, held_out=0.25)
    assert len(one.held_out) == 10

    def texts(examples):
        return sorted(e.token_ids.tobytes() for e in examples)

    assert texts(one.held_out) == texts(other.held_out)
    assert not set(texts(one.held_out)) & set(texts(one.train))


def test_a_folder_with_its_own_held_out_files(tmp_path):
    write(tmp_path / "train.jsonl", {"prompt": "a", "completion": "b"})
    write(tmp_path / "eval.jsonl", {"prompt": "c", "completion": "d"})
    found = read_dataset(tmp_path, TOKENIZER)
    assert (len(found.train), len(found.held_out)) == (1, 1)
    assert found.notes == ("held out by name, only evaluated: eval.jsonl",)


@pytest.mark.parametrize(
    ("name", "held_out"),
    [
        ("test-plan.md", False),
        ("dev_guide.txt", False),
        ("unit-test/a.md", False),
        ("test/a.md", True),
        ("eval.txt", True),
        ("Test.md", True),
        ("train/test/a.md", True),
        ("test/train/a.md", False),
        ("test-00000-of-00001.jsonl", True),
        ("desk_eval.jsonl", True),
        ("latest.jsonl", False),
        ("validation/rows.jsonl", True),
    ],
)
def test_names_that_hold_files_out(tmp_path, name, held_out):
    """A document about tests is learnt; only a text called so, or in a folder so called, is not."""
    write(tmp_path / "rows.jsonl", {"text": "what is always learnt"})
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".jsonl":
        write(file, {"text": "a document"})
    else:
        file.write_text("a document")
    found = read_dataset(tmp_path, TOKENIZER)
    assert (len(found.train), len(found.held_out)) == ((1, 1) if held_out else (2, 0))
    assert bool(found.notes) == held_out


def test_parquet_and_arrow(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"messages": [ASK, SAY], "source": None}]
    expected = read_examples(write(tmp_path / "a.jsonl", *rows), TOKENIZER)
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (found,) = read_examples(tmp_path / "a.parquet", TOKENIZER)
    assert np.array_equal(found.token_ids, expected[0].token_ids)
    table = arrow.Table.from_pylist(rows)
    sink = arrow.OSFile(str(tmp_path / "a.arrow"), "wb")
    with sink, arrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (found,) = read_examples(tmp_path / "a.arrow", TOKENIZER)
    assert np.array_equal(found.weights, expected[0].weights)


def test_nothing_to_learn(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match="no example to learn from"):
        read_examples(tmp_path / "a.jsonl", TOKENIZER)
