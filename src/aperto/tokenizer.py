"""Text to token ids and back, from the checkpoint's own ranks and never from the network.

Special tokens are looked up by name here and nowhere else; text never encodes to one.
"""

from __future__ import annotations

import binascii
import functools
import gzip
import hashlib
import importlib.resources
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tiktoken

from aperto.errors import ConfigError, FormatError, UnsupportedError, UsageError
from aperto.formats.checkpoint import TokenizerSource
from aperto.formats.vocabulary import PATTERN

T = TypeVar("T")

BUNDLED_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
"""Hash of the unpacked o200k_base ranks shipped in the package."""

HARMONY_SPECIAL = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
)
"""The special tokens that have a meaning in gpt-oss checkpoints."""

_BUNDLED_IDS = (199998, 199999, 200002, 200003, 200005, 200006, 200007, 200008, 200012)
_BUNDLED_VOCAB_SIZE = 201088
_MAX_VOCAB_SIZE = 1 << 24
_GGUF_NORMAL, _GGUF_BYTE = 1, 6
# The piece regex backtracks once a character in a run of white space and gives up near a million.
_MAX_SPACE_RUN = 200_000
_LONG_SPACE = re.compile(rf"\s{{{_MAX_SPACE_RUN}}}")


class Tokenizer:
    """Byte-level BPE whose token id is its merge rank.

    Args:
        ranks: bytes of each ordinary token to its id; the lower id merges first.
        special: name of each special token to its id.

    Raises:
        FormatError: a single byte has no token, or an id is used twice.
    """

    def __init__(self, ranks: Mapping[bytes, int], special: Mapping[str, int]) -> None:
        self.ranks = dict(ranks)
        self.special = dict(sorted(special.items(), key=lambda item: item[1]))
        self._pieces = _piece_table(self.ranks, self.special)
        self._special_ids = frozenset(self.special.values())
        self._encoding = tiktoken.Encoding(
            "aperto", pat_str=PATTERN, mergeable_ranks=self.ranks, special_tokens={}
        )

    @classmethod
    def from_checkpoint(cls, source: TokenizerSource) -> Tokenizer:
        """Build the tokenizer that a checkpoint carries.

        Raises:
            FormatError: the tokenizer data is damaged or its merges contradict its ids.
            UnsupportedError: it is another kind of tokenizer.
        """
        if source.kind == "hf":
            return cls._from_hf(_given(source.path, "path", source.kind))
        if source.kind == "gguf":
            return cls._from_gguf(source)
        return cls.bundled()

    @classmethod
    def bundled(cls) -> Tokenizer:
        """o200k_harmony, from the ranks shipped in the package; one shared instance."""
        return _bundled()

    @classmethod
    def _from_hf(cls, path: Path) -> Tokenizer:
        try:
            data = json.loads(path.read_bytes())
            model, added = data["model"], data.get("added_tokens") or []
            special = {str(token["content"]): int(token["id"]) for token in added}
            vocab = {text: int(i) for text, i in model["vocab"].items() if text not in special}
            merges = list(model.get("merges") or [])
            patterns = _split_patterns(data.get("pre_tokenizer") or {})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(
                f"{path}: not a readable tokenizer.json ({type(error).__name__}: {error}); "
                "expected a JSON object with model.vocab, model.merges and added_tokens; "
                "download the file again"
            ) from error
        if model.get("type", "BPE") != "BPE" or patterns != [PATTERN]:
            raise UnsupportedError(
                f"{path}: a {model.get('type', 'BPE')} tokenizer that splits text with "
                f"{patterns}; expected byte-level BPE that splits like o200k (gpt-oss)"
            )
        _check_merges(vocab, merges, str(path))
        return cls(_decode_vocab(vocab, str(path)), special)

    @classmethod
    def _from_gguf(cls, source: TokenizerSource) -> Tokenizer:
        tokens = _given(source.tokens or None, "tokens", source.kind)
        types = source.token_types or (_GGUF_NORMAL,) * len(tokens)
        if len(types) != len(tokens):
            raise FormatError(
                f"GGUF tokenizer: {len(types)} token types for {len(tokens)} tokens; "
                "expected one each; the file is damaged"
            )
        ordinary: dict[str, int] = {}
        special: dict[str, int] = {}
        for token_id, (text, kind) in enumerate(zip(tokens, types, strict=True)):
            (ordinary if kind in (_GGUF_NORMAL, _GGUF_BYTE) else special)[text] = token_id
        _check_merges(ordinary, source.merges, "GGUF tokenizer")
        return cls(_decode_vocab(ordinary, "GGUF tokenizer"), special)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return len(self._pieces)

    def special_id(self, name: str) -> int:
        """Id of a special token such as ``<|start|>``.

        Raises:
            UsageError: this vocabulary has no such token.
        """
        try:
            return self.special[name]
        except KeyError:
            known = ", ".join(name for name in HARMONY_SPECIAL if name in self.special)
            raise UsageError(
                f"no special token {name!r} in this vocabulary; it has {known or 'none'}"
            ) from None

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a special token's."""
        return token_id in self._special_ids

    def encode(self, text: str) -> list[int]:
        """Ids of the text; text that looks like a special token stays text.

        Lone surrogates become the replacement character.
        """
        if len(text) < _MAX_SPACE_RUN or not _LONG_SPACE.search(text):
            return self._encoding.encode_ordinary(text)
        ids: list[int] = []
        start = 0
        for run in _LONG_SPACE.finditer(text):
            ids += self._encoding.encode_ordinary(text[start : run.end()])
            start = run.end()
        return ids + self._encoding.encode_ordinary(text[start:])

    def piece(self, token_id: int) -> bytes | None:
        """Bytes of one token, a special one's name; None for an id outside the vocabulary."""
        return self._pieces[token_id] if 0 <= token_id < len(self._pieces) else None

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Bytes of the tokens; special tokens give their names.

        Raises:
            UsageError: an id is outside the vocabulary.
        """
        pieces = []
        for token_id in ids:
            piece = self.piece(token_id)
            if piece is None:
                raise UsageError(
                    f"token id {token_id} is not in this vocabulary; expected 0.."
                    f"{self.vocab_size - 1}"
                )
            pieces.append(piece)
        return b"".join(pieces)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the tokens; bytes that are not UTF-8 become the replacement character."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def to_hf(self) -> dict[str, Any]:
        """The contents of a ``tokenizer.json`` that gives the same ids."""
        letters = byte_alphabet()
        name = {token: "".join(letters[byte] for byte in token) for token in self.ranks}
        merges = [
            [name[left], name[right]]
            for token in sorted(self.ranks, key=self.ranks.__getitem__)
            if len(token) > 1
            for left, right in _splits(self.ranks, token)
        ]
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [_added_token(text, i) for text, i in self.special.items()],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {
                        "type": "Split",
                        "pattern": {"Regex": PATTERN},
                        "behavior": "Isolated",
                        "invert": False,
                    },
                    _BYTE_LEVEL | {"use_regex": False},
                ],
            },
            "post_processor": None,
            "decoder": _BYTE_LEVEL | {"use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {text: self.ranks[token] for token, text in name.items()},
                "merges": merges,
            },
        }


_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


class Utf8Stream:
    """Decodes bytes that arrive in pieces which may end inside a character."""

    def __init__(self) -> None:
        self.invalid: list[bytes] = []
        """Bytes that were not text, an entry a replacement character; the reader may clear it."""
        self._pending = b""

    def feed(self, data: bytes) -> str:
        """The text that is complete so far."""
        if self._pending:
            data, self._pending = self._pending + data, b""
        try:
            return data.decode()
        except UnicodeDecodeError:
            return self._feed_broken(data)

    def close(self) -> str:
        """The replacement character for a character that never ended, if there is one."""
        if not self._pending:
            return ""
        self.invalid.append(self._pending)
        self._pending = b""
        return "\ufffd"

    def _feed_broken(self, data: bytes) -> str:
        text = ""
        while True:
            try:
                return text + data.decode()
            except UnicodeDecodeError as error:
                text += data[: error.start].decode()
                if error.end == len(data) and error.reason == "unexpected end of data":
                    self._pending = data[error.start :]
                    return text
                self.invalid.append(data[error.start : error.end])
                text += "\ufffd"
                data = data[error.end :]


@functools.cache
def byte_alphabet() -> tuple[str, ...]:
    """The printable character that stands for each byte in GPT-2 style vocabularies."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    letters, spare = [], 0x100
    for byte in range(256):
        letters.append(chr(byte if byte in printable else spare))
        spare += byte not in printable
    return tuple(letters)


