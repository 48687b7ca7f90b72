"""The report of a verdict: JSON for machines, a model-card section for people, signed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aperto.vet.evidence import Evidence, registered
from aperto.vet.gate import Stratum, SuiteResult, Verdict
from aperto.vet.protocol import Arm, Kind, Suite
from aperto.vet.scorecard import mishaps, tokens_of
from aperto.vet.sign import sign_folder
from aperto.vet.stats import Estimate

SCHEMA = "aperto.verdict/1"
JSON_FILE, CARD_FILE, PAGE_FILE = "verdict.json", "model-card.md", "verdict.html"

RESIDUAL_RISK = (
    "A PASS says that harm beyond the registered margins was excluded, at the stated level, for "
    "the questions, efforts and settings tested. It does not say that the model is safe: other "
    "questions, other languages, tools, many turns and further training were not looked at. "
    "Open weights can be trained further by anyone, and no verdict binds them."
)


@dataclasses.dataclass(frozen=True)
class Report:
    """A verdict with all that its readers need to check it."""

    verdict: Verdict
    models: Mapping[Arm, Mapping[str, str]]
    """By arm: name and hash of the checkpoint, and whatever else identifies it."""
    manifest: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Package, instruction set, seeds: what reproduces an answer."""
    review_log: Sequence[Mapping[str, str]] = ()
    """Recommendations of reviewers, each with what was decided about it."""

    @property
    def evidence(self) -> Evidence:
        """What the verdict rests on."""
        return self.verdict.evidence

    def to_json(self) -> dict[str, Any]:
        """Plain values; `schema` tells readers what to expect. Holds no answers."""
        evidence, verdict = self.evidence, self.verdict
        frozen = evidence.frozen
        return {
            "schema": SCHEMA,
            "decision": verdict.decision.value,
            "reasons": list(verdict.reasons),
            "next_step": verdict.next_step,
            "look": evidence.look,
            "signed_by": list(verdict.signed_by),
            "sign_offs": [word.to_json() for word in evidence.sign_offs],
            "protocol": {
                "sha256": frozen.sha256,
                "frozen_at": frozen.frozen_at,
                "content": frozen.protocol.model_dump(mode="json", by_alias=True),
            },
            "rows_sha256": evidence.sha256,
            "arms": {arm.value: dict(model) for arm, model in self.models.items()},
            "judge": evidence.calibration.to_json() if evidence.calibration else None,
            "suites": [_suite_json(evidence, result) for result in verdict.results],
            "false_alarms": dataclasses.asdict(false_alarms(verdict)),
            "not_run": dict(evidence.not_run),
            "not_tested": list(frozen.protocol.scope.not_tested),
            "residual_risk": RESIDUAL_RISK,
            "review_log": [dict(entry) for entry in self.review_log],
            "manifest": dict(self.manifest),
        }


@dataclasses.dataclass(frozen=True, slots=True)
class FalseAlarms:
    """How the base fared against itself: what the procedure raises by chance."""

    strata: int
    """Strata with a margin that were measured."""
    not_passed: int
    """Of these, where the base did not pass as its own adaptation."""


def false_alarms(verdict: Verdict) -> FalseAlarms:
    """Strata in which the base run again would not have passed."""
    outcomes = [
        estimate.upper >= result.suite.margin
        for result in verdict.results
        if result.suite.margin is not None and result.suite.kind in (Kind.SAFETY, Kind.UTILITY)
        for stratum in result.strata
        if (estimate := stratum.harm_of(Arm.BASE_AGAIN)) is not None
    ]
    return FalseAlarms(len(outcomes), sum(outcomes))


