"""Logprobs in the shape of OpenAI's first completions API, which log-likelihood harnesses read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aperto.engine import Token
from aperto.server.choices import finite
from aperto.tokenizer import Tokenizer, Utf8Stream


def token_name(tokenizer: Tokenizer, token_id: int) -> str:
    """Text of one token; of part of a character, its bytes as "bytes:\\xe2\\x82"."""
    piece = tokenizer.piece(token_id) or b""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


class LegacyLogprobs:
    """Collects tokens, their logprobs and their offsets in the text.

    Args:
        tokenizer: the model's.
        num_top: how many likely tokens are told with each; 0 tells none.
    """

    def __init__(self, tokenizer: Tokenizer, num_top: int) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._offset = 0
        self._utf8 = Utf8Stream()
        self._entries: list[tuple[str, float | None, dict[str, float] | None, int]] = []

    def add_prompt(self, ids: Sequence[int], known: Sequence[Token | None]) -> None:
        """The tokens of a prompt; nothing is known of the first, which nothing comes before."""
        for token_id, token in zip(ids, known, strict=True):
            if token is None:
                self._append(token_id, None, None)
            else:
                self.add(token)

    def add(self, token: Token) -> None:
        """A token with its logprob."""
        logprob = finite(token.logprob)
        top = {self._name(i): finite(value) for i, value in token.top_logprobs[: self._num_top]}
        # Harnesses ask whether a token was the likeliest by looking for it among these.
        top.setdefault(self._name(token.id), logprob)
        self._append(token.id, logprob, top)

    def take(self) -> dict[str, Any]:
        """What was collected since this was last asked."""
        entries, self._entries = self._entries, []
        return {
            "tokens": [entry[0] for entry in entries],
            "token_logprobs": [entry[1] for entry in entries],
            "top_logprobs": [entry[2] for entry in entries] if self._num_top else None,
            "text_offset": [entry[3] for entry in entries],
        }

    def _append(self, token_id: int, logprob: float | None, top: dict[str, float] | None) -> None:
        self._entries.append((self._name(token_id), logprob, top, self._offset))
        self._offset += len(self._utf8.feed(self._tokenizer.piece(token_id) or b""))

    def _name(self, token_id: int) -> str:
        return token_name(self._tokenizer, token_id)
