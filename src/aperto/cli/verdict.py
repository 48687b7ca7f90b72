"""`aperto vet decide` and `sign-off`: a verdict from rows of any harness, and a reviewer's word."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aperto.cli.app import settings_of
from aperto.cli.options import LogLevelOption
from aperto.errors import SignatureError, UsageError

if TYPE_CHECKING:
    from aperto.vet.evidence import Evidence
    from aperto.vet.protocol import Arm
    from aperto.vet.rows import Row
    from aperto.vet.sign import SignOff

FrozenArgument = Annotated[
    Path,
    typer.Argument(
        metavar="FROZEN", help="A frozen protocol (.frozen.json).", exists=True, dir_okay=False
    ),
]
RowsArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="ROWS...", help="Files of graded answers, JSON lines.", exists=True, dir_okay=False
    ),
]
NotRunOption = Annotated[
    list[str] | None,
    typer.Option(
        "--not-run", metavar="SUITE=WHY", help="A suite that could not run. May be repeated."
    ),
]
KeyOption = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="Private key to sign with.", exists=True),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(decide)
    app.command("sign-off")(sign_off)


def decide(
    ctx: typer.Context,
    frozen: FrozenArgument,
    rows: RowsArgument,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the report goes.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ARM=NAME@HASH", help="Which checkpoint an arm was. Once for each arm."
        ),
    ] = None,
    look: Annotated[
        int, typer.Option(min=1, max=2, help="2 after the registered enlargement.")
    ] = 1,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What `calibrate --out` wrote.", exists=True),
    ] = None,
    not_run: NotRunOption = None,
    signed: Annotated[
        list[Path] | None,
        typer.Option("--sign-off", metavar="FILE", help="A reviewer's word. May be repeated."),
    ] = None,
    key: KeyOption = None,
    log_level: LogLevelOption = None,
) -> None:
    """Judge rows under a frozen protocol and write the report.

    Exits with 0 for PASS, 10 for BLOCK, 11 for ESCALATE, 12 for INCONCLUSIVE.
    """
    settings_of(ctx, log_level)
    from aperto.vet.calibrate import read_calibration
    from aperto.vet.evidence import Evidence
    from aperto.vet.gate import decide as judge
    from aperto.vet.pages import verdict_page
    from aperto.vet.protocol import read_frozen
    from aperto.vet.report import Report, write_report
    from aperto.vet.sign import read_key

    evidence = Evidence(
        read_frozen(frozen),
        read_all(rows),
        look=look,
        calibration=None if calibration is None else read_calibration(calibration),
        not_run=reasons_of(not_run),
        sign_offs=tuple(read_sign_off(path) for path in signed or ()),
    )
    verdict = judge(evidence)
    report = Report(verdict, _models(model, evidence))
    write_report(out, report, verdict_page(report), None if key is None else read_key(key))
    typer.echo(f"{verdict.decision}  {out}")
    for reason in verdict.reasons:
        typer.echo(f"  {reason}")
    typer.echo(verdict.next_step)
    raise typer.Exit(verdict.decision.exit_code)


def sign_off(
    ctx: typer.Context,
    frozen: FrozenArgument,
    rows: RowsArgument,
    reviewer: Annotated[str, typer.Option(metavar="NAME", help="As in the protocol.")],
    statement: Annotated[str, typer.Option(metavar="TEXT", help="What is accepted, and why.")],
    key: Annotated[
        Path, typer.Option(metavar="FILE", help="The reviewer's private key.", exists=True)
    ],
    log_level: LogLevelOption = None,
) -> None:
    """Put a registered reviewer's name to these rows under this protocol; prints the sign-off."""
    settings_of(ctx, log_level)
    from aperto.vet import sign
    from aperto.vet.protocol import read_frozen
    from aperto.vet.rows import rows_hash

    fixed = read_frozen(frozen)
    person = fixed.protocol.reviewer(reviewer)
    if person is None:
        known = ", ".join(one.name for one in fixed.protocol.reviewers) or "none"
        raise UsageError(f"{reviewer!r} is no reviewer of the protocol; there are: {known}")
    private = sign.read_key(key)
    if sign.public_hex(private) != person.public_key:
        raise SignatureError(f"{key} is not the key registered for {reviewer}")
    word = sign.sign_off(
        private,
        reviewer=reviewer,
        protocol_sha256=fixed.sha256,
        evidence_sha256=rows_hash(read_all(rows)),
        statement=statement,
        at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    typer.echo(json.dumps(word.to_json(), indent=2, ensure_ascii=False))


def read_all(paths: list[Path]) -> tuple[Row, ...]:
    """Rows of several files. Raises EvidenceError for answers that occur twice."""
    from aperto.vet.rows import check_unique, read_rows

    rows = tuple(row for path in paths for row in read_rows(path))
    check_unique(rows)
    return rows


def reasons_of(texts: list[str] | None) -> dict[str, str]:
    """Suites and why they were not run. Raises UsageError for what is not SUITE=WHY."""
    found = {}
    for text in texts or ():
        suite, equals, why = text.partition("=")
        if not (suite and equals and why):
            raise UsageError(f"--not-run is {text!r}; expected SUITE=WHY")
        found[suite] = why
    return found


def _models(texts: list[str] | None, evidence: Evidence) -> dict[Arm, dict[str, str]]:
    """Which checkpoint each arm was. Raises UsageError where an arm that has rows is not told."""
    from aperto.vet.protocol import Arm

    found: dict[Arm, dict[str, str]] = {}
    for text in texts or ():
        arm, _, model = text.partition("=")
        name, _, digest = model.rpartition("@")
        if arm not in tuple(Arm) or not name or not digest:
            raise UsageError(
                f"--model is {text!r}; expected ARM=NAME@HASH with an arm of {', '.join(Arm)}"
            )
        found[Arm(arm)] = {"name": name, "sha256": digest}
    judging = evidence.frozen.protocol.judging
    if judging and judging.model == found.get(Arm.ADAPTED, {}).get("name"):
        raise UsageError(f"{judging.model} is both the judge and the adapted model; take another")
    lacking = sorted({row.arm for row in evidence.rows} - set(found) - {Arm.BASE_AGAIN})
    if lacking:
        raise UsageError(f"which model was {', '.join(lacking)}? Tell by --model ARM=NAME@HASH")
    return found


def read_sign_off(path: Path) -> SignOff:
    """A reviewer's word from a file. Raises SignatureError where it holds none."""
    from aperto.vet.sign import SignOff

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SignatureError(f"{path} is no sign-off: {error}") from error
    if not isinstance(data, dict):
        raise SignatureError(f"{path} is no sign-off; expected one JSON object")
    return SignOff.from_json(data)
