"""What is said in a conversation: roles, messages, tools and the two special contents.

Everything is frozen and turns into plain JSON values with ``to_dict`` and back with ``from_dict``.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from aperto.errors import UsageError

T = TypeVar("T")

ANALYSIS = "analysis"
"""Channel of the reasoning; not for the user unless asked for."""
COMMENTARY = "commentary"
"""Channel of function calls, and without a recipient of preambles for the user."""
FINAL = "final"
"""Channel of the answer."""
CONSTRAIN_JSON = "<|constrain|>json"
"""Content type of a call whose arguments are JSON."""


class Role(enum.StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Effort(enum.StrEnum):
    """How long the model is asked to reason."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


@dataclasses.dataclass(frozen=True, slots=True)
class FunctionTool:
    """A function the model may call."""

    name: str
    """Name inside its namespace, ``get_weather``."""
    description: str = ""
    """What it does; may have several lines."""
    parameters: Mapping[str, Any] | None = None
    """JSON Schema of the arguments; None for no arguments."""


@dataclasses.dataclass(frozen=True, slots=True)
class ToolNamespace:
    """A named group of tools, such as the built-in ``browser``."""

    name: str
    """Prefix of the recipients, ``browser`` in ``browser.search``."""
    description: str | None = None
    """Text under the heading; may have several lines."""
    tools: tuple[FunctionTool, ...] = ()
    """The functions; none for a tool that takes free text, such as ``python``."""


@dataclasses.dataclass(frozen=True, slots=True)
class ResponseFormat:
    """A format of the answer, announced to the model."""

    name: str
    """Name of the format."""
    schema: Mapping[str, Any]
    """JSON Schema of the answer."""
    description: str = ""
    """What it is for; may have several lines."""


@dataclasses.dataclass(frozen=True, slots=True)
class SystemContent:
    """Content of the system message."""

    identity: str | None = "You are ChatGPT, a large language model trained by OpenAI."
    """First line; gpt-oss was trained with this one."""
    knowledge_cutoff: str | None = "2024-06"
    """Month up to which the model knows the world, ``YYYY-MM``."""
    current_date: str | None = None
    """Today, ``YYYY-MM-DD``."""
    effort: Effort | None = Effort.MEDIUM
    """Reasoning effort."""
    tools: tuple[ToolNamespace, ...] = ()
    """Built-in tools; rendered in the order of their names."""
    channels: tuple[str, ...] = (ANALYSIS, COMMENTARY, FINAL)
    """Channels the model may use; none leaves the line out."""


@dataclasses.dataclass(frozen=True, slots=True)
class DeveloperContent:
    """Content of the developer message: what is elsewhere called the system prompt."""

    instructions: str | None = None
    """What the model shall do."""
    tools: tuple[FunctionTool, ...] = ()
    """Functions, callable as ``functions.NAME``."""
    response_formats: tuple[ResponseFormat, ...] = ()
    """Formats of the answer."""


Content = str | SystemContent | DeveloperContent


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    """Who speaks."""
    content: Content
    """Text, or the content that fits the system or developer role."""
    channel: str | None = None
    """Channel of an assistant's or tool's message."""
    recipient: str | None = None
    """To whom it goes: ``functions.get_weather``, ``python``, ``assistant``; None for everyone."""
    content_type: str | None = None
    """Kind of content a call announces, ``<|constrain|>json``."""
    name: str | None = None
    """Name of the speaker; a tool must have one, ``functions.get_weather``."""
    weight: float = 1.0
    """Weight of its tokens in the training loss; only an assistant's messages are trained on."""

    @property
    def text(self) -> str:
        """The content where it is text, else an empty string."""
        return self.content if isinstance(self.content, str) else ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; fields that have their default are left out."""
        fields: dict[str, Any] = _plain(self)
        if not isinstance(self.content, str):
            fields["content"] = {self.role.value: fields["content"]}
        return fields

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Message:
        """The message that ``to_dict`` wrote.

        Raises:
            UsageError: a field is unknown, missing or of the wrong kind.
        """
        content = data.get("content")
        if isinstance(content, Mapping):
            if set(content) == {Role.SYSTEM.value}:
                content = _system_from(content[Role.SYSTEM.value])
            elif set(content) == {Role.DEVELOPER.value}:
                content = _developer_from(content[Role.DEVELOPER.value])
            else:
                raise UsageError(
                    f"message content has the keys {sorted(content)}; "
                    "expected text, {'system': …} or {'developer': …}"
                )
        elif not isinstance(content, str):
            raise UsageError(f"message content is {content!r}; expected text")
        return _build(cls, {**data, "content": content, "role": _role(data.get("role"))})


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order."""

    messages: tuple[Message, ...] = ()
    """The messages, oldest first."""

    def __iter__(self) -> Iterator[Message]:
        return iter(self.messages)

    def __len__(self) -> int:
        return len(self.messages)

    def plus(self, *messages: Message) -> Conversation:
        """This conversation with messages added at its end."""
        return Conversation((*self.messages, *messages))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"messages": [message.to_dict() for message in self.messages]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Conversation:
        """The conversation that ``to_dict`` wrote.

        Raises:
            UsageError: it is not such a conversation.
        """
        if set(data) != {"messages"}:
            raise UsageError(f"conversation has the keys {sorted(data)}; expected ['messages']")
        return cls(tuple(Message.from_dict(message) for message in data["messages"]))


