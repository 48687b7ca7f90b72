"""Rows of OpenAI's fine-tuning chat format to conversations, every problem named.

Messages become harmony as they do in the server, so that a model learns the prompts it will see:
the first system and developer messages are one developer message with the functions and the form
of the answer, and the text of a message that calls a function is commentary.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from aperto.adapt.raw_rows import Problems, RawRow, shown
from aperto.harmony.messages import (
    COMMENTARY,
    Conversation,
    DeveloperContent,
    Effort,
    FunctionTool,
    Message,
    ResponseFormat,
    Role,
    SystemContent,
    analysis,
    call,
    developer,
    final,
    system,
    tool_result,
    user,
)

REASONING = ("reasoning", "reasoning_content", "thinking")
"""Names under which data sets keep an assistant's reasoning."""

_EFFORTS = {
    "none": Effort.LOW,
    "minimal": Effort.LOW,
    "low": Effort.LOW,
    "medium": Effort.MEDIUM,
    "high": Effort.HIGH,
    "xhigh": Effort.HIGH,
    "max": Effort.HIGH,
}
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_READ = frozenset(
    {"role", "content", "refusal", "name", "weight", "tool_calls", "tool_call_id", "function_call"}
) | {*REASONING}
# Fields of rows and messages that hold nothing to learn; they need no note.
_SILENT = frozenset(
    {"parallel_tool_calls", "function_call", "metadata", "audio", "annotations", "id", "store"}
)
_ROW_READ = frozenset({"messages", "tools", "functions", "reasoning_effort", "response_format"})
_NOT_IN_NAME = re.compile(r"[^\w.\-]", re.ASCII)
_FUNCTIONS = "functions."


class ChatReader:
    """Reads rows with `messages`.

    Args:
        problems: gets what is wrong.
        effort: of rows that name none.
    """

    def __init__(self, problems: Problems, effort: Effort) -> None:
        self._problems = problems
        self._effort = effort
        self.unused: Counter[str] = Counter()
        """Fields that have a value and were not used, with the number of rows."""

    def conversation(self, row: RawRow, *, must_end: bool = True) -> Conversation | None:
        """The conversation of a row, or None where it has problems.

        `must_end`: whether the assistant speaks last and something is learnt, as in training data;
        a prompt ends otherwise.
        """
        before = len(self._problems.lines)
        reader = _RowReader(row, self._problems)
        head = self._head(row, reader)
        messages = reader.messages(row.fields.get("messages"), "messages")
        conversation = _assembled(head, messages)
        if len(self._problems.lines) == before and must_end:
            reader.check_end(conversation)
        self.unused.update(reader.unused | (set(row.fields) - _ROW_READ - _SILENT))
        return conversation if len(self._problems.lines) == before else None

    def said(self, row: RawRow, messages: Any, field: str) -> list[Message] | None:
        """The assistant's messages of a field such as `preferred_output`; None with problems."""
        before = len(self._problems.lines)
        reader = _RowReader(row, self._problems)
        found = reader.messages(messages, field)
        if len(self._problems.lines) == before:
            reader.check_said(found, field)
        return found if len(self._problems.lines) == before else None

    def _head(self, row: RawRow, reader: _RowReader) -> tuple[SystemContent, DeveloperContent]:
        formats = reader.response_formats(row.fields.get("response_format"))
        effort = reader.effort(row.fields.get("reasoning_effort")) or self._effort
        content = DeveloperContent(tools=reader.tools(row.fields), response_formats=formats)
        return SystemContent(effort=effort), content


def _assembled(
    head: tuple[SystemContent, DeveloperContent], messages: Sequence[Message]
) -> Conversation:
    """Head and messages; developer messages at the beginning become one."""
    system_content, announced = head
    count = 0
    while count < len(messages) and messages[count].role is Role.DEVELOPER:
        count += 1
    contents = [m.content for m in messages[:count]]
    instructions = [
        c.instructions for c in contents if isinstance(c, DeveloperContent) and c.instructions
    ]
    content = DeveloperContent(
        "\n\n".join(instructions) or None, announced.tools, announced.response_formats
    )
    first = [] if content == DeveloperContent() else [developer(content)]
    return Conversation((system(system_content), *first, *messages[count:]))