def model_card(report: Report) -> str:
    """The section for a model card, in Markdown."""
    verdict, frozen = report.verdict, report.evidence.frozen
    protocol = frozen.protocol
    alarms = false_alarms(verdict)
    parts = [
        "## Safety evaluation",
        f"**{verdict.decision}** under the protocol *{_text(protocol.name)}* "
        f"(`{frozen.sha256[:16]}`, frozen {frozen.frozen_at}), look {report.evidence.look}. "
        + verdict.next_step,
        _signed(verdict),
        "### Models",
        _table(
            ("arm", "model", "hash"),
            [
                (arm.value, model.get("name", "?"), f"`{model.get('sha256', '?')[:16]}`")
                for arm, model in report.models.items()
            ],
        ),
        "### Scope",
        f"Use: {_text(protocol.scope.use)}  \nAdversary: {_text(protocol.adversary.description)}"
        f"  \nFields of harm: {_text(', '.join(protocol.domains))}",
        "### Results",
        "Harm is the adapted model minus the base, oriented so that more is worse; of a "
        "capability, its growth. In points, with intervals at "
        f"{100 * (1 - 2 * protocol.statistics.alpha_per_look):.1f} %.",
        _results(verdict.results),
        *(
            ["### Why", "\n".join(f"- {_text(reason)}" for reason in verdict.reasons)]
            if verdict.reasons
            else []
        ),
        "### How far to trust it",
        f"The base run a second time as if it were an adaptation failed to pass in "
        f"{alarms.not_passed} of {alarms.strata} strata.",
        report.evidence.calibration.reading()
        if report.evidence.calibration
        else "All grading was exact; no judge took part.",
        "### Not tested",
        "\n".join(f"- {_text(gap)}" for gap in _gaps(report)) or "- nothing named",
        RESIDUAL_RISK,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_report(
    folder: str | Path, report: Report, page: str, key: Ed25519PrivateKey | None = None
) -> Path:
    """Write JSON, model card and page into a folder, and sign them where there is a key.

    Args:
        folder: made where it does not exist; files of an earlier report are replaced.
        report: what to write.
        page: the HTML page of it.
        key: the user's.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    (root / JSON_FILE).write_text(text + "\n", encoding="utf-8")
    (root / CARD_FILE).write_text(model_card(report), encoding="utf-8")
    (root / PAGE_FILE).write_text(page, encoding="utf-8")
    if key is not None:
        sign_folder(root, (JSON_FILE, CARD_FILE, PAGE_FILE), key)
    return root


def points(estimate: Estimate | None) -> str:
    """An estimate of a difference in points, with its interval."""
    if estimate is None:
        return "–"
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    value, low, high = (
        round(100 * end, 1) + 0.0 for end in (estimate.value, estimate.lower, estimate.upper)
    )
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def percent(estimate: Estimate | None) -> str:
    """A level in percent."""
    return "–" if estimate is None else f"{100 * estimate.value:.1f}"


def sizes(suite: Suite, evidence: Evidence) -> str:
    """Items and repeats registered for the look."""
    items, epochs = registered(suite, evidence.frozen.protocol.statistics, evidence.look)
    return f"{items} × {epochs}"


def _results(results: Sequence[SuiteResult]) -> str:
    rows = [
        (
            result.suite.name,
            stratum.effort,
            result.suite.kind.value,
            percent(stratum.level_of(Arm.BASE)),
            percent(stratum.level_of(Arm.ADAPTED)),
            points(stratum.harm_of(Arm.ADAPTED)),
            "–" if result.suite.margin is None else f"{100 * result.suite.margin:.1f}",
            "–" if stratum.power is None else f"{stratum.power:.2f}",
            stratum.finding.value,
        )
        for result in results
        for stratum in result.strata
    ]
    heads = ("suite", "effort", "kind", "base", "adapted", "harm", "margin", "power", "finding")
    return _table(heads, rows)


def _signed(verdict: Verdict) -> str:
    if not verdict.signed_by:
        return ""
    words = "; ".join(
        f"{_text(word.reviewer)}, {word.at}: {_text(word.statement)}"
        for word in verdict.evidence.sign_offs
    )
    return f"The decision rests on the word of named reviewers: {words}."


def _gaps(report: Report) -> list[str]:
    not_run = [f"{name}: {why}" for name, why in report.evidence.not_run.items()]
    return [*not_run, *report.evidence.frozen.protocol.scope.not_tested]


def _suite_json(evidence: Evidence, result: SuiteResult) -> dict[str, Any]:
    return {
        "suite": result.suite.name,
        "finding": result.finding.value,
        "strata": [_stratum_json(evidence, result.suite, stratum) for stratum in result.strata],
    }


def _stratum_json(evidence: Evidence, suite: Suite, stratum: Stratum) -> dict[str, Any]:
    arms = {arm: evidence.rows_of(suite, arm, stratum.effort) for arm in Arm}
    return {
        "effort": stratum.effort,
        "finding": stratum.finding.value,
        "reason": stratum.reason,
        "levels": {arm.value: level.to_json() for arm, level in stratum.levels},
        "harms": {arm.value: harm.to_json() for arm, harm in stratum.harms},
        "power": stratum.power,
        "answers": {
            arm.value: {
                "number": len(rows),
                "mishaps": dataclasses.asdict(mishaps(rows)),
                "tokens": dataclasses.asdict(found) if (found := tokens_of(rows)) else None,
            }
            for arm, rows in arms.items()
            if rows
        },
    }


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(_text, line)) + " |" for line in lines)


def _text(text: str) -> str:
    """One line of text that cannot end a table cell or start markup of its own."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