def system(content: SystemContent) -> Message:
    """A system message."""
    return Message(Role.SYSTEM, content)


def developer(content: DeveloperContent | str) -> Message:
    """A developer message; a plain string is its instructions."""
    if isinstance(content, str):
        content = DeveloperContent(instructions=content)
    return Message(Role.DEVELOPER, content)


def user(text: str) -> Message:
    """A user's message."""
    return Message(Role.USER, text)


def analysis(text: str, weight: float = 1.0) -> Message:
    """A piece of the assistant's reasoning."""
    return Message(Role.ASSISTANT, text, channel=ANALYSIS, weight=weight)


def final(text: str, weight: float = 1.0) -> Message:
    """The assistant's answer."""
    return Message(Role.ASSISTANT, text, channel=FINAL, weight=weight)


def call(recipient: str, arguments: str, weight: float = 1.0) -> Message:
    """The assistant's call of a function with JSON arguments."""
    return Message(
        Role.ASSISTANT,
        arguments,
        channel=COMMENTARY,
        recipient=recipient,
        content_type=CONSTRAIN_JSON,
        weight=weight,
    )


def tool_result(name: str, text: str, channel: str = COMMENTARY) -> Message:
    """What a tool answered; ``name`` is the recipient of the call."""
    return Message(Role.TOOL, text, channel=channel, recipient=Role.ASSISTANT.value, name=name)


def from_chat(
    messages: Iterable[Mapping[str, Any]], system_content: SystemContent | None = None
) -> Conversation:
    """Conversation from ``{"role": …, "content": text}`` messages.

    What such messages call ``system`` is harmony's developer message; an assistant's
    ``reasoning`` (or ``thinking``) becomes its analysis.

    Raises:
        UsageError: a role or content that such messages do not have.
    """
    turned = [system(system_content or SystemContent())]
    for message in messages:
        role, text = _role(message.get("role")), message.get("content")
        if role is Role.TOOL or not isinstance(text, str):
            raise UsageError(
                f"chat message has role {role.value!r} and content of type "
                f"{type(text).__name__}; expected system, developer, user or assistant and text"
            )
        if role is Role.USER:
            turned.append(user(text))
        elif role is Role.ASSISTANT:
            reasoning = message.get("reasoning") or message.get("thinking")
            turned += [analysis(reasoning)] if reasoning else []
            turned.append(final(text))
        else:
            turned.append(developer(text))
    return Conversation(tuple(turned))


def _effort(value: Any) -> Effort:
    try:
        return Effort(value)
    except ValueError:
        raise UsageError(
            f"reasoning effort is {value!r}; expected one of {', '.join(Effort)}"
        ) from None


def _role(value: Any) -> Role:
    try:
        return Role(value)
    except ValueError:
        raise UsageError(f"message role is {value!r}; expected one of {', '.join(Role)}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if not dataclasses.is_dataclass(value):
        return value
    return {
        field.name: _plain(getattr(value, field.name))
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != field.default
    }


def _build(cls: type[T], data: Mapping[str, Any]) -> T:
    try:
        return cls(**data)
    except TypeError as error:
        known = ", ".join(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]
        raise UsageError(
            f"{cls.__name__} has the fields {sorted(data)}; it takes {known}"
        ) from error


def _tools_from(data: Iterable[Mapping[str, Any]]) -> tuple[FunctionTool, ...]:
    return tuple(_build(FunctionTool, tool) for tool in data)


def _system_from(data: Mapping[str, Any]) -> SystemContent:
    fields = dict(data)
    if fields.get("effort") is not None:
        fields["effort"] = _effort(fields["effort"])
    if "channels" in fields:
        fields["channels"] = tuple(fields["channels"])
    fields["tools"] = tuple(
        _build(ToolNamespace, {**space, "tools": _tools_from(space.get("tools", ()))})
        for space in fields.get("tools", ())
    )
    return _build(SystemContent, fields)


def _developer_from(data: Mapping[str, Any]) -> DeveloperContent:
    fields = dict(data)
    fields["tools"] = _tools_from(fields.get("tools", ()))
    fields["response_formats"] = tuple(
        _build(ResponseFormat, entry) for entry in fields.get("response_formats", ())
    )
    return _build(DeveloperContent, fields)