@functools.cache
def _bundled() -> Tokenizer:
    packed = importlib.resources.files("aperto") / "data" / "o200k_base.tiktoken.gz"
    data = gzip.decompress(packed.read_bytes())
    found = hashlib.sha256(data).hexdigest()
    if found != BUNDLED_SHA256:
        raise FormatError(
            f"bundled o200k_base ranks have SHA-256 {found}; expected {BUNDLED_SHA256}; "
            "reinstall aperto"
        )
    # The hash vouches that line number and rank are the same.
    ranks = {token: i for i, token in enumerate(map(binascii.a2b_base64, data.split()[::2]))}
    special = dict(zip(HARMONY_SPECIAL, _BUNDLED_IDS, strict=True))
    for token_id in range(len(ranks), _BUNDLED_VOCAB_SIZE):
        if token_id not in _BUNDLED_IDS:
            special[f"<|reserved_{token_id}|>"] = token_id
    return Tokenizer(ranks, special)


def _given(value: T | None, field: str, kind: str) -> T:
    if value is None:
        raise ConfigError(f"tokenizer source of kind {kind!r} has no {field}; expected it set")
    return value


def _piece_table(ranks: Mapping[bytes, int], special: Mapping[str, int]) -> list[bytes | None]:
    missing = [byte for byte in range(256) if bytes((byte,)) not in ranks]
    if missing:
        raise FormatError(
            f"tokenizer: {len(missing)} single bytes have no token, the first 0x{missing[0]:02x}; "
            "expected all 256; the vocabulary is damaged"
        )
    ids = [*ranks.values(), *special.values()]
    if min(ids) < 0 or max(ids) >= _MAX_VOCAB_SIZE:
        raise FormatError(
            f"tokenizer: ids go from {min(ids)} to {max(ids)}; expected 0.."
            f"{_MAX_VOCAB_SIZE - 1}; the vocabulary is damaged"
        )
    pieces: list[bytes | None] = [None] * (max(ids) + 1)
    for token, token_id in ranks.items():
        pieces[token_id] = token
    for name, token_id in special.items():
        pieces[token_id] = name.encode()
    used = len(pieces) - pieces.count(None)
    if used != len(ranks) + len(special):
        raise FormatError(
            f"tokenizer: {len(ranks) + len(special)} tokens share {used} ids; "
            "expected one id a token; the vocabulary is damaged"
        )
    return pieces


