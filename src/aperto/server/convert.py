"""What doors share: efforts, sampling, tools, choices of tools and forms of the answer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from aperto.engine import SamplingParams
from aperto.errors import ConfigError
from aperto.harmony import (
    AnswerFormat,
    CallRule,
    Effort,
    FunctionTool,
    JsonObject,
    JsonSchema,
    Lark,
    Regex,
    ResponseFormat,
    ToolChoice,
    TurnRules,
)
from aperto.server.errors import ApiError

# Fields without an effect on the answer: nothing is lost by not knowing them.
_SILENT = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
_TOKEN_ID = re.compile(r"[0-9]{1,9}")
_MOST_BIAS = 100
FUNCTIONS = "functions."
"""Begins the recipients of a client's functions."""
_EFFORTS = {
    "minimal": Effort.LOW,
    "low": Effort.LOW,
    "medium": Effort.MEDIUM,
    "high": Effort.HIGH,
    "xhigh": Effort.HIGH,
    "max": Effort.HIGH,
}


@dataclasses.dataclass(frozen=True, slots=True)
class ClientFunction:
    """A function of the client: what the model is told, and how closely it is held to it."""

    tool: FunctionTool
    """Name, description, parameters."""
    strict: bool = False
    """Whether arguments are held to exactly the declared fields."""


def unknown_fields(body: BaseModel, handled: Collection[str] = ()) -> list[str]:
    """A warning for each field of a request that has a value and is not understood."""
    return [
        f"{name[:80]}: not supported; it was skipped"
        for name, value in (body.model_extra or {}).items()
        if value is not None and name not in _SILENT and name not in handled
    ]


def effort_from(value: str | None) -> tuple[Effort | None, bool]:
    """Effort, and whether there is reasoning at all, from a client's word for it.

    Raises ApiError 400 for unknown words.
    """
    if value is None:
        return None, True
    if value == "none":
        return Effort.LOW, False
    if value not in _EFFORTS:
        raise ApiError(
            400,
            f"reasoning effort is {value!r}; expected none, {', '.join(_EFFORTS)}",
            code="invalid_value",
            param="reasoning_effort",
        )
    return _EFFORTS[value], True


def sampling_from(**fields: Any) -> SamplingParams:
    """SamplingParams from fields of which some are None; logit_bias has ids as text.

    Raises ConfigError on values out of range.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    if "logit_bias" in given:
        given["logit_bias"] = _bias_from(given["logit_bias"])
    return SamplingParams(**given)


def _bias_from(bias: Mapping[str, float]) -> dict[int, float]:
    for token_id, value in bias.items():
        if not _TOKEN_ID.fullmatch(token_id) or not -_MOST_BIAS <= value <= _MOST_BIAS:
            raise ConfigError(
                f"logit_bias has {token_id[:20]!r}: {value}; expected token ids as text, such as "
                f"'42', with values from -{_MOST_BIAS} to {_MOST_BIAS}"
            )
    return {int(token_id): value for token_id, value in bias.items()}


def stop_from(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Stop strings, without the empty ones that some clients send."""
    strings = (value,) if isinstance(value, str) else tuple(value or ())
    return tuple(text for text in strings if text)


def tools_to_rules(
    functions: Sequence[ClientFunction],
    *,
    tool_choice: str | Mapping[str, Any] | None = None,
    parallel_calls: bool | None = None,
    reasoning: bool = True,
    answer: AnswerFormat | None = None,
    warnings: list[str],
) -> TurnRules:
    """The rules of a turn in which a client's functions may be called.

    Raises ApiError 400 where tool_choice names no function, ConfigError for impossible names.
    """
    names = [function.tool.name for function in functions]
    choice, allowed = choice_from(tool_choice, names, warnings)
    return TurnRules(
        calls=tuple(_call_rule(function) for function in functions),
        tool_choice=choice,
        allowed=allowed,
        parallel_calls=parallel_calls is not False,
        reasoning=reasoning,
        answer=answer,
    )


def _call_rule(function: ClientFunction) -> CallRule:
    parameters = function.tool.parameters
    return CallRule(
        recipient=FUNCTIONS + function.tool.name,
        parameters={"type": "object"} if parameters is None else parameters,
        strict=function.strict,
    )


