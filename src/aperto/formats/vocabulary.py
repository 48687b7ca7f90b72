"""A vocabulary between tokenizer.json and the lists that GGUF stores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aperto.errors import FormatError
from aperto.formats.checkpoint import TokenizerSource
from aperto.formats.jsonfile import read_object

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""How o200k cuts text into pieces before merging."""


def as_lists(source: TokenizerSource, vocab_size: int) -> TokenizerSource:
    """Return the vocabulary as GGUF lists of exactly `vocab_size` tokens; gaps become unused ones.

    Raises FormatError for a tokenizer.json that is damaged or has ids beyond the vocabulary.
    """
    if source.kind == "hf":
        assert source.path is not None
        source = _lists_of_file(source.path, vocab_size)
    if source.kind == "bundled":
        return source
    if len(source.tokens) > vocab_size:
        raise FormatError(
            f"the vocabulary has {len(source.tokens)} tokens; expected at most {vocab_size}, the "
            "rows of the embedding"
        )
    gap = range(len(source.tokens), vocab_size)
    return TokenizerSource(
        "gguf",
        tokens=(*source.tokens, *(f"[PAD{index}]" for index in gap)),
        merges=source.merges,
        token_types=(*source.token_types, *(UNUSED for _ in gap)),
    )


def _lists_of_file(path: Path, vocab_size: int) -> TokenizerSource:
    document = read_object(path)
    tokens: dict[int, tuple[str, int]] = {}
    try:
        for text, index in document["model"]["vocab"].items():
            tokens[int(index)] = (str(text), NORMAL)
        for item in document.get("added_tokens") or []:
            kind = CONTROL if item["special"] else USER_DEFINED
            tokens[int(item["id"])] = (str(item["content"]), kind)
        merges = [
            m if isinstance(m, str) else " ".join(m) for m in document["model"].get("merges") or []
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise FormatError(
            f"{path}: found no byte-level BPE vocabulary ({problem!r:.80}); expected model.vocab, "
            "model.merges and added_tokens"
        ) from problem
    outside = [index for index in tokens if not 0 <= index < vocab_size]
    if outside:
        raise FormatError(
            f"{path}: token id {outside[0]} lies outside the embedding of {vocab_size} rows"
        )
    end = max(tokens, default=-1) + 1
    rows = [tokens.get(index, (f"[PAD{index}]", UNUSED)) for index in range(end)]
    return TokenizerSource(
        "gguf",
        tokens=tuple(text for text, _ in rows),
        merges=tuple(merges),
        token_types=tuple(kind for _, kind in rows),
    )


def tokenizer_json(source: TokenizerSource) -> str:
    """Build a tokenizer.json from GGUF lists."""
    rows = list(zip(source.tokens, source.token_types, strict=True))
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(index, text, special=kind == CONTROL)
            for index, (text, kind) in enumerate(rows)
            if kind in (CONTROL, USER_DEFINED)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: index for index, (text, kind) in enumerate(rows) if kind == NORMAL},
            "merges": [merge.split(" ") for merge in source.merges],
        },
    }
    return json.dumps(document, ensure_ascii=False)


def _added(index: int, text: str, *, special: bool) -> dict[str, Any]:
    return {
        "id": index,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }
