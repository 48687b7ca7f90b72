"""Bodies of `/v1/moderations`, and of the `moderation` that other doors take and give."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="allow")


class ModerationInput(_Lenient):
    """One part of the input; only text can be judged."""

    type: str
    text: str | None = None


class ModerationRequest(_Lenient):
    """Body of `POST /v1/moderations`."""

    input: str | list[str] | list[ModerationInput]
    model: str | None = None


class ModerationResult(BaseModel):
    """The verdict on one text."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    """1 where violated, else 0: the judge's word, not a probability."""
    category_applied_input_types: dict[str, list[Literal["text"]]]
    rationale: str


class Moderations(BaseModel):
    """Answer of `POST /v1/moderations`, one result for each input."""

    id: str
    model: str
    results: list[ModerationResult]
    policy: str
    """Name of the policy."""
    policy_sha256: str


class ModerationMode(_Lenient):
    """What is done with a verdict: `score` tells it; `block` is not served."""

    mode: str = "score"


class ModerationModes(_Lenient):
    """What is done with the verdicts on input and output."""

    input: ModerationMode | None = None
    output: ModerationMode | None = None


class ModerationConfig(_Lenient):
    """Asks other doors to judge what the user said last and what is answered."""

    model: str | None = None
    policy: ModerationModes | None = None


Verdict = dict[str, Any]
"""A `moderation_result`, or an `error` where there is none."""
