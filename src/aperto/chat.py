"""Conversation in, events out: where tokens, messages and the engine meet.

Every front end talks to the model through `Chat`: it renders a conversation, submits it, reads
what comes back, and keeps stop strings and reasoning out of the answer. `complete` continues raw
text beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

from aperto.engine import Constraint, Engine, Request, SamplingParams, TokenStream
from aperto.errors import ConfigError
from aperto.harmony import (
    Conversation,
    DeveloperContent,
    Effort,
    FunctionTool,
    Message,
    Role,
    SystemContent,
    TurnRules,
    cut_points,
    render,
    stop_ids,
)
from aperto.harmony.budget import ReasoningBudget, closing_tokens
from aperto.tokenizer import Tokenizer
from aperto.tool_rounds import ToolRounds
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
    from aperto.harmony.grammar import GrammarCompiler
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
        if self.reasoning_tokens is not None and self.reasoning_tokens < 0:
            raise ConfigError(
                f"reasoning_tokens is {self.reasoning_tokens}; expected 0 or more, or None"
            )
        if self.answer_tokens < 0:
            raise ConfigError(f"answer_tokens is {self.answer_tokens}; expected 0 or more")
        if self.max_tool_rounds < 1:
            raise ConfigError(f"max_tool_rounds is {self.max_tool_rounds}; expected 1 or more")
        if self.announce_prefill_s is not None and self.announce_prefill_s <= 0:
            raise ConfigError(
                f"announce_prefill_s is {self.announce_prefill_s}; expected more than 0, or None"
            )


class Chat:
    """Answers conversations with one engine and the tokenizer of its model."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self._stop_ids = frozenset(stop_ids(tokenizer)) | _ids(tokenizer, _END_OF_TEXT)
        self._compiler: GrammarCompiler | None = None
        self._lock = threading.Lock()

    @property
    def compiler(self) -> GrammarCompiler:
        """Makes constraints for this model; built when it is first asked for."""
        from aperto.harmony.grammar import GrammarCompiler  # plain chats do without llguidance

        with self._lock:
            if self._compiler is None:
                self._compiler = GrammarCompiler(self.tokenizer, self.engine.vocab_size)
            return self._compiler

    def stream(
        self, conversation: Conversation, options: ChatOptions | None = None
    ) -> Iterator[ChatEvent]:
        """Answer a conversation; the request is under way when this returns.

        Closing the iterator cancels it. Raises TemplateError, ConfigError, ContextLengthError,
        QueueFullError and EngineClosedError; iterating raises EngineError where it fails later,
        and those above where the answer goes on after a tool.
        """
        rounds = ToolRounds(conversation, options or ChatOptions())
        return self._rounds(rounds, *self._answer(rounds))

    def astream(
        self, conversation: Conversation, options: ChatOptions | None = None
    ) -> AsyncIterator[ChatEvent]:
        """Like `stream`, for `async for`; tools run in threads of their own."""
        rounds = ToolRounds(conversation, options or ChatOptions())
        return self._rounds_async(rounds, *self._answer(rounds))

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
        options = options or ChatOptions()
        return _events_async(*self._continue(prompt, options), options.announce_prefill_s)

    def prompt_ids(
        self, conversation: Conversation, options: ChatOptions | None = None
    ) -> list[int]:
        """The ids that `stream` would submit."""
        prepared = _prepared(conversation, options or ChatOptions())
        return render(prepared, self.tokenizer, history="ended")

    def _rounds(
        self, rounds: ToolRounds, stream: TokenStream, reader: TurnReader
    ) -> Iterator[ChatEvent]:
        yield from rounds.warnings
        while True:
            with contextlib.closing(_events(stream, reader)) as events:
                for event in events:
                    rounds.read(event)
                    if not isinstance(event, Done):
                        yield event
            for call, tool in rounds.calls():
                yield ToolStart(call)
                yield rounds.answered(call, tool.run(call))
            if not rounds.advance():
                yield rounds.done()
                return
            stream, reader = self._answer(rounds)

    async def _rounds_async(
        self, rounds: ToolRounds, stream: TokenStream, reader: TurnReader
    ) -> AsyncIterator[ChatEvent]:
        for warning in rounds.warnings:
            yield warning
        while True:
            every_s = rounds.options.announce_prefill_s
            # Closed with this generator, not when it is collected: the pages are free at once.
            async with contextlib.aclosing(_events_async(stream, reader, every_s)) as events:
                async for event in events:
                    rounds.read(event)
                    if not isinstance(event, Done):
                        yield event
            for call, tool in rounds.calls():
                yield ToolStart(call)
                yield rounds.answered(call, await asyncio.to_thread(tool.run, call))
            if not rounds.advance():
                yield rounds.done()
                return
            stream, reader = self._answer(rounds)

    def _answer(self, rounds: ToolRounds) -> tuple[TokenStream, TurnReader]:
        options = rounds.options
        prompt = self.prompt_ids(rounds.conversation, options)
        constraint = self._constraint(rounds, self._most_tokens(prompt, options))
        stream = self._submit(prompt, options, constraint)
        return stream, TurnReader(self.tokenizer, options.stop, options.logprobs)

    def _continue(
        self, prompt: str | Seq[int], options: ChatOptions
    ) -> tuple[TokenStream, TextReader]:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        reader = TextReader(self.tokenizer, options.stop, options.logprobs)
        return self._submit(ids, options, None), reader

    def _constraint(self, rounds: ToolRounds, max_tokens: int) -> Constraint | None:
        """What restrains the answer: the grammar of its rules, and a limit on reasoning."""
        options, inner = rounds.options, None
        if options.rules is not None:
            from aperto.harmony.grammar import turn_grammar

            grammar = turn_grammar(options.rules)
            rounds.warn(grammar.warnings)
            inner = self.compiler.constraint(grammar)
        until = None
        if options.answer_tokens:
            kept = options.answer_tokens + closing_tokens(self.tokenizer)
            until = max(0, max_tokens - kept)
        if options.reasoning_tokens is None and until is None:
            return inner
        return ReasoningBudget(
            self.tokenizer,
            reasoning_tokens=options.reasoning_tokens,
            until=until,
            inner=inner,
            vocab_size=self.engine.vocab_size,
        )

    def _most_tokens(self, prompt: Seq[int], options: ChatOptions) -> int:
        if options.max_tokens is not None:
            return options.max_tokens
        return max(1, self.engine.limit_tokens - len(prompt))

    def _submit(
        self, prompt: Seq[int], options: ChatOptions, constraint: Constraint | None
    ) -> TokenStream:
        return self.engine.submit(
            Request(
                prompt=prompt,
                max_tokens=self._most_tokens(prompt, options),
                sampling=options.sampling,
                stop_ids=self._stop_ids,
                constraint=constraint,
                num_top_logprobs=options.num_top_logprobs,
                cut_points=cut_points(prompt, self.tokenizer),
            )
        )


