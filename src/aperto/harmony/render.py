"""A conversation to token ids: the prompt of the next turn, or a training example with its mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from aperto.errors import TemplateError
from aperto.harmony.messages import (
    ANALYSIS,
    FINAL,
    Conversation,
    DeveloperContent,
    Message,
    ResponseFormat,
    Role,
    SystemContent,
    ToolNamespace,
)
from aperto.harmony.schema import compact_json, namespace_text, text_lines
from aperto.tokenizer import Tokenizer

History = Literal["library", "ended", "keep"]
"""Which analysis of the past the model sees again.

``library`` does as openai-harmony 0.0.8: when the last assistant message is final, analysis before
the first final message is dropped, else nothing is. ``ended`` drops the analysis of every turn that
ended in a final message, whatever follows it. ``keep`` drops nothing.
"""

FUNCTIONS = "functions"
"""Namespace of the developer's functions."""
_CONSTRAIN = "<|constrain|>"


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids after which a turn is over: ``<|return|>`` and ``<|call|>``."""
    return tokenizer.special_id("<|return|>"), tokenizer.special_id("<|call|>")


def render(
    conversation: Conversation,
    tokenizer: Tokenizer,
    *,
    history: History = "library",
    next_role: Role | None = Role.ASSISTANT,
) -> list[int]:
    """Token ids of a conversation, ending with the header that opens the next role's message.

    Args:
        conversation: what was said so far.
        tokenizer: the checkpoint's tokenizer.
        history: which old analysis is shown again.
        next_role: whose message is opened at the end; None opens none.

    Raises:
        TemplateError: a message cannot be rendered, for instance a tool without a name.
    """
    writer = _Writer(conversation, tokenizer)
    for index in _kept(conversation.messages, history):
        writer.message(conversation.messages[index])
    if next_role is not None:
        writer.open(next_role)
    return writer.ids


def cut_points(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Positions of a prompt up to which later prompts are likely to be the same.

    These are the end of the system and developer messages, which other conversations share; the
    end of each user message, since the reasoning after it is dropped once the turn is over; and
    the end of the prompt.
    """
    start = tokenizer.special_id("<|start|>")
    starts = [position for position, token in enumerate(ids) if token == start]
    roles = [_role(ids, position + 1, tokenizer) for position in starts]
    heads = {Role.SYSTEM.value, Role.DEVELOPER.value}
    cuts = {
        position
        for position, before, role in zip(starts[1:], roles, roles[1:], strict=False)
        if before == Role.USER.value or (before in heads and role not in heads)
    }
    return tuple(sorted(cuts | {len(ids)}))


def _role(ids: Sequence[int], position: int, tokenizer: Tokenizer) -> str:
    """The author named in a header that begins at a position, without what follows a colon."""
    end = position
    while end < len(ids) and not tokenizer.is_special(ids[end]):
        end += 1
    words = tokenizer.decode(ids[position:end]).split(maxsplit=1)
    return words[0].partition(":")[0] if words else ""


def render_for_training(
    conversation: Conversation, tokenizer: Tokenizer
) -> tuple[list[int], list[float]]:
    """Token ids of an example and, for each, its weight in the loss.

    A token has its message's weight where the model must generate it itself: channel, recipient,
    content type, content and end of each assistant message, and ``<|start|>assistant`` where the
    model goes on after a message of its own. A last message ends in ``<|return|>``, a call in
    ``<|call|>``. Of several calls at the very end, all but the last end in ``<|end|>``, after
    which the model goes on, as it must to make them in one turn. Analysis of turns that ended
    before the last user message is dropped, as it is when the model runs, and such turns then
    carry no loss: without their reasoning they are not what the model shall learn. The
    ``<|end|>`` of an earlier final message carries none either, since there the model would have
    to say ``<|return|>``.

    Raises:
        TemplateError: a message cannot be rendered.
    """
    messages = conversation.messages
    last_user = max((i for i, m in enumerate(messages) if m.role is Role.USER), default=0)
    kept = [i for i in _kept(messages[:last_user], "ended")]
    lost = _turns_with_loss_of_analysis(messages[:last_user], kept)
    calls = _last_calls(messages)
    writer = _Writer(conversation, tokenizer)
    for index in (*kept, *range(last_user, len(messages))):
        message = messages[index]
        weight = message.weight if message.role is Role.ASSISTANT and index not in lost else 0.0
        last = index == len(messages) - 1
        writer.message(message, weight, last=last, more_calls=index >= calls and not last)
    return writer.ids, writer.weights


def _last_calls(messages: Sequence[Message]) -> int:
    """Index of the first of the calls that end a conversation; its length where none does."""
    start = len(messages)
    while start and _is_call(messages[start - 1]):
        start -= 1
    return start


def _is_call(message: Message) -> bool:
    return message.role is Role.ASSISTANT and message.recipient is not None


def _kept(messages: Sequence[Message], history: History) -> list[int]:
    finals = [i for i, message in enumerate(messages) if message.channel == FINAL]
    speakers = [m for m in messages if m.role is Role.ASSISTANT]
    cut = 0
    if history == "library" and finals and speakers and speakers[-1].channel == FINAL:
        cut = finals[0]
    elif history == "ended" and finals:
        cut = finals[-1]
    return [i for i, m in enumerate(messages) if i >= cut or m.channel != ANALYSIS]