def _decode_vocab(vocab: Mapping[str, int], where: str) -> dict[bytes, int]:
    # Latin-1 holds every byte value once, so one translate call undoes the alphabet.
    table = {ord(letter): byte for byte, letter in enumerate(byte_alphabet())}
    try:
        return {text.translate(table).encode("latin-1"): i for text, i in vocab.items()}
    except UnicodeEncodeError as error:
        raise FormatError(
            f"{where}: token {error.object!r} is not written in the byte-level alphabet; "
            "expected a GPT-2 style vocabulary"
        ) from error


def _check_merges(vocab: Mapping[str, int], merges: Sequence[Any], where: str) -> None:
    """Refuse merges that would not apply in the order of the ids they produce."""
    try:
        products = [
            entry.replace(" ", "") if isinstance(entry, str) else "".join(entry) for entry in merges
        ]
    except TypeError as error:
        raise FormatError(
            f"{where}: a merge is not a pair of texts ({error}); the file is damaged"
        ) from error
    ids = [vocab.get(product, -1) for product in products]
    if -1 in ids:
        raise FormatError(
            f"{where}: merge {merges[ids.index(-1)]!r} gives no token of the vocabulary; "
            "expected every merge to give one; the file is damaged"
        )
    for entry, token_id, previous in zip(merges[1:], ids[1:], ids, strict=False):
        if token_id < previous:
            raise FormatError(
                f"{where}: merge {entry!r} gives id {token_id} after a merge that gave id "
                f"{previous}; expected merges in the order of their ids; this is not an "
                "o200k-style vocabulary"
            )
    made = set(ids)
    orphans = [text for text, token_id in vocab.items() if len(text) > 1 and token_id not in made]
    if orphans:
        raise FormatError(
            f"{where}: {len(orphans)} tokens are the product of no merge, the first "
            f"{orphans[0]!r} (id {vocab[orphans[0]]}); expected a merge for each"
        )


def _split_patterns(pre_tokenizer: Mapping[str, Any]) -> list[str]:
    steps = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    return [step["pattern"].get("Regex") for step in steps if step.get("type") == "Split"]


def _splits(ranks: Mapping[bytes, int], token: bytes) -> list[tuple[bytes, bytes]]:
    pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
    return sorted(
        (pair for pair in pairs if pair[0] in ranks and pair[1] in ranks),
        key=lambda pair: (ranks[pair[0]], ranks[pair[1]]),
    )


def _added_token(text: str, token_id: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": text, **flags, "special": True}


def write_bundled(folder: Path, vocab_size: int) -> TokenizerSource | None:
    """Write the bundled o200k_harmony as `folder`/tokenizer.json, for layouts that must carry it.

    Returns None for a model with another vocabulary size, which is not o200k_harmony's.
    """
    if vocab_size != _BUNDLED_VOCAB_SIZE:
        return None
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(Tokenizer.bundled().to_hf()))
    return TokenizerSource("hf", path=file)
