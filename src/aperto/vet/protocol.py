"""The protocol: what is measured, against which margins, fixed and hashed before any run."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from aperto.errors import EvidenceError, UsageError
from aperto.vet.rows import Effort

SCHEMA = 1
FROZEN_SUFFIX = ".frozen.json"

Text = Annotated[str, pydantic.Field(min_length=1)]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Name = Annotated[str, pydantic.Field(pattern=r"^[a-z0-9][a-z0-9_./-]*$")]


class Arm(enum.StrEnum):
    """The sides of a comparison."""

    BASE = "base"
    ADAPTED = "adapted"
    BASE_AGAIN = "base-again"
    """The base once more with other seeds: what the procedure alarms at by itself."""
    BASE_REQUANTISED = "base-requantised"
    """The base through the merging and quantising path without training."""
    WORST_CASE = "worst-case"
    """A checkpoint of a qualified laboratory; only measured."""


class Kind(enum.StrEnum):
    """What a suite decides."""

    SAFETY = "safety"
    """Harm may not grow by the margin; void where integrity fails."""
    UTILITY = "utility"
    """Use may not fall by the margin; stands whatever integrity says."""
    CAPABILITY = "capability"
    """A hazardous skill, or its stand-in: growth is shown to a named person."""
    CANARY = "canary"
    """Must not happen once."""
    INTEGRITY = "integrity"
    """Answers are well formed; without it the safety suites mean nothing."""
    REPORT = "report"
    """Shown, decides nothing."""


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


class Scope(_Part):
    """What is vetted and for what use."""

    model: Text
    """The base model."""
    use: Text
    """What the adapted model is for, and who will use it."""
    not_tested: tuple[Text, ...] = ()
    """What this protocol leaves open; printed in the report."""


class Adversary(_Part):
    """Against whom."""

    description: Text
    """Skill, data and means assumed. `nobody` where only accidents are tested."""
    budget: str = "none"


class Statistics(_Part):
    """Levels of the tests."""

    alpha: Annotated[float, pydantic.Field(gt=0, le=0.1)] = 0.025
    """One-sided level of every test; split evenly between the looks."""
    enlargement: Annotated[int, pydantic.Field(ge=1, le=8)] = 2
    """How many times as many answers the one registered enlargement takes; 1 for none."""
    enlarge: Literal["items", "epochs"] = "items"
    """What is enlarged."""

    @property
    def alpha_per_look(self) -> float:
        """Level of one look."""
        return self.alpha if self.enlargement == 1 else self.alpha / 2


class Judging(_Part):
    """Who grades where strings cannot."""

    model: Text
    """Checkpoint or endpoint, pinned; never the arm under test."""
    min_sensitivity: Share = 0.85
    """Least lower bound on human labels."""
    min_specificity: Share = 0.85


class Reviewer(_Part):
    """A person who may sign."""

    name: Text
    role: Text
    public_key: Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]
    """Ed25519 public key, 64 hex digits."""


class Suite(_Part):
    """One suite, its rule and its size."""

    name: Name
    """As in the rows: `hierarchy/phrase`."""
    kind: Kind
    score: Text
    """What the score says: `unsafe`, `correct`, `held`, ..."""
    more_is: Literal["better", "worse"]
    """Whether a higher score is better."""
    num_items: Annotated[int, pydantic.Field(ge=1)]
    epochs: Annotated[int, pydantic.Field(ge=1)] = 1
    num_clusters: Annotated[int, pydantic.Field(ge=2)] | None = None
    """Independent groups of items; None where every item is its own."""
    efforts: tuple[Effort, ...] = ("low", "medium", "high")
    """Strata; the worst decides."""
    enlarge: Literal["items", "epochs"] | None = None
    """What the enlargement enlarges, where not what the protocol says: data may be finite."""
    margin: Annotated[float, pydantic.Field(gt=0, le=1)] | None = None
    """Largest harm let pass (safety, utility), or growth that escalates (capability)."""
    floor: float | None = None
    """Worst mean score of the adapted arm that is let pass at all."""
    bar: float | None = None
    """Score whose crossing escalates: an expert's, or another model's."""
    bar_source: str = ""
    """Where the bar comes from."""
    interval: Literal["auto", "half", "bootstrap"] = "auto"
    """`auto`: Tango's for one binary answer an item, else the 1/2-corrected; `bootstrap` for
    composite scores."""
    judged: bool = False
    """Whether a judge grades it."""

    @pydantic.model_validator(mode="after")
    def _fits_its_kind(self) -> Suite:
        needs_margin = self.kind in (Kind.SAFETY, Kind.UTILITY, Kind.CAPABILITY)
        if needs_margin and self.margin is None:
            raise ValueError(f"suite {self.name}: kind {self.kind} needs a margin")
        if self.kind is Kind.INTEGRITY and (self.floor is None or self.more_is != "better"):
            raise ValueError(
                f"suite {self.name}: kind integrity needs a floor, and more_is = 'better'"
            )
        if self.kind is Kind.CANARY and self.more_is != "worse":
            raise ValueError(f"suite {self.name}: kind canary counts harm; more_is = 'worse'")
        if self.bar is not None and not self.bar_source:
            raise ValueError(f"suite {self.name}: a bar needs its bar_source")
        if not self.efforts or len(set(self.efforts)) < len(self.efforts):
            raise ValueError(f"suite {self.name}: efforts must be some, each once")
        if self.num_clusters is not None and self.num_clusters > self.num_items:
            raise ValueError(f"suite {self.name}: more clusters than items")
        return self


class Protocol(_Part):
    """A protocol file, validated."""

    version: Literal[1] = pydantic.Field(alias="schema")
    name: Text
    scope: Scope
    adversary: Adversary
    domains: Annotated[tuple[Text, ...], pydantic.Field(min_length=1)]
    """Fields of harm looked at."""
    statistics: Statistics = Statistics()
    judging: Judging | None = None
    arms: tuple[Arm, ...] = (Arm.BASE, Arm.ADAPTED, Arm.BASE_AGAIN)
    suites: Annotated[tuple[Suite, ...], pydantic.Field(min_length=1)]
    reviewers: tuple[Reviewer, ...] = ()

    @pydantic.model_validator(mode="after")
    def _holds_together(self) -> Protocol:
        names = [suite.name for suite in self.suites]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"suites named twice: {', '.join(twice)}")
        missing = {Arm.BASE, Arm.ADAPTED, Arm.BASE_AGAIN} - set(self.arms)
        if missing:
            raise ValueError(f"arms lack {', '.join(sorted(missing))}")
        if self.judging is None and any(suite.judged for suite in self.suites):
            raise ValueError("a suite is judged; expected a [judging] section")
        self._check_integrity_is_measured()
        return self

    def _check_integrity_is_measured(self) -> None:
        measured = {e for s in self.suites if s.kind is Kind.INTEGRITY for e in s.efforts}
        for suite in self.suites:
            bare = sorted(set(suite.efforts) - measured)
            if suite.kind is Kind.SAFETY and bare:
                raise ValueError(
                    f"safety suite {suite.name} runs at effort {', '.join(bare)}, where no suite "
                    "of kind integrity does; without one its results mean nothing"
                )

    def suite(self, name: str) -> Suite:
        """The suite of that name.

        Raises UsageError that lists the names there are.
        """
        for suite in self.suites:
            if suite.name == name:
                return suite
        known = ", ".join(suite.name for suite in self.suites)
        raise UsageError(f"the protocol has no suite {name!r}; it has {known}")

    def reviewer(self, name: str) -> Reviewer | None:
        """The reviewer of that name."""
        return next((person for person in self.reviewers if person.name == name), None)


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenProtocol:
    """A protocol that can no longer change: the only kind a verdict is made under."""

    protocol: Protocol
    sha256: str
    """Hash of its content, whatever its layout in the file."""
    frozen_at: str
    """UTC, ISO 8601."""


def read_protocol(path: str | Path) -> Protocol:
    """Read and validate a protocol file.

    Raises UsageError that names the line or field that does not fit.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        return Protocol.model_validate_json(json.dumps(tomllib.loads(text)))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    except (pydantic.ValidationError, TypeError) as error:
        raise UsageError(f"{path}: {_first_problem(error)}") from error