def _turns_with_loss_of_analysis(messages: Sequence[Message], kept: Sequence[int]) -> set[int]:
    """Indices of the messages whose turn had analysis that is no longer shown."""
    dropped = set(range(len(messages))) - set(kept)
    lost: set[int] = set()
    turn: list[int] = []
    for index, message in enumerate(messages):
        if message.role is Role.USER:
            turn = []
        turn.append(index)
        if not dropped.isdisjoint(turn):
            lost.update(turn)
    return lost


class _Writer:
    """Collects ids and their loss weights, message by message."""

    def __init__(self, conversation: Conversation, tokenizer: Tokenizer) -> None:
        self.ids: list[int] = []
        self.weights: list[float] = []
        self._tokenizer = tokenizer
        self._has_functions = any(
            isinstance(m.content, DeveloperContent) and m.content.tools for m in conversation
        )
        self._goes_on = False

    def open(self, role: Role) -> None:
        """Start of a message whose author is not yet named further."""
        self._special("<|start|>", 0.0)
        self._text(role.value, 0.0)

    def message(
        self,
        message: Message,
        weight: float = 0.0,
        last: bool = False,
        more_calls: bool = False,
    ) -> None:
        """One whole message; `more_calls` after a call that another one follows at once."""
        self._author(message, weight if self._goes_on else 0.0)
        if message.recipient is not None and message.recipient != "all":
            self._text(f" to={message.recipient}", weight)
        if message.channel is not None:
            self._special("<|channel|>", weight)
            self._text(message.channel, weight)
        if message.content_type is not None:
            self._content_type(message.content_type, weight)
        self._special("<|message|>", weight)
        self._text(self._content(message), weight)
        self._end(message, weight, last, more_calls)

    def _author(self, message: Message, weight: float) -> None:
        self._special("<|start|>", weight)
        if message.role is not Role.TOOL:
            self._text(message.role.value, weight)
            if message.name is not None:
                self._text(f":{message.name}", weight)
        elif message.name is None:
            raise TemplateError(
                "a tool message has no name; expected the tool's, such as 'functions.get_weather'"
            )
        else:
            self._text(message.name, weight)

    def _content_type(self, content_type: str, weight: float) -> None:
        if not content_type.startswith(_CONSTRAIN):
            self._text(f" {content_type}", weight)
            return
        self._text(" ", weight)
        self._special(_CONSTRAIN, weight)
        self._text(content_type.removeprefix(_CONSTRAIN), weight)

    def _content(self, message: Message) -> str:
        content = message.content
        if isinstance(content, str):
            return content
        expected = Role.SYSTEM if isinstance(content, SystemContent) else Role.DEVELOPER
        if message.role is not expected:
            raise TemplateError(
                f"{type(content).__name__} in a message of role {message.role.value!r}; "
                f"expected role {expected.value!r}"
            )
        if isinstance(content, SystemContent):
            return system_text(content, self._has_functions)
        return developer_text(content)

    def _end(self, message: Message, weight: float, last: bool, more_calls: bool) -> None:
        self._goes_on = False
        if message.role is not Role.ASSISTANT:
            self._special("<|end|>", 0.0)
        elif message.recipient is not None and not more_calls:
            self._special("<|call|>", weight)
        elif last and message.channel != ANALYSIS:
            self._special("<|return|>", weight)
        else:
            self._goes_on = message.channel != FINAL
            self._special("<|end|>", weight if self._goes_on else 0.0)

    def _special(self, name: str, weight: float) -> None:
        self.ids.append(self._tokenizer.special_id(name))
        self.weights.append(weight)

    def _text(self, text: str, weight: float) -> None:
        ids = self._tokenizer.encode(text)
        self.ids += ids
        self.weights += [weight] * len(ids)


def system_text(content: SystemContent, has_functions: bool = False) -> str:
    """Text of a system message; functions add the line that says where their calls go."""
    head = [content.identity] if content.identity is not None else []
    if content.knowledge_cutoff is not None:
        head.append(f"Knowledge cutoff: {content.knowledge_cutoff}")
    if content.current_date is not None:
        head.append(f"Current date: {content.current_date}")
    sections = ["\n".join(head)] if head else []
    if content.effort is not None:
        sections.append(f"Reasoning: {content.effort.value}")
    if content.tools:
        sections += _tool_sections(sorted(content.tools, key=lambda space: space.name))
    if content.channels:
        line = (
            f"# Valid channels: {', '.join(content.channels)}. "
            "Channel must be included for every message."
        )
        if has_functions:
            line += f"\nCalls to these tools must go to the commentary channel: '{FUNCTIONS}'."
        sections.append(line)
    return "\n\n".join(sections)


def developer_text(content: DeveloperContent) -> str:
    """Text of a developer message: instructions, tools, response formats."""
    sections = []
    if content.instructions is not None:
        sections += ["# Instructions", content.instructions]
    if content.tools:
        sections += _tool_sections([ToolNamespace(FUNCTIONS, tools=content.tools)])
    if content.response_formats:
        sections.append("# Response Formats")
        sections += [_format_text(entry) for entry in content.response_formats]
    return "\n\n".join(sections)


def _tool_sections(spaces: Sequence[ToolNamespace]) -> list[str]:
    return ["# Tools", *(namespace_text(space) for space in spaces)]


def _format_text(entry: ResponseFormat) -> str:
    comments = [f"// {line}" for line in text_lines(entry.description)]
    return "\n".join([f"## {entry.name}\n", *comments, compact_json(entry.schema)])
