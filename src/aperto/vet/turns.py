"""Inspect's messages as harmony's, and answers back: channels, calls and why an answer ended."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    Content,
    ContentReasoning,
    ContentText,
    Logprob,
    Logprobs,
    StopReason,
    TopLogprob,
)
from inspect_ai.tool import ToolCall, ToolChoice, ToolFunction, ToolInfo

from aperto.errors import UsageError
from aperto.harmony import (
    COMMENTARY,
    CallRule,
    Conversation,
    DeveloperContent,
    FunctionTool,
    Message,
    Role,
    SystemContent,
    TurnRules,
)
from aperto.harmony.messages import analysis, call, developer, final, system, tool_result, user
from aperto.local_model import Answer
from aperto.tokenizer import Tokenizer
from aperto.turn import TokenDrawn

_FUNCTIONS = "functions."
_PREAMBLE = "preamble"


def conversation_of(messages: Sequence[ChatMessage], tools: Sequence[ToolInfo]) -> Conversation:
    """A chat as harmony's messages.

    A system message is the developer's, unless its metadata has `level` "system": what it says
    then follows the identity.
    Raises UsageError for content that is no text.
    """
    heads = [one for one in messages if isinstance(one, ChatMessageSystem)]
    rules = "\n\n".join(one.text for one in heads if _level(one) == "system")
    told = "\n\n".join(one.text for one in heads if _level(one) != "system")
    plain = SystemContent()
    head = SystemContent(identity=f"{plain.identity}\n{rules}") if rules else plain
    functions = tuple(
        FunctionTool(one.name, one.description, one.parameters.model_dump(exclude_none=True))
        for one in tools
    )
    begin = [system(head)]
    if told or functions:
        begin.append(developer(DeveloperContent(told or None, functions)))
    rest = (turn for one in messages if one not in heads for turn in _messages(one))
    return Conversation((*begin, *rest))


def rules_of(
    tools: Sequence[ToolInfo], choice: ToolChoice, *, reasoning: bool, parallel: bool = True
) -> TurnRules | None:
    """What holds a turn to its form; None where the model may write as it likes."""
    must = choice == "any" or isinstance(choice, ToolFunction)
    if reasoning and not must and (parallel or not tools):
        return None
    allowed = [
        one for one in tools if not isinstance(choice, ToolFunction) or one.name == choice.name
    ]
    calls = tuple(
        CallRule(
            recipient=_FUNCTIONS + one.name,
            parameters=one.parameters.model_dump(exclude_none=True),
            strict=False,
        )
        for one in allowed
    )
    return TurnRules(
        calls=calls,
        tool_choice="required" if must else "auto",
        parallel_calls=parallel,
        reasoning=reasoning,
    )


def choice_of(
    answer: Answer, tokenizer: Tokenizer, *, name: str, call_id: str, capped: bool, logprobs: bool
) -> ChatCompletionChoice:
    """An answer as Inspect's: reasoning, final text and calls apart.

    Args:
        answer: what was said.
        tokenizer: of the model.
        name: of the model.
        call_id: begins the ids of its calls.
        capped: whether the context, and not the caller, set the limit of tokens.
        logprobs: whether each token is told.
    """
    parts: list[Content] = []
    if answer.reasoning:
        parts.append(ContentReasoning(reasoning=answer.reasoning))
    if answer.text:
        parts.append(ContentText(text=answer.text))
    preamble = [m.text for m in answer.messages if m.channel == COMMENTARY and not m.recipient]
    calls = [_call(one, f"{call_id}_{index}") for index, one in enumerate(answer.calls)]
    return ChatCompletionChoice(
        message=ChatMessageAssistant(
            content=parts,
            tool_calls=calls or None,
            source="generate",
            model=name,
            metadata={_PREAMBLE: "\n".join(preamble)} if preamble else None,
        ),
        stop_reason=stop_reason(answer.finish_reason, capped=capped),
        logprobs=_logprobs(answer.logprobs, tokenizer) if logprobs else None,
    )


def stop_reason(finish_reason: str, *, capped: bool) -> StopReason:
    """Why an answer ended, in Inspect's words."""
    match finish_reason:
        case "stop":
            return "stop"
        case "call":
            return "tool_calls"
        case "length":
            return "model_length" if capped else "max_tokens"
    return "unknown"


def _level(message: ChatMessageSystem) -> str:
    return str((message.metadata or {}).get("level", "developer"))


def _messages(message: ChatMessage) -> Iterator[Message]:
    if isinstance(message, ChatMessageAssistant):
        yield from _assistant(message)
    elif isinstance(message, ChatMessageTool):
        text = message.error.message if message.error else _text(message)
        yield tool_result(_FUNCTIONS + (message.function or "unknown"), text)
    else:
        yield user(_text(message))


def _assistant(message: ChatMessageAssistant) -> Iterator[Message]:
    """Reasoning, what is said before calls, calls, and the answer, in the order of a turn."""
    for part in message.content if isinstance(message.content, list) else ():
        if isinstance(part, ContentReasoning) and not part.redacted:
            yield analysis(part.reasoning)
    text = message.text
    before = str((message.metadata or {}).get(_PREAMBLE, ""))
    if message.tool_calls:
        before, text = "\n".join(filter(None, (before, text))), ""
    if before:
        yield Message(Role.ASSISTANT, before, channel=COMMENTARY)
    for one in message.tool_calls or ():
        yield call(_FUNCTIONS + one.function, json.dumps(one.arguments, ensure_ascii=False))
    if text:
        yield final(text)


def _text(message: ChatMessage) -> str:
    others = [
        part.type
        for part in (message.content if isinstance(message.content, list) else ())
        if not isinstance(part, ContentText)
    ]
    if others:
        raise UsageError(f"a {message.role} message holds {', '.join(others)}; expected text")
    return message.text


def _call(message: Message, call_id: str) -> ToolCall:
    """A call; what is no JSON object is kept as it was written, with the reason."""
    function = (message.recipient or "").removeprefix(_FUNCTIONS)
    try:
        arguments: Any = json.loads(message.text)
    except ValueError as error:
        return _unread(call_id, function, message.text, str(error))
    if not isinstance(arguments, dict):
        return _unread(call_id, function, message.text, "expected a JSON object")
    return ToolCall(id=call_id, function=function, arguments=arguments)


def _unread(call_id: str, function: str, text: str, why: str) -> ToolCall:
    return ToolCall(
        id=call_id,
        function=function,
        arguments={},
        parse_error=f"the arguments of {function} are no JSON object: {why}: {text}",
    )


def _logprobs(drawn: Iterable[TokenDrawn], tokenizer: Tokenizer) -> Logprobs:
    return Logprobs(
        content=[
            Logprob(
                token=tokenizer.decode([one.token.id]),
                bytes=list(tokenizer.decode_bytes([one.token.id])),
                logprob=one.token.logprob,
                top_logprobs=[
                    TopLogprob(
                        token=tokenizer.decode([token_id]),
                        bytes=list(tokenizer.decode_bytes([token_id])),
                        logprob=logprob,
                    )
                    for token_id, logprob in one.token.top_logprobs
                ]
                or None,
            )
            for one in drawn
        ]
    )
