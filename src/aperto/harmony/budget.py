"""A limit on reasoning: after so many tokens the analysis is closed and none is opened again."""

from __future__ import annotations

import codecs
import functools
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from aperto.harmony.messages import ANALYSIS, FINAL, Role
from aperto.tokenizer import Tokenizer

Mask = NDArray[np.uint32]  # [ceil(vocab / 32)], least significant bit first

_LONGEST_CHARACTER = 4


class Inner(Protocol):
    """The constraint below: an `aperto.engine.Constraint`."""

    def mask(self) -> Mask | None:
        """Allowed next tokens; None allows all."""
        ...

    def accept(self, token_id: int) -> None:
        """Advance over a token."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether nothing may follow."""
        ...


def closing_tokens(tokenizer: Tokenizer) -> int:
    """Tokens from the end of an analysis to the first of the answer, and the one that ends it."""
    words = tokenizer.encode(Role.ASSISTANT), tokenizer.encode(FINAL)
    return 5 + sum(map(len, words))  # end, start, channel, message, return


class ReasoningBudget:
    """Ends reasoning in time; a constraint around another one, or around none.

    Args:
        tokenizer: the checkpoint's tokenizer.
        reasoning_tokens: most tokens of text in the analysis channel; None sets no limit.
        until: tokens drawn after which no more reasoning is allowed; None sets no limit.
        inner: what else restrains the answer.
        vocab_size: rows of the model's head, where it has more than the tokenizer has ids.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        reasoning_tokens: int | None = None,
        until: int | None = None,
        inner: Inner | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self._inner = inner
        self._reasoning_tokens = reasoning_tokens
        self._until = until
        self._piece = tokenizer.piece
        self._names = {token_id: name for name, token_id in tokenizer.special.items()}
        self._masks = _masks(tokenizer, max(vocab_size or 0, tokenizer.vocab_size))
        self._num_reasoning = 0
        self._num_drawn = 0
        self._header: str | None = ""  # text of the open header; None inside content
        self._marker = ""
        self._is_reasoning = False
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_waited = 0

    @property
    def is_done(self) -> bool:
        """Whether nothing may follow."""
        return self._inner is not None and self._inner.is_done

    @property
    def is_spent(self) -> bool:
        """Whether no more reasoning is allowed."""
        limits = (self._reasoning_tokens, self._num_reasoning), (self._until, self._num_drawn)
        return any(limit is not None and spent >= limit for limit, spent in limits)

    def mask(self) -> Mask | None:
        """Allowed next tokens: [ceil(vocab / 32)]; None allows all."""
        inner = None if self._inner is None else self._inner.mask()
        if not self.is_spent:
            return inner
        if self._is_reasoning:
            return self._closing(inner)
        if self._marker == "<|channel|>" and self._header is not None and not self._header.strip():
            return self._masks[1] if inner is None else inner & self._masks[1]
        return inner

    def accept(self, token_id: int) -> None:
        """Advance over a drawn token."""
        if self._inner is not None:
            self._inner.accept(token_id)
        self._num_drawn += 1
        name = self._names.get(token_id)
        if name is not None:
            self._special(name)
            return
        piece = self._piece(token_id) or b""
        if self._header is not None:
            self._header += piece.decode("utf-8", "replace")
        elif self._is_reasoning:
            self._num_reasoning += 1
            self._num_waited += self.is_spent
            self._utf8.decode(piece)

    def _closing(self, inner: Mask | None) -> Mask | None:
        """Nothing but the end of the message, or the rest of a character that has begun."""
        end: Mask = self._masks[0]
        if inner is not None:
            return end & inner if (end & inner).any() else inner
        is_inside = bool(self._utf8.getstate()[0]) and self._num_waited < _LONGEST_CHARACTER
        return None if is_inside else end

    def _special(self, name: str) -> None:
        if name == "<|message|>":
            header = self._header or ""
            self._is_reasoning = ANALYSIS in header.split() and "to=" not in header
            self._header = None
            self._utf8.reset()
        elif name in ("<|start|>", "<|end|>", "<|channel|>"):
            # A channel marker keeps what stood before it: a recipient makes it a call.
            keeps = name == "<|channel|>" and self._header is not None and "to=" in self._header
            self._header = f"{self._header} " if keeps else ""
            self._is_reasoning = False
        self._marker = name


@functools.lru_cache(maxsize=8)
def _masks(tokenizer: Tokenizer, vocab_size: int) -> tuple[Mask, Mask]:
    """The end of a message alone, and everything that cannot begin the word "analysis"."""
    end = np.zeros(-(-vocab_size // 32) * 32, dtype=bool)
    end[tokenizer.special_id("<|end|>")] = True
    other = np.zeros_like(end)
    for token_id in range(tokenizer.vocab_size):
        piece = tokenizer.piece(token_id)
        other[token_id] = piece is not None and not _begins_analysis(piece)
    return _packed(end), _packed(other)


def _begins_analysis(piece: bytes) -> bool:
    text, word = piece.strip().lower(), ANALYSIS.encode()
    return bool(text) and (word.startswith(text) or text.startswith(word))


def _packed(bits: NDArray[np.bool_]) -> Mask:
    return np.packbits(bits, bitorder="little").view(np.uint32)
