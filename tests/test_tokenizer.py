from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aperto import tokenizer as module
from aperto.errors import CheckpointError, ConfigError, FormatError, UnsupportedError, UsageError
from aperto.formats.checkpoint import TokenizerSource
from aperto.tokenizer import HARMONY_SPECIAL, Tokenizer, Utf8Stream, byte_alphabet

texts = st.one_of(
    st.text(max_size=60),
    st.sampled_from(["<|start|>", "I'LL don't", "  \n\t 12345", "naïve 漢字 🎉 e\u0301", ""]),
)
no_limit = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def full() -> Tokenizer:
    return Tokenizer.bundled()


@pytest.fixture(scope="module")
def trimmed(full: Tokenizer) -> Tokenizer:
    """The bytes and the first merges of o200k, ids renumbered in the order of the ranks."""
    kept = sorted((t for t, i in full.ranks.items() if len(t) == 1 or i < 1500), key=full.ranks.get)
    ranks = {token: i for i, token in enumerate(kept)}
    return Tokenizer(ranks, {name: len(ranks) + i for i, name in enumerate(HARMONY_SPECIAL)})


@pytest.fixture(scope="module")
def trimmed_file(trimmed: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trimmed") / "tokenizer.json"
    path.write_text(json.dumps(trimmed.to_hf()))
    return path


def as_gguf(tokenizer: Tokenizer) -> TokenizerSource:
    model = tokenizer.to_hf()["model"]
    by_id = {i: (text, 1) for text, i in model["vocab"].items()}
    by_id |= {i: (name, 3) for name, i in tokenizer.special.items()}
    tokens, types = zip(*(by_id[i] for i in range(len(by_id))), strict=True)
    merges = tuple(" ".join(pair) for pair in model["merges"])
    return TokenizerSource("gguf", tokens=tokens, merges=merges, token_types=types)


def test_bundled_vocabulary_is_o200k_harmony(full: Tokenizer) -> None:
    tiktoken_harmony = {
        "<|startoftext|>": 199998,
        "<|endoftext|>": 199999,
        "<|return|>": 200002,
        "<|constrain|>": 200003,
        "<|channel|>": 200005,
        "<|start|>": 200006,
        "<|end|>": 200007,
        "<|message|>": 200008,
        "<|call|>": 200012,
    }
    assert full.vocab_size == 201088
    assert len(full.ranks) == 199998
    assert tiktoken_harmony.items() <= full.special.items()
    assert full.special["<|reserved_200000|>"] == 200000
    assert full.special["<|reserved_201087|>"] == 201087
    assert len(full.special) == 201088 - 199998
    assert full.encode("hello world") == [24912, 2375]


def test_changed_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module._bundled.cache_clear()
    monkeypatch.setattr(gzip, "decompress", lambda _: b"IQ== 0\n")
    with pytest.raises(FormatError, match=r"SHA-256.*expected 446a9538.*reinstall"):
        Tokenizer.bundled()


@no_limit
@given(texts)
def test_text_comes_back(full: Tokenizer, trimmed: Tokenizer, text: str) -> None:
    for tokenizer in (full, trimmed):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@no_limit
@given(st.lists(st.sampled_from([*HARMONY_SPECIAL, "<|reserved_200013|>", " a"])).map("".join))
def test_text_never_gives_a_special_id(full: Tokenizer, trimmed: Tokenizer, text: str) -> None:
    for tokenizer in (full, trimmed):
        ids = tokenizer.encode(text)
        assert not any(map(tokenizer.is_special, ids))
        assert tokenizer.decode(ids) == text


def test_lone_surrogates_become_replacement_characters(full: Tokenizer) -> None:
    assert full.decode(full.encode("a\ud800b")) == "a\ufffdb"


def test_a_run_of_white_space_of_any_length_is_encoded(full: Tokenizer) -> None:
    # The piece pattern by itself gives up on about a million blanks.
    text = "a" + " " * 1_200_000 + "b"
    assert full.decode(full.encode(text)) == text


def test_tokenizer_json_gives_the_same_ids_as_the_tokenizers_library(
    trimmed: Tokenizer, trimmed_file: Path
) -> None:
    theirs = tokenizers.Tokenizer.from_file(str(trimmed_file))
    ours = Tokenizer.from_checkpoint(TokenizerSource("hf", path=trimmed_file))
    assert ours.ranks == trimmed.ranks
    assert ours.special == trimmed.special
    for text in ("The analysis channel.", "naïve 漢字 🎉", "x = 12345;\n\n  y", "I'LL they've"):
        assert ours.encode(text) == theirs.encode(text).ids == trimmed.encode(text)


def test_merges_written_as_texts_are_read(trimmed: Tokenizer, tmp_path: Path) -> None:
    data = trimmed.to_hf()
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    assert Tokenizer.from_checkpoint(TokenizerSource("hf", path=path)).ranks == trimmed.ranks


def test_gguf_lists_give_the_same_tokenizer(trimmed: Tokenizer) -> None:
    ours = Tokenizer.from_checkpoint(as_gguf(trimmed))
    assert ours.ranks == trimmed.ranks
    assert ours.special == trimmed.special


def test_a_source_of_kind_bundled_is_the_shared_instance(full: Tokenizer) -> None:
    assert Tokenizer.from_checkpoint(TokenizerSource("bundled")).ranks == full.ranks


@pytest.mark.long
def test_full_tokenizer_json_round_trip(full: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(full.to_hf()))
    assert Tokenizer.from_checkpoint(TokenizerSource("hf", path=path)).ranks == full.ranks
    theirs = tokenizers.Tokenizer.from_file(str(path))
    text = "Every tool call of the model, naïve 漢字 🎉 12345\n\n  end"
    assert theirs.encode(text).ids == full.encode(text)


Damage = Callable[[dict[str, Any]], Any]


def swap_merges(data: dict[str, Any]) -> None:
    merges = data["model"]["merges"]
    merges[0], merges[-1] = merges[-1], merges[0]


def set_added(entry: Any) -> Damage:
    return lambda data: data.update(added_tokens=[entry])


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (swap_merges, FormatError, "after a merge that gave id.*order of their ids"),
        (
            lambda d: d["model"]["merges"].pop(),
            FormatError,
            "product of no merge.*expected a merge",
        ),
        (lambda d: d["model"]["merges"].append(["q", "漢"]), FormatError, "gives no token"),
        (lambda d: d["model"]["merges"].append([1, 2]), FormatError, "not a pair of texts"),
        (lambda d: d["model"]["vocab"].pop("!"), FormatError, "gives no token|single bytes"),
        (lambda d: d["model"]["vocab"].update({"漢": 5}), FormatError, "byte-level alphabet"),
        (lambda d: d["model"]["vocab"].update({"!": 10**12}), FormatError, "ids go from|merges"),
        (lambda d: d["model"]["vocab"].update({"!": -3}), FormatError, "ids go from -3"),
        (lambda d: d["model"]["vocab"].update({"!": "x"}), FormatError, "not a readable"),
        (lambda d: d.update(model=3), FormatError, "not a readable tokenizer.json"),
        (lambda d: d["model"].update(vocab=[1]), FormatError, "not a readable"),
        (set_added({"id": 0, "content": "<|start|>"}), FormatError, "share.*ids"),
        (set_added(4), FormatError, "not a readable"),
        (lambda d: d["model"].update(type="Unigram"), UnsupportedError, "Unigram.*expected"),
        (lambda d: d.update(pre_tokenizer=None), UnsupportedError, "splits text with"),
        (
            lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\w+"}),
            UnsupportedError,
            "expected byte-level BPE",
        ),
    ],
)
def test_damaged_tokenizer_json_is_a_typed_error(
    trimmed: Tokenizer, tmp_path: Path, damage: Damage, error: type[Exception], message: str
) -> None:
    data = trimmed.to_hf()
    damage(data)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    with pytest.raises(error, match=message):
        Tokenizer.from_checkpoint(TokenizerSource("hf", path=path))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b'{"model": null}'])
