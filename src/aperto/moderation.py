"""Moderation: a text against a policy that anyone can edit, judged by a model that is given it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Annotated, TypeAlias

import pydantic

from aperto.errors import EngineError, UsageError

Judge: TypeAlias = Callable[[str, str], str]
"""From instructions (a developer message) and content (a user message) to the judge's answer."""

ATTEMPTS = 2
"""Times a judge is asked before its verdict counts as unreadable."""

Text = Annotated[str, pydantic.Field(min_length=1)]


class Category(pydantic.BaseModel):
    """One kind of content that a policy forbids."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, pydantic.Field(pattern=r"^[a-z0-9][a-z0-9_/-]*$")]
    violates: Text
    """What falls under it."""
    allowed: Text
    """What comes close and does not."""


class Policy(pydantic.BaseModel):
    """A policy file, validated."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Text
    introduction: Text
    """How to judge, in general."""
    categories: Annotated[tuple[Category, ...], pydantic.Field(min_length=1)]

    @pydantic.model_validator(mode="after")
    def _names_differ(self) -> Policy:
        names = [category.name for category in self.categories]
        if len(set(names)) < len(names):
            raise ValueError("two categories have one name")
        return self

    @property
    def sha256(self) -> str:
        """Hash of the policy as the judge reads it; hex."""
        return hashlib.sha256(instructions(self).encode()).hexdigest()


@dataclasses.dataclass(frozen=True, slots=True)
class Moderation:
    """What a judge said of one text."""

    categories: dict[str, bool]
    """Every category of the policy, and whether the text violates it."""
    rationale: str
    """The judge's reason, in a sentence."""

    @property
    def flagged(self) -> bool:
        """Whether any category is violated."""
        return any(self.categories.values())


def default_policy() -> Policy:
    """The policy that comes with the package."""
    return _bundled()


def read_policy(path: str | Path) -> Policy:
    """Read a policy file.

    Raises UsageError that names the field that does not fit.
    """
    return _policy(Path(path).read_text(encoding="utf-8"), str(path))


def moderate(content: str, judge: Judge, policy: Policy | None = None) -> Moderation:
    """Judge one text.

    Raises EngineError where the judge twice gave no verdict: nothing is let through unseen.
    """
    chosen = policy or default_policy()
    text = instructions(chosen)
    said = ""
    for _ in range(ATTEMPTS):
        said = judge(text, content)
        found = parse_verdict(said, chosen)
        if found is not None:
            return found
    raise EngineError(
        f"the judge's verdict could not be read: {said[:200]!r}; expected "
        '{"violations": [...], "reason": "..."}. Use a model that was trained to judge'
    )


def instructions(policy: Policy) -> str:
    """What the judge is told: the policy, and the form of its verdict."""
    rules = "\n\n".join(
        f"## {one.name}\nViolates: {' '.join(one.violates.split())}\n"
        f"Allowed: {' '.join(one.allowed.split())}"
        for one in policy.categories
    )
    return (
        f"# Policy: {policy.name}\n{policy.introduction.strip()}\n\n{rules}\n\n"
        "# Verdict\n"
        "Answer with one JSON object and nothing else: "
        '{"violations": [names of violated categories], "reason": "one sentence"}. '
        "An empty list means that the text is allowed. If two categories fit, name both."
    )


def verdict_schema(policy: Policy) -> dict[str, object]:
    """JSON Schema of a verdict, for judges whose answers can be constrained."""
    names = [category.name for category in policy.categories]
    return {
        "type": "object",
        "properties": {
            "violations": {"type": "array", "items": {"type": "string", "enum": names}},
            "reason": {"type": "string"},
        },
        "required": ["violations", "reason"],
        "additionalProperties": False,
    }


def parse_verdict(text: str, policy: Policy) -> Moderation | None:
    """The verdict in a judge's answer; None where there is none, or it names unknown categories.

    The last JSON object counts: some judges think aloud before it.
    """
    for found in reversed(_objects(text)):
        names = found.get("violations")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            continue
        known = [category.name for category in policy.categories]
        if not set(names) <= set(known):
            return None
        reason = found.get("reason")
        return Moderation(
            {name: name in names for name in known}, reason if isinstance(reason, str) else ""
        )
    return None


def _objects(text: str) -> list[dict[str, object]]:
    """All JSON objects that start somewhere in the text and are not inside another one."""
    decoder = json.JSONDecoder()
    found: list[dict[str, object]] = []
    end = 0
    for match in re.finditer(r"\{", text):
        if match.start() < end:
            continue
        try:
            value, end = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            continue
        found.append(value)
    return found


@functools.cache
def _bundled() -> Policy:
    file = resources.files("aperto") / "policies" / "default.toml"
    return _policy(file.read_text(encoding="utf-8"), file.name)


def _policy(text: str, where: str) -> Policy:
    try:
        return Policy.model_validate_json(json.dumps(tomllib.loads(text)))
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise UsageError(f"{where} is not TOML as expected: {error}") from error
    except pydantic.ValidationError as error:
        found = error.errors()[0]
        field = ".".join(str(part) for part in found["loc"]) or "the file"
        raise UsageError(f"{where}: {field}: {found['msg']}; expected a policy") from error
