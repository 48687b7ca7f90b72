"""A JSON Schema as the grammar engine can hold it: what it cannot hold is loosened and named."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from llguidance import LLMatcher

from aperto.errors import ConfigError

WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"
"""Blanks between JSON tokens: enough for indented JSON, too few to idle in for ever."""

# fmt: off
_NOT_HELD = frozenset((
    "if", "then", "else", "not", "contains", "minContains", "maxContains", "uniqueItems",
    "dependentRequired", "dependentSchemas", "dependencies", "propertyNames",
    "unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef",
))
_NO_DEMAND: dict[str, Any] = {"uniqueItems": False, "unevaluatedProperties": True}
_REMARKS = frozenset((
    "$schema", "$id", "id", "$comment", "title", "description", "default", "examples", "example",
    "deprecated", "readOnly", "writeOnly", "nullable", "strict", "contentEncoding",
    "contentMediaType", "contentSchema",
))
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_SHARED = ("$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = ("items", "additionalItems", "additionalProperties")
_COMBINERS = ("allOf", "anyOf", "oneOf", "$ref")
# The least that is given up first.
_GIVEN_UP = (
    "pattern", "format", "multipleOf", "minProperties", "maxProperties", "minItems", "maxItems",
    "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "oneOf", "patternProperties", "const", "enum", "items", "prefixItems", "additionalItems",
    "required", "allOf", "anyOf", "additionalProperties", "properties",
)
# fmt: on

Schema = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class HeldSchema:
    """What a grammar enforces of a schema."""

    schema: Schema | bool
    """The schema without what cannot be enforced."""
    losses: tuple[str, ...]
    """One line a loosened field: ``.items.pattern: '...' is not supported; ...``."""


def held_schema(schema: Mapping[str, Any] | bool, strict: bool, is_object: bool) -> HeldSchema:
    """The part of a schema that a grammar can enforce.

    Args:
        schema: a JSON Schema, draft 4 to 2020-12.
        strict: close objects that do not say what else they may hold.
        is_object: whether the value is an object even where the schema does not say so.

    Raises ConfigError for a schema that is nested too deeply to be read, or is not JSON.
    """
    try:
        return _held(json.dumps(schema), strict, is_object)
    except (RecursionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"a JSON Schema cannot be read ({type(error).__name__}: {error}); expected JSON, "
            "not too deeply nested"
        ) from error


@functools.lru_cache(maxsize=512)
def _held(text: str, strict: bool, is_object: bool) -> HeldSchema:
    root = json.loads(text)
    if not isinstance(root, dict):
        root = {} if is_object or root is not False else root
    if isinstance(root, dict) and is_object and not set(root) & {"type", *_COMBINERS}:
        root = {"type": "object", **root}
    if not isinstance(root, dict):
        return HeldSchema(root, ())
    return _Loosener(root, strict, is_object).run()


def compiles(schema: Any) -> str:
    """What the grammar engine objects to in a schema; empty where it takes it."""
    text = json.dumps({"grammars": [{"json_schema": schema}]})
    return str(LLMatcher.validate_grammar(text))


class _Loosener:
    """Works on one schema; see `held_schema`."""

    def __init__(self, root: Schema, strict: bool, is_object: bool) -> None:
        self._root = root
        self._strict = strict
        self._is_object = is_object
        self._losses: list[str] = []

    def run(self) -> HeldSchema:
        for path, node in list(_nodes(self._root)):
            self._plain(path, node)
        if self._strict:
            _close(self._root)
        steps = (self._mend_refs, self._mend_nodes, self._mend_siblings, self._give_up)
        for step in steps:
            if not compiles(self._root):
                break
            step()
        return HeldSchema(self._root, tuple(self._losses))

    def _lose(self, path: str, key: str, value: Any, instead: str) -> None:
        shown = json.dumps(value, ensure_ascii=False)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        self._losses.append(f"{path}: {key} {shown} is not supported; {instead}")

    def _plain(self, path: str, node: Schema) -> None:
        """Drop remarks and the keywords that no grammar holds; say what is an object."""
        for key in [key for key in node if key in _REMARKS]:
            del node[key]
        for key in [key for key in node if key in _NOT_HELD]:
            value = node.pop(key)
            if key not in _NO_DEMAND or value != _NO_DEMAND[key]:
                self._lose(path, key, value, "it is not enforced")
        if "properties" in node and not set(node) & {"type", "$ref"}:
            node["type"] = "object"

    def _mend_refs(self) -> None:
        for path, node in list(_nodes(self._root)):
            ref = node.get("$ref")
            if ref is not None and not _leads_somewhere(self._root, ref):
                del node["$ref"]
                self._lose(path, "$ref", ref, _any(node))

    def _mend_nodes(self) -> None:
        """The innermost first, each for its own faults alone."""
        for path, node in reversed(list(_nodes(self._root))):
            if compiles(_without_refs(node)):
                self._mend(path, node)

    def _mend(self, path: str, node: Schema) -> None:
        """Give up the one keyword that stands in the way, or all but the type."""
        for key in _GIVEN_UP:
            if key not in node:
                continue
            without = {name: value for name, value in node.items() if name != key}
            if key == "oneOf" and "anyOf" not in node:
                without["anyOf"] = node[key]
            if compiles(_without_refs(without)):
                continue
            value = node.pop(key)
            node.update(without)
            instead = "any branch may match" if key == "oneOf" else _any(node)
            self._lose(path, key, value, instead)
            return
        self._bare(path, node, "its parts contradict each other or are not supported")

    def _mend_siblings(self) -> None:
        """Where a reference and what stands beside it do not go together, the reference alone."""
        for path, node in reversed(list(_nodes(self._root))):
            siblings = [key for key in node if key in _GIVEN_UP]
            if "$ref" in node and siblings and compiles(self._root):
                values = {key: node.pop(key) for key in siblings}
                self._lose(path, "beside $ref", values, "the reference alone counts")

    def _give_up(self) -> None:
        self._bare("", self._root, "too much is asked together")

    def _bare(self, path: str, node: Schema, why: str) -> None:
        kept: Schema = {key: node[key] for key in _SHARED if key in node}
        if isinstance(node.get("type"), str) and node["type"] in _TYPES:
            kept["type"] = node["type"]
        elif node is self._root and self._is_object:
            kept["type"] = "object"
        node.clear()
        node.update(kept)
        self._losses.append(f"{path}: {why}; {_any(node)}")


_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


def _any(node: Schema) -> str:
    kind = node.get("type")
    if set(node) - {"type", *_SHARED}:
        return "it is not enforced"
    return f"any {kind} is allowed" if isinstance(kind, str) else "any value is allowed"


def _children(node: Schema) -> Iterator[tuple[str, Any]]:
    for key in _MAPS:
        if isinstance(node.get(key), dict):
            place = f".{key}" if key in _SHARED else ""
            yield from ((f"{place}.{name}", child) for name, child in node[key].items())
    for key in _LISTS:
        if isinstance(node.get(key), list):
            yield from ((f".{key}[{i}]", child) for i, child in enumerate(node[key]))
    for key in _SINGLE:
        child = node.get(key)
        if isinstance(child, list):
            yield from ((f".{key}[{i}]", entry) for i, entry in enumerate(child))
        else:
            yield f".{key}", child


def _nodes(node: Any, path: str = "") -> Iterator[tuple[str, Schema]]:
    """All subschemas that are objects, each before its parts."""
    if isinstance(node, dict):
        yield path, node
        for name, child in _children(node):
            yield from _nodes(child, path + name)


def _without_refs(node: Any) -> Any:
    """The schema with every reference taken as anything, so that only its own faults show."""
    plain = copy.deepcopy(node)
    for _, child in _nodes(plain):
        child.pop("$ref", None)
    return plain


def _leads_somewhere(root: Schema, ref: Any) -> bool:
    if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
        return False
    place: Any = root
    for part in ref[2:].split("/") if ref != "#" else ():
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
            place = place[int(part)]
        elif isinstance(place, dict) and part in place:
            place = place[part]
        else:
            return False
    return isinstance(place, dict | bool)


def _close(root: Schema) -> None:
    """Close objects, but those that other schemas add properties to."""
    open_refs = {
        node["$ref"]
        for _, node in _nodes(root)
        for node in (*_members(node), *([node] if "properties" in node else ()))
        if isinstance(node.get("$ref"), str)
    }
    joined = {id(member) for _, node in _nodes(root) for member in _members(node)}
    targets = {id(_resolve(root, ref)) for ref in open_refs}
    for _, node in _nodes(root):
        is_alone = not set(node) & set(_COMBINERS)
        is_whole = is_alone and id(node) not in joined and id(node) not in targets
        if is_whole and "properties" in node and "patternProperties" not in node:
            node.setdefault("additionalProperties", False)


def _members(node: Schema) -> list[Schema]:
    """Subschemas that hold for the same value as something beside them."""
    shared = [*node.get("allOf", ())]
    if "properties" in node or "$ref" in node:
        shared += [*node.get("anyOf", ()), *node.get("oneOf", ())]
    return [member for member in shared if isinstance(member, dict)]


def _resolve(root: Schema, ref: str) -> Any:
    place: Any = root
    for part in ref[2:].split("/") if ref.startswith("#/") else ():
        place = (
            place.get(part.replace("~1", "/").replace("~0", "~"))
            if isinstance(place, dict)
            else None
        )
    return place