def _ids(tokenizer: Tokenizer, name: str) -> frozenset[int]:
    return frozenset(() if name not in tokenizer.special else (tokenizer.special[name],))


def _prepared(conversation: Conversation, options: ChatOptions) -> Conversation:
    """The conversation with the options' effort, instructions and tools in their messages."""
    messages = list(conversation)
    if not messages or messages[0].role is not Role.SYSTEM:
        messages.insert(0, Message(Role.SYSTEM, SystemContent()))
    head = messages[0]
    if isinstance(head.content, SystemContent):
        messages[0] = dataclasses.replace(head, content=_system_with(head.content, options))
    functions = [function for tool in options.tools for function in tool.functions]
    if options.system or functions:
        second = messages[1] if len(messages) > 1 else None
        if second is not None and isinstance(second.content, DeveloperContent):
            content = _developer_with(second.content, options.system, functions)
            messages[1] = dataclasses.replace(second, content=content)
        else:
            content = _developer_with(DeveloperContent(), options.system, functions)
            messages.insert(1, Message(Role.DEVELOPER, content))
    return Conversation(tuple(messages))


def _system_with(content: SystemContent, options: ChatOptions) -> SystemContent:
    if options.effort is not None:
        content = dataclasses.replace(content, effort=Effort(options.effort))
    known = {space.name for space in content.tools}
    spaces = [tool.namespace for tool in options.tools if tool.namespace is not None]
    added = [space for space in spaces if space.name not in known]
    return dataclasses.replace(content, tools=(*content.tools, *added)) if added else content


def _developer_with(
    content: DeveloperContent, instructions: str, functions: Seq[FunctionTool]
) -> DeveloperContent:
    known = {function.name for function in content.tools}
    return dataclasses.replace(
        content,
        instructions="\n\n".join(filter(None, (instructions, content.instructions))) or None,
        tools=(*content.tools, *(f for f in functions if f.name not in known)),
    )


def _events(stream: TokenStream, reader: TurnReader | TextReader) -> Generator[ChatEvent]:
    with stream:
        for token in stream:
            yield from reader.feed(token)
            if reader.is_over:
                break
        stream.close()
        yield from reader.close(stream)


async def _events_async(
    stream: TokenStream, reader: TurnReader | TextReader, announce_s: float | None
) -> AsyncGenerator[ChatEvent]:
    with stream:
        if announce_s is not None:
            while not await stream.aready(announce_s):
                yield PrefillProgress(stream.prefilled_tokens, stream.usage.prompt_tokens)
        async for token in stream:
            for event in reader.feed(token):
                yield event
            if reader.is_over:
                break
        stream.close()
        for event in reader.close(stream):
            yield event
