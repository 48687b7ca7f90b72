"""One answer's events as the pieces of OpenAI's chat message."""

from __future__ import annotations

import dataclasses
import math
import secrets
from typing import Any, Literal

from aperto.chat import ChatEvent, Done, PrefillProgress, TokenDrawn, Warning
from aperto.harmony import ANALYSIS, COMMENTARY, MessageEnd, MessageStart, TextDelta
from aperto.server.convert import FUNCTIONS
from aperto.server.recall import Recall
from aperto.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "tool_calls"]
_LEAST_LOGPROB = -9999.0


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """One step of a choice."""

    delta: dict[str, Any]
    """What is added to the message, in the shape of a stream's delta."""
    logprobs: list[dict[str, Any]] | None = None
    """Logprobs of the content's tokens."""
    prefill: PrefillProgress | None = None
    """How far the prompt is, in a piece that adds nothing."""


def new_call_id() -> str:
    """Id of a tool call; nobody can guess one."""
    return f"call_{secrets.token_hex(12)}"


class ChoiceReader:
    """Turns events into pieces, and keeps the whole message.

    Args:
        tokenizer: the model's, for the texts of tokens.
        recall: where the reasoning before calls is kept.
        logprobs: whether content comes with logprobs.
        show_reasoning: whether reasoning is passed on.
        pure_content: whether the content must be the final message alone, as JSON must.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        recall: Recall,
        *,
        logprobs: bool = False,
        show_reasoning: bool = True,
        pure_content: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._recall = recall
        self._logprobs = logprobs
        self._show_reasoning = show_reasoning
        self._pure_content = pure_content
        self._start: MessageStart | None = None
        self._thoughts: list[str] = []
        self._pending: list[dict[str, Any]] = []
        self._separator = ""
        self.content: list[str] = []
        """The answer's text, in pieces."""
        self.reasoning: list[str] = []
        """The reasoning that is shown, in pieces."""
        self.calls: list[dict[str, Any]] = []
        """Calls for the client to make."""
        self.token_logprobs: list[dict[str, Any]] = []
        """Logprobs of the content's tokens."""
        self.warnings: list[str] = []
        """What was not done quite as asked."""
        self.done: Done | None = None
        """How it ended, once it has."""

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended, in OpenAI's words."""
        reason = self.done.finish_reason if self.done else "stop"
        if reason == "length":
            return "length"
        # Models also end a call as if it were a message; clients look for calls by this word alone.
        return "tool_calls" if self.calls else "stop"

    def feed(self, event: ChatEvent) -> Piece | None:
        """The piece that an event leads to, if any."""
        match event:
            case MessageStart():
                return self._open(event)
            case TextDelta():
                return self._text(event.text)
            case MessageEnd():
                self._close()
            case TokenDrawn():
                self._note(event)
            case PrefillProgress():
                return Piece({}, prefill=event)
            case Warning():
                self.warnings.append(event.text)
            case Done():
                self.done = event
        return None

    def message(self) -> dict[str, Any]:
        """The whole message."""
        content = "".join(self.content)
        reasoning = "".join(self.reasoning) or None
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content if content or not self.calls else None,
            "refusal": None,
            "reasoning": reasoning,
            "reasoning_content": reasoning,
        }
        if self.calls:
            message["tool_calls"] = self.calls
        return message

    def _open(self, start: MessageStart) -> Piece | None:
        self._start = start
        self._pending.clear()
        if start.recipient is not None:
            return self._open_call(start.recipient)
        if self._is_content() and self.content:
            self._separator = "\n\n"  # a preamble came before the answer
        return None

    def _open_call(self, recipient: str) -> Piece:
        call_id = new_call_id()
        function = {"name": recipient.removeprefix(FUNCTIONS), "arguments": ""}
        call: dict[str, Any] = {"id": call_id, "type": "function", "function": function}
        self._recall.remember(call_id, "".join(self._thoughts))
        self.calls.append({**call, "function": dict(function)})
        return Piece({"tool_calls": [{"index": len(self.calls) - 1, **call}]})

    def _is_content(self) -> bool:
        """Whether the current message is for the user: the answer, or words before a call."""
        if self._start is None or self._start.recipient is not None:
            return False
        channel = self._start.channel
        return channel != ANALYSIS and not (self._pure_content and channel == COMMENTARY)

    def _text(self, text: str) -> Piece | None:
        if self._start is not None and self._start.recipient is not None:
            self.calls[-1]["function"]["arguments"] += text
            part = {"index": len(self.calls) - 1, "function": {"arguments": text}}
            return Piece({"tool_calls": [part]})
        if self._is_content():
            text, self._separator = self._separator + text, ""
            self.content.append(text)
            return Piece({"content": text}, self._taken())
        self._thoughts.append(text)
        if not self._show_reasoning:
            return None
        self.reasoning.append(text)
        return Piece({"reasoning": text, "reasoning_content": text})

    def _close(self) -> None:
        self._start = None
        self._pending.clear()

    def _note(self, drawn: TokenDrawn) -> None:
        token = drawn.token
        if self._logprobs and self._is_content() and not self._tokenizer.is_special(token.id):
            entry = token_entry(self._tokenizer, token.id, token.logprob)
            entry["top_logprobs"] = [token_entry(self._tokenizer, *t) for t in token.top_logprobs]
            self._pending.append(entry)

    def _taken(self) -> list[dict[str, Any]] | None:
        """Logprobs of the tokens that the current text came from."""
        if not self._logprobs:
            return None
        taken, self._pending = self._pending, []
        self.token_logprobs += taken
        return taken


def token_entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    """A token in OpenAI's logprobs: text, logprob, bytes."""
    piece = tokenizer.piece(token_id) or b""
    return {
        "token": piece.decode("utf-8", "replace"),
        "logprob": finite(logprob),
        "bytes": list(piece),
    }


def finite(logprob: float) -> float:
    """A logprob that JSON can carry."""
    return logprob if math.isfinite(logprob) else _LEAST_LOGPROB


def usage_of(answers: list[Done]) -> dict[str, Any]:
    """Tokens of some answers to one prompt, which is counted once."""
    prompt = answers[0].usage.prompt_tokens if answers else 0
    cached = answers[0].usage.cached_tokens if answers else 0
    completion = sum(done.usage.completion_tokens for done in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {
            "reasoning_tokens": sum(done.reasoning_tokens for done in answers)
        },
    }
