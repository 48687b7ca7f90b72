"""Tools of the Responses API as harmony functions, and calls of these as output items again."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast, get_args

from aperto.harmony import (
    BROWSER,
    COMMENTARY,
    PYTHON,
    FunctionTool,
    Lark,
    Message,
    Regex,
    Role,
)
from aperto.harmony.messages import call
from aperto.harmony.render import FUNCTIONS
from aperto.harmony.rules import CallRule, ToolChoice, TurnRules
from aperto.server.errors import ApiError
from aperto.tool_rounds import call_rules
from aperto.tools.tool import Tool

Json = dict[str, Any]


# Arguments of a custom tool without a grammar: gpt-oss was trained to call functions with JSON.
_CUSTOM_PARAMETERS: Json = {
    "type": "object",
    "properties": {
        "input": {"type": "string", "description": "The whole input, as plain text."},
    },
    "required": ["input"],
    "additionalProperties": False,
}


@dataclasses.dataclass(frozen=True, slots=True)
class WireTool:
    """One tool that the client runs."""

    kind: Literal["function", "custom"]
    """Which item a call becomes: function_call or custom_tool_call."""
    name: str
    """Its name as the client knows it."""
    namespace: str | None
    """The namespace it came in."""
    function: FunctionTool
    """What the model is told; its name is unique within the request."""
    strict: bool
    """Whether the arguments must fit the schema and nothing more."""
    form: Regex | Lark | None = None
    """Form of a custom tool's input, which then is the call's text as it is."""

    @property
    def recipient(self) -> str:
        """Whom a call goes to in harmony."""
        return f"{FUNCTIONS}.{self.function.name}"

    @property
    def rule(self) -> CallRule:
        """What the turn's grammar holds a call to."""
        if self.form is not None:
            return CallRule(recipient=self.recipient, text=self.form)
        parameters = self.function.parameters or {"type": "object", "properties": {}}
        return CallRule(recipient=self.recipient, parameters=parameters, strict=self.strict)

    def input_of(self, text: str) -> str:
        """The input in the text of a call; all of it, where the JSON around it is missing."""
        return text if self.form is not None else custom_input(text)

    def call_of(self, given: str) -> Message:
        """The call with an input, as the model would have written it."""
        if self.form is None:
            return call(self.recipient, json.dumps({"input": given}, ensure_ascii=False))
        return Message(Role.ASSISTANT, given, channel=COMMENTARY, recipient=self.recipient)


SERVED_TYPES = {
    "code_interpreter": "python",
    "web_search": "browser",
    "web_search_preview": "browser",
    "apply_patch": "apply_patch",
    "mcp": "mcp",
}
"""Types of tools that the server can run, and the tool that each stands for."""


def served_types(specs: Iterable[str]) -> tuple[str, ...]:
    """The types by which a request asks for the server's tools of these specifications."""
    kinds = {spec.partition(":")[0] for spec in specs}
    by_kind = {kind: name for name, kind in reversed(SERVED_TYPES.items())}
    return tuple(name for kind, name in by_kind.items() if kind in kinds)


def served_name(recipient: str) -> str:
    """The name that clients see of a tool that the server runs, by its recipient."""
    return recipient.removeprefix(f"{FUNCTIONS}.")


def served_recipient(name: str) -> str:
    """The recipient of a tool that the server ran, by the name that clients saw."""
    if name.partition(".")[0] in (FUNCTIONS, PYTHON.name, BROWSER.name):
        return name
    return f"{FUNCTIONS}.{name}"


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """Whether the model may or must call, and whom."""

    mode: ToolChoice
    """Whether it may, must not or must."""
    allowed: tuple[str, ...] | None = None
    """Recipients that it may call, where not all of them."""
    served: tuple[str, ...] = ()
    """Names of the server's tools that it may call beside those."""

    def rules(self, rules: TurnRules, tools: Iterable[Tool]) -> TurnRules:
        """The rules of a turn with the server's tools, once these are open, and this choice."""
        known = {rule.recipient for rule in rules.calls}
        calls, allowed = list(rules.calls), self.allowed
        for tool in tools:
            added = [rule for rule in call_rules(tool) if rule.recipient not in known]
            calls += added
            if allowed is not None and tool.name.partition(":")[0] in self.served:
                allowed += tuple(rule.recipient for rule in added)
        is_possible = bool(calls if allowed is None else allowed)
        mode = self.mode if is_possible or self.mode != "required" else "auto"
        return dataclasses.replace(rules, calls=tuple(calls), tool_choice=mode, allowed=allowed)


