"""JSON Schema to the TypeScript-like types in which gpt-oss reads its tools.

The wording, the blanks and the quirks are those of openai-harmony 0.0.8, token for token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from aperto.harmony.messages import FunctionTool, ToolNamespace

Schema = Mapping[str, Any]


def namespace_text(namespace: ToolNamespace) -> str:
    """The section that describes a namespace and its functions."""
    lines = [f"## {namespace.name}\n"]
    comment = "// " if namespace.tools else ""
    lines += [comment + line for line in text_lines(namespace.description or "")]
    if namespace.tools:
        lines.append(f"namespace {namespace.name} {{\n")
        for tool in namespace.tools:
            lines += _tool_lines(tool)
        lines.append(f"}} // namespace {namespace.name}")
    return "\n".join(lines)


def typescript(schema: Any, indent: str = "") -> str:
    """The type that a JSON Schema describes; what it cannot say becomes ``any``.

    Args:
        schema: a JSON Schema; anything but a mapping is ``any``.
        indent: blanks before each line after the first.
    """
    if not isinstance(schema, Mapping):
        return "any"
    if isinstance(schema.get("oneOf"), list | tuple):
        return "".join(_variant_lines(schema["oneOf"], indent))
    kind = schema.get("type")
    if isinstance(kind, list | tuple):
        names = ["number" if name == "integer" else str(name) for name in kind]
        return " | ".join(names) or "any"
    if kind == "object":
        return _object_type(schema, indent)
    if kind == "array":
        return f"{typescript(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
    if kind == "string":
        values = schema.get("enum") if _is_enum(schema) else None
        return " | ".join(f'"{v}"' for v in values or () if isinstance(v, str)) or "string"
    return {"number": "number", "integer": "number", "boolean": "boolean"}.get(str(kind), "any")


def compact_json(value: Any) -> str:
    """JSON without blanks, as the Rust library that openai-harmony uses writes it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_quoted(k)}:{compact_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(compact_json, value)) + "]"
    if isinstance(value, float):
        return _float_text(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return _float_text(float(value))
    return json.dumps(value, ensure_ascii=False)


def text_lines(text: str) -> list[str]:
    """Lines that end in a newline, or in a carriage return and a newline, and nothing else."""
    lines = text.split("\n")
    last = lines.pop()
    return [line.removesuffix("\r") for line in lines] + ([last] if last else [])


def _tool_lines(tool: FunctionTool) -> list[str]:
    arguments = "" if tool.parameters is None else f"_: {typescript(tool.parameters)}"
    comments = [f"// {line}" for line in text_lines(tool.description)]
    return [*comments, f"type {tool.name} = ({arguments}) => any;\n"]


def _object_type(schema: Schema, indent: str) -> str:
    description = _string(schema, "description")
    out = "" if description is None else f"{indent}// {description}\n"
    out += "{\n"
    properties = schema.get("properties")
    required = schema.get("required")
    names = set(map(str, required)) if isinstance(required, list | tuple) else set()
    for key, value in properties.items() if isinstance(properties, Mapping) else ():
        value = value if isinstance(value, Mapping) else {}
        out += _property(key if key in names else f"{key}?", value, indent)
    return out + f"{indent}}}"


def _property(key: str, schema: Schema, indent: str) -> str:
    out = ""
    title = _string(schema, "title")
    if title is not None:
        out += f"{indent}// {title}\n{indent}//\n"
    description = _string(schema, "description")
    if description is not None and "oneOf" not in schema:
        out += f"{indent}// {description}\n"
    examples = schema.get("examples")
    if isinstance(examples, list | tuple) and examples:
        out += f"{indent}// Examples:\n"
        out += "".join(f'{indent}// - "{e}"\n' for e in examples if isinstance(e, str))
    if isinstance(schema.get("oneOf"), list | tuple):
        return out + _union_property(key, schema, indent)
    out += f"{indent}{key}: {_nullable(schema, indent + '    ')},"
    if "default" in schema and "oneOf" not in schema:
        out += f" // {_default(schema)}"
    return out + "\n"


def _union_property(key: str, schema: Schema, indent: str) -> str:
    variants = schema["oneOf"]
    shared = _string(schema, "description")
    first = _string(variants[0], "description") if variants else None
    above = shared is not None and shared != first
    out = f"{indent}// {shared}\n" if above else ""
    if "default" in schema:
        out += f"{indent}// {_default(schema)}\n"
    out += f"{indent}{key}:\n"
    for index, variant in enumerate(variants):
        notes = []
        description = _string(variant, "description")
        if description is not None and description != shared and not (above and index == 0):
            notes.append(description)
        if isinstance(variant, Mapping) and "default" in variant:
            notes.append(_default(variant))
        out += f"{indent} | {_nullable(variant, indent + '   ')}"
        out += f" // {' '.join(notes)}\n" if notes else "\n"
    return out + f"{indent},\n"


def _variant_lines(variants: Sequence[Any], indent: str) -> list[str]:
    lines = []
    for variant in variants:
        notes = []
        description = _string(variant, "description")
        if description is not None:
            notes.append(description)
        if isinstance(variant, Mapping) and "default" in variant:
            notes.append(_default(variant, bare_enum=False))
        line = f"\n{indent} | {_nullable(variant, indent + '   ')}"
        lines.append(line + (f" // {' '.join(notes)}" if notes else ""))
    return lines


def _nullable(schema: Any, indent: str) -> str:
    text = typescript(schema, indent)
    if isinstance(schema, Mapping) and schema.get("nullable") is True and "null" not in text:
        text += " | null"
    return text


def _default(schema: Schema, bare_enum: bool = True) -> str:
    value = schema["default"]
    if not isinstance(value, str):
        return f"default: {compact_json(value)}"
    if not _is_enum(schema):
        return f'default: "{value}"'
    return f"default: {value if bare_enum else _quoted(value)}"


def _is_enum(schema: Schema) -> bool:
    values = schema.get("enum")
    return isinstance(values, list | tuple) and len(values) > 0


def _string(schema: Any, key: str) -> str | None:
    value = schema.get(key) if isinstance(schema, Mapping) else None
    return value if isinstance(value, str) else None


def _quoted(text: Any) -> str:
    return json.dumps(str(text), ensure_ascii=False)


def _float_text(value: float) -> str:
    """Shortest decimal; an exponent has neither a plus sign nor leading zeros."""
    mantissa, _, exponent = repr(value).partition("e")
    if not exponent:
        return mantissa
    if int(exponent) == -5:
        digits = mantissa.lstrip("-").replace(".", "")
        return f"{'-' if value < 0 else ''}0.0000{digits}"
    return f"{mantissa}e{int(exponent)}"