def protocol_hash(protocol: Protocol) -> str:
    """SHA-256 of the validated content, defaults included; hex."""
    return _hash(_plain(protocol))


def freeze(path: str | Path, now: datetime.datetime | None = None) -> FrozenProtocol:
    """Freeze a protocol file: its content and hash go into a file beside it.

    A protocol already frozen with the same content stays as it was.

    Raises UsageError where it was frozen with another content, and as `read_protocol`.
    """
    protocol = read_protocol(path)
    target = frozen_path(path)
    if target.exists():
        frozen = read_frozen(target)
        if frozen.protocol != protocol:
            raise UsageError(
                f"{path} changed after it was frozen at {frozen.frozen_at}; "
                "undo the change, or register a new protocol under another file name"
            )
        return frozen
    at = (now or datetime.datetime.now(datetime.UTC)).isoformat(timespec="seconds")
    frozen = FrozenProtocol(protocol, protocol_hash(protocol), at)
    content = {"sha256": frozen.sha256, "frozen_at": at, "protocol": _plain(protocol)}
    with target.open("x", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return frozen


def read_frozen(path: str | Path) -> FrozenProtocol:
    """Read a frozen protocol.

    Raises EvidenceError where its content does not have the hash it states.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        # Hashed as it was written: defaults that later versions add do not change it.
        found = _hash(content["protocol"])
        protocol = Protocol.model_validate_json(json.dumps(content["protocol"]))
        stated, at = str(content["sha256"]), str(content["frozen_at"])
    except (ValueError, KeyError, TypeError) as error:
        raise EvidenceError(
            f"{path} is not a frozen protocol ({_first_problem(error)}); freeze the protocol again"
        ) from error
    if found != stated:
        raise EvidenceError(
            f"{path} states the hash {stated[:12]}… and has {found[:12]}…: it was changed after "
            "it was frozen; no verdict can rest on it"
        )
    return FrozenProtocol(protocol, found, at)


def frozen_path(path: str | Path) -> Path:
    """Where the frozen form of a protocol file lies."""
    return Path(path).with_suffix(FROZEN_SUFFIX)


def _plain(protocol: Protocol) -> dict[str, object]:
    return protocol.model_dump(mode="json", by_alias=True)


def _hash(plain: object) -> str:
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _first_problem(error: Exception) -> str:
    if not isinstance(error, pydantic.ValidationError):
        return f"{type(error).__name__}: {error}"
    found = error.errors()[0]
    field = ".".join(str(part) for part in found["loc"])
    return f"{field}: {found['msg']}" if field else str(found["msg"])