def choice_from(
    value: str | Mapping[str, Any] | None, names: Sequence[str], warnings: list[str]
) -> tuple[ToolChoice, tuple[str, ...] | None]:
    """What a client's tool_choice means: the choice, and the recipients it is narrowed to.

    Raises ApiError 400 for choices that are unknown or name no function.
    """
    if isinstance(value, Mapping):
        return _mapped_choice(value, names, warnings)
    if value in (None, "auto", "none"):
        return ("none", None) if value == "none" else ("auto", None)
    if value not in ("required", "any"):
        raise ApiError(
            400,
            f"tool_choice is {value!r}; expected auto, none, required or a named function",
            code="invalid_value",
            param="tool_choice",
        )
    if not names:
        warnings.append("tool_choice: a call is required, but no tool can be called; ignored")
        return "auto", None
    return "required", None


def _mapped_choice(
    value: Mapping[str, Any], names: Sequence[str], warnings: list[str]
) -> tuple[ToolChoice, tuple[str, ...] | None]:
    kind = value.get("type")
    if kind == "function":
        wanted = [_function_name(value)]
        mode: ToolChoice = "required"
    elif kind == "allowed_tools":
        inner = value.get("allowed_tools", value)
        inner = inner if isinstance(inner, Mapping) else {}
        tools = [tool for tool in _list(inner.get("tools")) if isinstance(tool, Mapping)]
        wanted = [_function_name(tool) for tool in tools if tool.get("type") == "function"]
        mode = "required" if inner.get("mode") == "required" else "auto"
    else:
        warnings.append(f"tool_choice: type {kind!r} is not supported; the model chooses")
        return "auto", None
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ApiError(
            400,
            f"tool_choice names {', '.join(map(repr, unknown))}; expected one of the tools: "
            f"{', '.join(names) or 'none'}",
            code="invalid_value",
            param="tool_choice",
        )
    if mode == "required" and not wanted:
        return "auto", ()
    return mode, tuple(FUNCTIONS + name for name in dict.fromkeys(wanted))


def _function_name(value: Mapping[str, Any]) -> str:
    function = value.get("function")
    name = function.get("name") if isinstance(function, Mapping) else value.get("name")
    return name if isinstance(name, str) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def answer_format_from(
    value: Mapping[str, Any] | None, warnings: list[str], param: str = "response_format"
) -> tuple[AnswerFormat | None, ResponseFormat | None]:
    """The form of the answer, as the grammar and as the model is told it.

    Takes OpenAI's text, json_object and json_schema (in Chat's and in Responses' shape), and
    {"type": "regex", "pattern": …} and {"type": "lark", "grammar": …}.
    Raises ApiError 400 where a schema, pattern or grammar is missing.
    """
    kind = (value or {}).get("type", "text")
    if value is None or kind == "text":
        return None, None
    if kind == "json_object":
        return JsonObject(), None
    if kind == "json_schema":
        inner = value.get("json_schema", value)
        inner = inner if isinstance(inner, Mapping) else {}
        schema = _field(inner, "schema", Mapping, f"{param}.schema")
        name, description = inner.get("name"), inner.get("description")
        announced = ResponseFormat(
            name if isinstance(name, str) and name else "answer",
            schema,
            description if isinstance(description, str) else "",
        )
        return JsonSchema(schema, strict=inner.get("strict") is True), announced
    if kind == "regex":
        return Regex(_field(value, "pattern", str, f"{param}.pattern")), None
    if kind in ("lark", "grammar"):
        return Lark(_field(value, "grammar", str, f"{param}.grammar")), None
    warnings.append(f"{param}: type {kind!r} is not supported; the answer is free text")
    return None, None


def _field(value: Mapping[str, Any], name: str, kind: type, param: str) -> Any:
    found = value.get(name)
    if not isinstance(found, kind):
        expected = "an object" if kind is Mapping else "text"
        raise ApiError(
            400,
            f"{param} is {type(found).__name__}; expected {expected}",
            code="invalid_value",
            param=param,
        )
    return found


def unique_functions(
    functions: Iterable[ClientFunction], warnings: list[str]
) -> tuple[ClientFunction, ...]:
    """The functions, those whose name came before left out with a warning."""
    kept: dict[str, ClientFunction] = {}
    for function in functions:
        if function.tool.name in kept:
            warnings.append(f"tools: {function.tool.name!r} is there twice; the first counts")
        kept.setdefault(function.tool.name, function)
    return tuple(kept.values())
