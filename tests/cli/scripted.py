"""A stand-in for `aperto.chat.Chat` that replays harmony text, token by token."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

from aperto.chat import ChatEvent, ChatOptions, Done
from aperto.engine import Timings, Usage
from aperto.harmony import Conversation, StreamParser
from aperto.tokenizer import Tokenizer

ANSWER = (
    "<|channel|>analysis<|message|>17 * 23 is 17 * 20 + 51.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>It is **391**.<|return|>"
)
CALL = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>'


def harmony_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of text in which special tokens are written by name."""
    ids: list[int] = []
    for piece in re.split(r"(<\|[a-z]+\|>)", text):
        special = tokenizer.special.get(piece)
        ids += tokenizer.encode(piece) if special is None else [special]
    return ids


class ScriptedChat:
    """Gives the texts of `script` in turn; keeps what it was asked with."""

    def __init__(
        self,
        *script: str,
        delay_s: float = 0.0,
        before_token: Callable[[int], None] = lambda index: None,
    ) -> None:
        self.script = list(script)
        self.delay_s = delay_s
        self.before_token = before_token
        self.asked: list[tuple[Conversation, ChatOptions]] = []
        self.num_closed = 0
        self.tokenizer = Tokenizer.bundled()

    def stream(
        self, conversation: Conversation, options: ChatOptions | None = None
    ) -> Iterator[ChatEvent]:
        options = options or ChatOptions()
        self.asked.append((conversation, options))
        return self._events(harmony_ids(self.script.pop(0), self.tokenizer), options)

    def _events(self, ids: list[int], options: ChatOptions) -> Iterator[ChatEvent]:
        parser = StreamParser(self.tokenizer)
        try:
            for index, token in enumerate(ids):
                self.before_token(index)
                time.sleep(self.delay_s)
                yield from parser.feed(token)
            yield from parser.close()
        finally:
            self.num_closed += 1
        calls = any(message.recipient for message in parser.messages)
        yield Done(
            finish_reason="call" if calls else "stop",
            stop=None,
            seed=options.sampling.seed or 0,
            usage=Usage(prompt_tokens=70, cached_tokens=6, completion_tokens=len(ids)),
            reasoning_tokens=10,
            timings=Timings(queued_s=0.0, prefill_s=0.1, decode_s=2.0, decode_tokens=20),
        )