class ToolTable:
    """The tools of one request.

    Args:
        tools: what the request lists.
        served: the server's own tools that it may ask for, as specifications.
    """

    def __init__(
        self, tools: Iterable[Mapping[str, Any]] | None, served: Iterable[str] = ()
    ) -> None:
        self.wanted: list[str] = []
        """Specifications of the server's tools that were asked for."""
        self._served: dict[str, list[str]] = {}
        for spec in served:
            self._served.setdefault(spec.partition(":")[0], []).append(spec)
        self.warnings: list[str] = []
        """One line for each tool that is not offered as it was given."""
        self.echo: list[Json] = []
        """The tools that are offered, as the response lists them."""
        self._skipped: set[str] = set()
        self._by_recipient: dict[str, WireTool] = {}
        for tool in tools or ():
            self._add(dict(tool), None)

    def __len__(self) -> int:
        return len(self._by_recipient)

    @property
    def functions(self) -> tuple[FunctionTool, ...]:
        """What the developer message announces."""
        return tuple(tool.function for tool in self._by_recipient.values())

    @property
    def calls(self) -> tuple[CallRule, ...]:
        """What the turn's grammar lets the model call."""
        return tuple(tool.rule for tool in self._by_recipient.values())

    def of(self, recipient: str) -> WireTool:
        """The tool behind a recipient; one that the model made up is a function of that name."""
        known = self._by_recipient.get(recipient)
        if known is not None:
            return known
        name = recipient.removeprefix(f"{FUNCTIONS}.")
        return WireTool("function", name, None, FunctionTool(name), False)

    def recipient(self, name: str, namespace: object = None) -> str:
        """Whom a call of a tool goes to; also for tools that this request no longer lists."""
        known = self._find(name, namespace)
        return known.recipient if known else f"{FUNCTIONS}.{_flat(name, str(namespace or ''))}"

    def choice(self, choice: str | Mapping[str, Any] | None) -> Choice:
        """Whether the model may or must call, and whom, where that is not left to it.

        Raises ApiError (400) for a choice that is not known or names a function that is not there.
        """
        if choice is None or isinstance(choice, str):
            return Choice(self._plain_choice(choice or "auto"))
        kind = choice.get("type")
        if kind == "allowed_tools":
            return self._allowed(choice)
        if self._is_wanted(kind):
            return Choice("required", (), (SERVED_TYPES[str(kind)],))
        if kind in ("function", "custom"):
            tool = self._named(choice)
            return Choice("required", (tool.recipient,)) if tool else Choice("auto")
        self.warnings.append(f"tool_choice: type {kind!r} cannot be served; 'auto' is used")
        return Choice("auto")

    def _plain_choice(self, choice: str) -> ToolChoice:
        if choice == "required" and not self._by_recipient and not self.wanted:
            self.warnings.append("tool_choice: 'required' without a tool to call; 'auto' is used")
            return "auto"
        for known in get_args(ToolChoice):
            if choice == known:
                return cast(ToolChoice, known)
        raise ApiError(
            400,
            f"tool_choice is {choice!r}; expected auto, none, required or an object",
            code="invalid_value",
            param="tool_choice",
        )

    def _allowed(self, choice: Mapping[str, Any]) -> Choice:
        entries = _objects(choice.get("tools"))
        kinds = [SERVED_TYPES[e["type"]] for e in entries if self._is_wanted(e.get("type"))]
        others = [entry for entry in entries if not self._is_wanted(entry.get("type"))]
        tools = [tool for entry in others if (tool := self._named(entry)) is not None]
        if not tools and not kinds:
            return Choice("none")
        mode = self._plain_choice(str(choice.get("mode") or "auto"))
        recipients = dict.fromkeys(tool.recipient for tool in tools)
        return Choice(mode, tuple(recipients), tuple(dict.fromkeys(kinds)))

    def _is_wanted(self, kind: object) -> bool:
        """Whether a type is that of a tool of the server that the request asks for."""
        specs = self._served.get(SERVED_TYPES.get(str(kind), ""), ())
        return any(spec in self.wanted for spec in specs)

    def _named(self, entry: Mapping[str, Any]) -> WireTool | None:
        """The tool that a choice names; None, with a warning, where it was skipped."""
        nested = entry.get("function")
        name = entry.get("name") or (nested.get("name") if isinstance(nested, Mapping) else None)
        kind = entry.get("type") or "function"
        tool = self._find(str(name), entry.get("namespace")) if name else None
        if tool is not None:
            return tool
        if kind not in ("function", "custom") or str(name) in self._skipped:
            self.warnings.append(f"tool_choice: {name or kind} cannot be served and is left out")
            return None
        raise ApiError(
            400,
            f"tool_choice names the tool {name!r}, which is not among the request's tools: "
            f"{', '.join(tool.name for tool in self._by_recipient.values()) or 'none'}",
            code="invalid_value",
            param="tool_choice",
        )

    def _find(self, name: str, namespace: object) -> WireTool | None:
        for tool in self._by_recipient.values():
            if tool.name == name and namespace in (None, tool.namespace):
                return tool
        return None

    def _add(self, tool: Json, namespace: str | None) -> bool:
        kind, name = tool.get("type"), tool.get("name")
        if kind == "namespace" and namespace is None:
            return self._add_namespace(tool)
        if namespace is None and self._is_served(tool):
            return self._add_served(tool)
        nested = tool.get("function")
        if kind == "function" and name is None and isinstance(nested, Mapping):
            tool = {"type": "function", **nested}  # Chat Completions' form
            name = tool.get("name")
        if kind not in ("function", "custom") or not isinstance(name, str) or not name:
            return self._skip(f"tools: type {kind!r} cannot be served and is left out", name)
        made = _function(tool, namespace) if kind == "function" else self._custom(tool, namespace)
        if made.recipient in self._by_recipient:
            return self._skip(f"tools.{name}: a second tool of this name is left out", None)
        self._by_recipient[made.recipient] = made
        if namespace is None:
            self.echo.append(_echo(tool))
        return True

    def _is_served(self, tool: Json) -> bool:
        """Whether the server has this tool; it calls no MCP server that a client brings along."""
        is_foreign = tool.get("type") == "mcp" and bool(tool.get("server_url"))
        return not is_foreign and SERVED_TYPES.get(str(tool.get("type"))) in self._served

    def _add_served(self, tool: Json) -> bool:
        specs = self._served[SERVED_TYPES[tool["type"]]]
        if specs[0] not in self.wanted:
            self.wanted += specs
            self.echo.append(tool)
        return True

    def _add_namespace(self, tool: Json) -> bool:
        name = str(tool.get("name") or "")
        inner = _objects(tool.get("tools"))
        kept = [_echo(entry) for entry in inner if self._add(entry, name)]
        if kept:
            self.echo.append({**tool, "description": tool.get("description") or "", "tools": kept})
        return bool(kept)

    def _custom(self, tool: Json, namespace: str | None) -> WireTool:
        name, description = tool["name"], str(tool.get("description") or "")
        form = _form(tool.get("format"))
        if form is None and _is_grammar(tool.get("format")):
            self.warnings.append(f"tools.{name}: its format cannot be read; any text is allowed")
        parameters: Json | None = _CUSTOM_PARAMETERS
        if form is not None:
            parameters, description = None, _with_form(description, form)
        described = FunctionTool(_flat(name, namespace), description, parameters)
        return WireTool("custom", name, namespace, described, True, form)

    def _skip(self, warning: str, name: object) -> bool:
        self.warnings.append(warning)
        self._skipped.add(str(name))
        return False


