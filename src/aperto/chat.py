"""Conversation in, events out: where tokens, messages and the engine meet.

Every front end talks to the model through `Chat`: it renders a conversation, submits it, reads
what comes back, and keeps stop strings and reasoning out of the answer. `complete` continues raw
text beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from aperto.engine import Engine, Request, SamplingParams, TokenStream
from aperto.errors import ConfigError
from aperto.harmony import (
    Conversation,
    DeveloperContent,
    Effort,
    Message,
    Role,
    SystemContent,
    TurnRules,
    render,
    stop_ids,
)
from aperto.tokenizer import Tokenizer
from aperto.turn import (
    ChatEvent,
    Done,
    PrefillProgress,
    StopStrings,
    TextReader,
    TokenDrawn,
    ToolEnd,
    ToolStart,
    TurnReader,
    Warning,
)

if TYPE_CHECKING:
    from aperto.tools.tool import Tool

__all__ = [
    "Chat",
    "ChatEvent",
    "ChatOptions",
    "Done",
    "PrefillProgress",
    "StopStrings",
    "TokenDrawn",
    "ToolEnd",
    "ToolStart",
    "Warning",
]

_END_OF_TEXT = "<|endoftext|>"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """How one answer is generated. Raises ConfigError on values out of range."""

    effort: Effort | None = None
    """Reasoning effort; None leaves what the conversation's system message says."""
    system: str = ""
    """Instructions put before those of the conversation's developer message."""
    max_tokens: int | None = None
    """Most tokens to draw, reasoning included; None means up to the end of the context."""
    sampling: SamplingParams = dataclasses.field(default_factory=SamplingParams)
    """How to draw them."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer where they begin; looked for in the final channel only."""
    logprobs: bool = False
    """Whether a TokenDrawn event precedes what each token adds."""
    num_top_logprobs: int = 0
    """Most likely tokens reported with each token, 0 to 20."""
    rules: TurnRules | None = None
    """What the turn may consist of, held by a grammar; None lets the model write as it likes."""
    reasoning_tokens: int | None = None
    """Most tokens in the analysis channel; it is then closed. None sets no limit."""
    answer_tokens: int = 0
    """Of max_tokens, how many are kept for what follows the reasoning."""
    tools: tuple[Tool, ...] = ()
    """Tools that are announced to the model and run when it calls them."""
    max_tool_rounds: int = 16
    """Most times that tools are run; after that the model has to answer."""
    announce_prefill_s: float | None = None
    """Seconds between PrefillProgress events (async only); None sends none."""

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) and text for text in self.stop):
            raise ConfigError(f"stop is {self.stop!r}; expected strings that are not empty")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}; expected 1 or more, or None")


class Chat:
    """Answers conversations with one engine and the tokenizer of its model."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self._stop_ids = frozenset(stop_ids(tokenizer)) | _ids(tokenizer, _END_OF_TEXT)

    def stream(
        self, conversation: Conversation, options: ChatOptions | None = None
    ) -> Iterator[ChatEvent]:
        """Answer a conversation; the request is under way when this returns.

        Closing the iterator cancels it. Raises TemplateError, ConfigError, ContextLengthError,
        QueueFullError and EngineClosedError; iterating raises EngineError where it fails later.
        """
        return _events(*self._answer(conversation, options or ChatOptions()))

    def astream(
        self, conversation: Conversation, options: ChatOptions | None = None
    ) -> AsyncIterator[ChatEvent]:
        """Like `stream`, for `async for`."""
        return _events_async(*self._answer(conversation, options or ChatOptions()))

    def complete(
        self, prompt: str | Seq[int], options: ChatOptions | None = None
    ) -> Iterator[ChatEvent]:
        """Continue raw text or ids, without messages or channels: text events and Done.

        Special tokens that are drawn do not show up in the text. Raises what `stream` raises.
        """
        return _events(*self._continue(prompt, options or ChatOptions()))

    def acomplete(
        self, prompt: str | Seq[int], options: ChatOptions | None = None
    ) -> AsyncIterator[ChatEvent]:
        """Like `complete`, for `async for`."""
        return _events_async(*self._continue(prompt, options or ChatOptions()))

    def prompt_ids(
        self, conversation: Conversation, options: ChatOptions | None = None
    ) -> list[int]:
        """The ids that `stream` would submit."""
        prepared = _prepared(conversation, options or ChatOptions())
        return render(prepared, self.tokenizer, history="ended")

    def _answer(
        self, conversation: Conversation, options: ChatOptions
    ) -> tuple[TokenStream, TurnReader]:
        stream = self._submit(self.prompt_ids(conversation, options), options)
        return stream, TurnReader(self.tokenizer, options.stop, options.logprobs)

    def _continue(
        self, prompt: str | Seq[int], options: ChatOptions
    ) -> tuple[TokenStream, TextReader]:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return self._submit(ids, options), TextReader(
            self.tokenizer, options.stop, options.logprobs
        )

    def _submit(self, prompt: Seq[int], options: ChatOptions) -> TokenStream:
        max_tokens = options.max_tokens
        if max_tokens is None:
            max_tokens = max(1, self.engine.limit_tokens - len(prompt))
        return self.engine.submit(
            Request(
                prompt=prompt,
                max_tokens=max_tokens,
                sampling=options.sampling,
                stop_ids=self._stop_ids,
                num_top_logprobs=options.num_top_logprobs,
            )
        )


def _ids(tokenizer: Tokenizer, name: str) -> frozenset[int]:
    return frozenset(() if name not in tokenizer.special else (tokenizer.special[name],))


def _prepared(conversation: Conversation, options: ChatOptions) -> Conversation:
    """The conversation with the options' effort and instructions in their messages."""
    messages = list(conversation)
    if not messages or messages[0].role is not Role.SYSTEM:
        messages.insert(0, Message(Role.SYSTEM, SystemContent()))
    head = messages[0]
    if options.effort is not None and isinstance(head.content, SystemContent):
        content = dataclasses.replace(head.content, effort=Effort(options.effort))
        messages[0] = dataclasses.replace(head, content=content)
    if options.system:
        second = messages[1] if len(messages) > 1 else None
        if second is not None and isinstance(second.content, DeveloperContent):
            both = "\n\n".join(filter(None, (options.system, second.content.instructions)))
            content_ = dataclasses.replace(second.content, instructions=both)
            messages[1] = dataclasses.replace(second, content=content_)
        else:
            messages.insert(1, Message(Role.DEVELOPER, DeveloperContent(options.system)))
    return Conversation(tuple(messages))


def _events(stream: TokenStream, reader: TurnReader | TextReader) -> Iterator[ChatEvent]:
    with stream:
        for token in stream:
            yield from reader.feed(token)
            if reader.is_over:
                break
        stream.close()
        yield from reader.close(stream)


async def _events_async(
    stream: TokenStream, reader: TurnReader | TextReader
) -> AsyncIterator[ChatEvent]:
    with stream:
        async for token in stream:
            for event in reader.feed(token):
                yield event
            if reader.is_over:
                break
        stream.close()
        for event in reader.close(stream):
            yield event