class _RowReader:
    """Reads one row."""

    def __init__(self, row: RawRow, problems: Problems) -> None:
        self._source = row.source
        self._problems = problems
        self._recipients: dict[str, str] = {}
        self._declared: set[str] = set()
        self.unused: set[str] = set()

    def effort(self, value: Any) -> Effort | None:
        if value is None or value in _EFFORTS:
            return None if value is None else _EFFORTS[value]
        self._bad(
            "reasoning_effort", shown(value), f"one of {', '.join(_EFFORTS)}", "correct the word"
        )
        return None

    def response_formats(self, value: Any) -> tuple[ResponseFormat, ...]:
        """What the developer message says of the answer's form; only schemas are announced."""
        if value is None or (isinstance(value, Mapping) and value.get("type") in _PLAIN_FORMATS):
            return ()
        inner = value.get("json_schema", value) if isinstance(value, Mapping) else None
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if not isinstance(schema, Mapping) or not isinstance(inner, Mapping):
            self._bad(
                "response_format",
                shown(value),
                '{"type": "json_schema", "json_schema": {"name": …, "schema": {…}}}, or type text '
                "or json_object",
                "correct or remove the field",
            )
            return ()
        name, description = inner.get("name") or "answer", inner.get("description") or ""
        return (ResponseFormat(str(name), schema, str(description)),)

    def tools(self, fields: Mapping[str, Any]) -> tuple[FunctionTool, ...]:
        found: dict[str, FunctionTool] = {}
        for name in ("functions", "tools"):
            value = self._parsed(fields.get(name), name, list)
            for index, spec in enumerate(value or ()):
                field = f"{name}[{index}]"
                tool = self._tool(spec, field, wrapped=name == "tools")
                if tool is not None and tool.name in found:
                    self._bad(field, f"function {tool.name!r} again", "each once", "remove one")
                elif tool is not None:
                    found[tool.name] = tool
        self._declared = {recipient_of(name) for name in found}
        return tuple(found.values())

    def _tool(self, spec: Any, field: str, *, wrapped: bool) -> FunctionTool | None:
        inner = spec
        if wrapped and isinstance(spec, Mapping) and "function" in spec:
            inner, field = spec["function"], f"{field}.function"
        elif wrapped and isinstance(spec, Mapping) and spec.get("type", "function") != "function":
            inner = None
        if not isinstance(inner, Mapping) or not _is_text(inner.get("name")):
            self._bad(
                field,
                shown(spec),
                '{"type": "function", "function": {"name": …, "parameters": {…}}}',
                "only functions can be learnt; remove other tools",
            )
            return None
        parameters = self._parsed(inner.get("parameters"), f"{field}.parameters", Mapping)
        return FunctionTool(inner["name"], str(inner.get("description") or ""), parameters)

    def _parsed(self, value: Any, field: str, kind: type) -> Any:
        """A value of a kind, or the JSON text of one, as tables hold it."""
        found = value
        if isinstance(value, str):
            try:
                found = json.loads(value)
            except ValueError:
                found = value
        if found is None or isinstance(found, kind):
            return found
        word = "an array" if kind is list else "an object"
        self._bad(field, shown(value), word, "correct or remove the field")
        return None

    def messages(self, value: Any, field: str) -> list[Message]:
        if not isinstance(value, list) or not value:
            self._bad(field, shown(value), "an array of messages", "give at least one message")
            return []
        turned: list[Message] = []
        for index, message in enumerate(value):
            turned += self._message(message, f"{field}[{index}]")
        return turned

    def _message(self, message: Any, field: str) -> list[Message]:
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            found = message.get("role") if isinstance(message, Mapping) else message
            expected = (
                f"one of {', '.join(_ROLES)}" if isinstance(message, Mapping) else "an object"
            )
            field = f"{field}.role" if isinstance(message, Mapping) else field
            self._bad(field, shown(found), expected, "correct the message")
            return []
        role = message["role"]
        self.unused |= {
            f"messages.{key}"
            for key, value in message.items()
            if value not in (None, [], "") and key not in _READ | _SILENT
        }
        if role == "assistant":
            return self._assistant(message, field)
        self._check_only_assistant(message, field)
        text = self._text(message.get("content"), f"{field}.content", required=role == "user")
        if text is None:
            return []
        if role in ("tool", "function"):
            return self._result(message, text, field)
        return [user(text) if role == "user" else developer(text)]

    def _check_only_assistant(self, message: Mapping[str, Any], field: str) -> None:
        for key in ("weight", "tool_calls", "function_call", *REASONING):
            if message.get(key) not in (None, [], ""):
                self._bad(
                    f"{field}.{key}",
                    f"{shown(message[key])} in a message of role {message['role']!r}",
                    "it in assistant messages alone",
                    "remove the field",
                )

    def _assistant(self, message: Mapping[str, Any], field: str) -> list[Message]:
        weight = self._weight(message.get("weight"), f"{field}.weight")
        content = message.get("content")
        if content in (None, "", []) and message.get("refusal"):
            content = message["refusal"]
        text = self._text(content, f"{field}.content", required=False)
        reasoning = self._reasoning(message, field)
        calls = self._calls(message, field, weight)
        if text is None or reasoning is None or calls is None:
            return []
        if not text and not calls:
            self._bad(
                field,
                "neither content nor tool_calls",
                "what the assistant says or calls",
                "fill the message or remove the row",
            )
        turned = [analysis(reasoning, weight)] if reasoning else []
        if text and calls:
            turned.append(Message(Role.ASSISTANT, text, channel=COMMENTARY, weight=weight))
        elif text:
            turned.append(final(text, weight))
        return [*turned, *calls]

    def _weight(self, value: Any, field: str) -> float:
        if value is None:
            return 1.0
        if isinstance(value, int | float) and 0 <= value <= 1:
            return float(value)
        self._bad(field, shown(value), "0 or 1", "0 leaves the message out of the loss")
        return 1.0

    def _reasoning(self, message: Mapping[str, Any], field: str) -> str | None:
        given = {name: message[name] for name in REASONING if message.get(name)}
        if len({str(value) for value in given.values()}) > 1:
            self._bad(
                field,
                f"different texts under {' and '.join(given)}",
                "one reasoning a message",
                "keep one of them",
            )
            return None
        for name, value in given.items():
            return self._text(value, f"{field}.{name}", required=False)
        return ""

    def _calls(self, message: Mapping[str, Any], field: str, weight: float) -> list[Message] | None:
        value = self._parsed(message.get("tool_calls"), f"{field}.tool_calls", list) or []
        specs = [(spec, f"{field}.tool_calls[{index}]", spec) for index, spec in enumerate(value)]
        if message.get("function_call") is not None:
            made = message["function_call"]
            specs.append(({"function": made}, f"{field}.function_call", made))
        calls = []
        for spec, place, found in specs:
            turned = self._call(spec, place, found, weight)
            if turned is None:
                return None
            calls.append(turned)
        return calls

    def _call(self, spec: Any, field: str, found: Any, weight: float) -> Message | None:
        made = spec.get("function") if isinstance(spec, Mapping) else None
        if not isinstance(made, Mapping) or not _is_text(made.get("name")):
            self._bad(
                field,
                shown(found),
                '{"id": …, "type": "function", "function": {"name": …, "arguments": …}}',
                "only calls of functions can be learnt",
            )
            return None
        arguments = self._arguments(made.get("arguments"), f"{field}.function.arguments")
        recipient = recipient_of(made["name"])
        if recipient not in self._declared:
            self._bad(
                f"{field}.function.name",
                shown(made["name"]),
                "a function that the row declares",
                'declare it in "tools", so that the model learns to call what it is told of',
            )
        if _is_text(spec.get("id")):
            self._recipients[spec["id"]] = recipient
        return None if arguments is None else call(recipient, arguments, weight)

    def _arguments(self, value: Any, field: str) -> str | None:
        if isinstance(value, Mapping):
            return json.dumps(value, ensure_ascii=False)
        if value in (None, ""):
            return "{}"
        try:
            parsed = json.loads(value) if isinstance(value, str) else None
        except ValueError:
            parsed = None
        if isinstance(parsed, dict):
            return str(value)
        self._bad(field, shown(value), "a JSON object as text", "write the arguments as JSON")
        return None

    def _result(self, message: Mapping[str, Any], text: str, field: str) -> list[Message]:
        known, name = message.get("tool_call_id"), message.get("name")
        recipient = self._recipients.get(known) if isinstance(known, str) else None
        if recipient is None and _is_text(name) and known is None:
            recipient = recipient_of(str(name))
        if recipient is None:
            self._bad(
                f"{field}.tool_call_id",
                shown(known),
                "the id of an earlier call",
                "give the call's id, or for the older format the function's name",
            )
            return []
        return [tool_result(recipient, text)]

    def _text(self, value: Any, field: str, *, required: bool) -> str | None:
        """Text of a content; None where it has none that can be learnt from."""
        if value is None or isinstance(value, str):
            if required and not value:
                self._bad(field, shown(value), "text", "fill the message or remove the row")
                return None
            return value or ""
        if not isinstance(value, list):
            self._bad(field, shown(value), "text or an array of text parts", "write it as text")
            return None
        texts = [self._part(part, f"{field}[{index}]") for index, part in enumerate(value)]
        return "\n".join(filter(None, texts)) if None not in texts else None

    def _part(self, part: Any, field: str) -> str | None:
        if isinstance(part, Mapping):
            for key in ("text", "refusal"):
                if isinstance(part.get(key), str):
                    return str(part[key])
        kind = part.get("type") if isinstance(part, Mapping) else part
        self._bad(
            field,
            f"a part of type {shown(kind)}",
            'text: {"type": "text", "text": …}',
            "gpt-oss reads text alone; put what matters into words, or remove the row",
        )
        return None

    def check_end(self, conversation: Conversation) -> None:
        """The rules of a whole training row."""
        said = [m for m in conversation if m.role is Role.ASSISTANT]
        if not said or conversation.messages[-1].role is not Role.ASSISTANT:
            last = conversation.messages[-1].role.value
            self._bad(
                "messages",
                f"the last message is of role {last!r}",
                "the assistant to speak last",
                "remove what follows its last message, or the row",
            )
        elif not any(message.weight for message in said):
            self._bad(
                "messages",
                "every assistant message has weight 0",
                "something to learn",
                "give one of them weight 1, or remove the row",
            )
        self.check_one_answer(conversation.messages, "messages")

    def check_said(self, messages: Sequence[Message], field: str) -> None:
        """The rules of an assistant's output."""
        others = [m.role.value for m in messages if m.role is not Role.ASSISTANT]
        if others:
            self._bad(field, f"a message of role {others[0]!r}", "assistant messages", "remove it")
        self.check_one_answer(messages, field)

    def check_one_answer(self, messages: Sequence[Message], field: str) -> None:
        """No answer is followed by another message of the assistant's."""
        for before, after in itertools.pairwise(messages):
            if before.channel == "final" and after.role is Role.ASSISTANT:
                self._bad(
                    field,
                    "an assistant message right after another's answer",
                    "a user's message between two answers",
                    "join the two, or put the first one's text before its tool_calls",
                )
                return

    def _bad(self, field: str, found: str, expected: str, advice: str) -> None:
        self._problems.add(self._source, field, found, expected, advice)


_PLAIN_FORMATS = ("text", "json_object")


def recipient_of(name: str) -> str:
    """Recipient of a function; characters that no header may hold become "_"."""
    return _FUNCTIONS + (_NOT_IN_NAME.sub("_", name) or "_")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