def custom_input(arguments: str) -> str:
    """The free text in the arguments of a custom tool's call; as they are, where it is missing."""
    try:
        value = json.loads(arguments)
    except json.JSONDecodeError:
        return arguments
    text = value.get("input") if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments


def _is_grammar(shape: object) -> bool:
    return isinstance(shape, Mapping) and shape.get("type") == "grammar"


def _form(shape: object) -> Regex | Lark | None:
    """The grammar of a custom tool's `format`; Chat Completions nests it once more."""
    if not isinstance(shape, Mapping) or shape.get("type") != "grammar":
        return None
    nested = shape.get("grammar")
    inner = nested if isinstance(nested, Mapping) else shape
    definition = inner.get("definition")
    if not isinstance(definition, str):
        return None
    match inner.get("syntax"):
        case "regex":
            return Regex(definition)
        case "lark":
            return Lark(definition)
    return None


def _with_form(description: str, form: Regex | Lark) -> str:
    """A tool's description with the form that its input must have."""
    if isinstance(form, Regex):
        told = f"Called with plain text, not JSON, that matches this expression: {form.pattern}"
    else:
        told = f"Called with plain text, not JSON, of this Lark grammar:\n{form.grammar}"
    return "\n".join(filter(None, (description, told)))


def _objects(value: object) -> list[Json]:
    entries = value if isinstance(value, list) else []
    return [dict(entry) for entry in entries if isinstance(entry, Mapping)]


def _function(tool: Json, namespace: str | None) -> WireTool:
    parameters = tool.get("parameters")
    described = FunctionTool(
        _flat(tool["name"], namespace),
        str(tool.get("description") or ""),
        parameters if isinstance(parameters, Mapping) and parameters else None,
    )
    return WireTool("function", tool["name"], namespace, described, tool.get("strict") is True)


def _flat(name: str, namespace: str | None) -> str:
    """A name that harmony's headers can hold, the namespace in front."""
    joined = (
        name if not namespace else f"{namespace}{'' if namespace.endswith('__') else '__'}{name}"
    )
    return re.sub(r"[^A-Za-z0-9_-]", "_", joined)


def _echo(tool: Json) -> Json:
    if tool.get("type") != "function":
        return tool
    defaults = {"description": None, "parameters": None, "strict": False}
    return {**defaults, **tool, "strict": tool.get("strict") is True}
