"""An answer that stops for tools and goes on: what was said, what is left, what it took in all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from aperto.engine import Timings, Usage
from aperto.harmony import CallRule, Conversation, Message, MessageEnd, TurnRules
from aperto.harmony.rules import FUNCTIONS_PREFIX
from aperto.turn import ChatEvent, Done, ToolEnd, Warning

if TYPE_CHECKING:
    from aperto.chat import ChatOptions
    from aperto.tools.tool import Tool


class ToolRounds:
    """The state of one answer between its turns.

    Args:
        conversation: what was said before.
        options: how the answer is generated; its tools are run.
    """

    def __init__(self, conversation: Conversation, options: ChatOptions) -> None:
        self.conversation = conversation
        """What the next turn answers."""
        self.options = options
        """How it is generated: with what is left of the limits."""
        self.warnings: list[Warning] = []
        """What is not done quite as asked, each once."""
        self._max_tokens = options.max_tokens
        self._reasoning_tokens = options.reasoning_tokens
        self._messages: list[Message] = []
        self._dones: list[Done] = []
        self._num_rounds = 0
        self._is_answered = False
        self._is_cut = False
        if options.rules is not None and options.tools:
            self._set_rules(_with_tools(options.rules, options.tools))

    def warn(self, texts: Iterable[str]) -> None:
        """Note what a grammar leaves open."""
        for text in texts:
            if Warning(text) not in self.warnings:
                self.warnings.append(Warning(text))

    def read(self, event: ChatEvent) -> None:
        """Take note of an event of the running turn."""
        if isinstance(event, MessageEnd):
            self._messages.append(event.message)
        elif isinstance(event, Done):
            self._dones.append(event)

    def calls(self) -> Sequence[tuple[Message, Tool]]:
        """The calls of the turn that has ended which its tools answer, in order."""
        messages, self._messages = self._messages, []
        if self._dones[-1].finish_reason != "call" or self._is_last:
            self._is_answered = False
            return ()
        self.conversation = self.conversation.plus(*messages)
        calls = [message for message in messages if message.recipient is not None]
        found = [(call, tool) for call in calls for tool in self._tools_for(call)[:1]]
        self._is_answered = len(found) == len(calls) > 0
        return found

    def answered(self, call: Message, results: tuple[Message, ...]) -> ToolEnd:
        """Take in what a tool said."""
        self.conversation = self.conversation.plus(*results)
        return ToolEnd(call, results)

    def advance(self) -> bool:
        """Make ready for the next turn; False where the answer is over."""
        if not self._is_answered:
            return False
        self._num_rounds += 1
        usage = self._usage()
        options = dataclasses.replace(
            self.options,
            # The draws of each turn differ all the same: they depend on the position, too.
            sampling=dataclasses.replace(self.options.sampling, seed=self._dones[0].seed),
        )
        if self._max_tokens is not None:
            left = self._max_tokens - usage.completion_tokens
            self._is_cut = left < 1
            if self._is_cut:
                return False
            options = dataclasses.replace(options, max_tokens=left)
        if self._reasoning_tokens is not None:
            spent = sum(done.reasoning_tokens for done in self._dones)
            left = max(0, self._reasoning_tokens - spent)
            options = dataclasses.replace(options, reasoning_tokens=left)
        self.options = options
        self._loosen_choice()
        return True

    def done(self) -> Done:
        """The last event: the end of the last turn, and what all of them took."""
        last = self._dones[-1]
        timings = [done.timings for done in self._dones]
        return dataclasses.replace(
            last,
            finish_reason="length" if self._is_cut else last.finish_reason,
            seed=self._dones[0].seed,
            usage=self._usage(),
            reasoning_tokens=sum(done.reasoning_tokens for done in self._dones),
            timings=Timings(
                queued_s=sum(t.queued_s for t in timings),
                prefill_s=sum(t.prefill_s for t in timings),
                decode_s=sum(t.decode_s for t in timings),
                decode_tokens=sum(t.decode_tokens for t in timings),
            ),
        )

    @property
    def _is_last(self) -> bool:
        return self._num_rounds >= self.options.max_tool_rounds

    def _tools_for(self, call: Message) -> list[Tool]:
        return [tool for tool in self.options.tools if tool.accepts(call.recipient or "")]

    def _usage(self) -> Usage:
        usages = [done.usage for done in self._dones]
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in usages),
            cached_tokens=sum(usage.cached_tokens for usage in usages),
            completion_tokens=sum(usage.completion_tokens for usage in usages),
        )

    def _loosen_choice(self) -> None:
        """A call that was required has been made; after the last round the tools are gone."""
        rules = self.options.rules
        if self._is_last:
            rules = _without_tools(rules or TurnRules(), self.options.tools)
        elif rules is not None and rules.tool_choice == "required":
            rules = dataclasses.replace(rules, tool_choice="auto")
        if rules is not None:
            self._set_rules(rules)

    def _set_rules(self, rules: TurnRules) -> None:
        self.options = dataclasses.replace(self.options, rules=rules)


def _with_tools(rules: TurnRules, tools: Sequence[Tool]) -> TurnRules:
    """The rules with the calls that the tools answer."""
    known = {call.recipient for call in rules.calls}
    added = [c for tool in tools for c in call_rules(tool) if c.recipient not in known]
    return dataclasses.replace(rules, calls=(*rules.calls, *added))


def _without_tools(rules: TurnRules, tools: Sequence[Tool]) -> TurnRules:
    def is_kept(recipient: str) -> bool:
        return not any(tool.accepts(recipient) for tool in tools)

    return dataclasses.replace(
        rules,
        calls=tuple(call for call in rules.calls if is_kept(call.recipient)),
        tool_choice="none" if rules.tool_choice == "none" else "auto",
        allowed=None if rules.allowed is None else tuple(filter(is_kept, rules.allowed)),
    )


def call_rules(tool: Tool) -> tuple[CallRule, ...]:
    """What a tool's announcements let the model call."""
    rules = [
        CallRule(
            recipient=FUNCTIONS_PREFIX + function.name,
            parameters=function.parameters or {"type": "object"},
            strict=False,
        )
        for function in tool.functions
    ]
    space = tool.namespace
    if space is not None and not space.tools:
        rules.append(CallRule(recipient=space.name))
    elif space is not None:
        rules += [
            CallRule(
                recipient=f"{space.name}.{function.name}",
                parameters=function.parameters or {"type": "object"},
                strict=False,
            )
            for function in space.tools
        ]
    return tuple(rules)