def test_a_file_that_is_no_tokenizer_json_is_a_typed_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"not a readable tokenizer\.json"):
        Tokenizer.from_checkpoint(TokenizerSource("hf", path=path))


def test_a_missing_file_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="FileNotFoundError"):
        Tokenizer.from_checkpoint(TokenizerSource("hf", path=tmp_path / "none"))


def test_gguf_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(FormatError, match="1 token types for 2 tokens"):
        Tokenizer.from_checkpoint(TokenizerSource("gguf", tokens=("a", "b"), token_types=(1,)))


@pytest.mark.parametrize("kind", ["hf", "gguf"])
def test_a_source_without_its_data_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match=f"{kind!r} has no"):
        Tokenizer.from_checkpoint(TokenizerSource(kind))


def test_unknown_special_names_and_ids_are_refused(trimmed: Tokenizer) -> None:
    with pytest.raises(UsageError, match=r"'<\|reserved_200013\|>'.*it has <\|startoftext\|>"):
        trimmed.special_id("<|reserved_200013|>")
    with pytest.raises(UsageError, match=f"token id {trimmed.vocab_size} is not"):
        trimmed.decode([trimmed.vocab_size])
    with pytest.raises(UsageError, match="token id -1 is not"):
        trimmed.decode_bytes([-1])
    assert trimmed.piece(-1) is None
    assert trimmed.decode([trimmed.special_id("<|call|>")]) == "<|call|>"


def test_every_byte_has_its_letter() -> None:
    letters = byte_alphabet()
    assert len(set(letters)) == 256
    assert (letters[0x20], letters[ord("a")], letters[0x0A]) == ("Ġ", "a", "Ċ")


@given(st.lists(st.binary(max_size=5)))
def test_bytes_in_pieces_decode_as_in_one(chunks: list[bytes]) -> None:
    stream = Utf8Stream()
    text = "".join(map(stream.feed, chunks)) + stream.close()
    assert text == b"".join(chunks).decode("utf-8", "replace")
    assert text.count("\ufffd") - b"".join(chunks).count("\ufffd".encode()) == len(stream.invalid)


@given(st.text())
def test_text_cut_anywhere_decodes_without_a_replacement(text: str) -> None:
    stream = Utf8Stream()
    assert "".join(stream.feed(bytes([byte])) for byte in text.encode()) == text
    assert (stream.close(), stream.invalid) == ("", [])
