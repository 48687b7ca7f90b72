"""`aperto vet`: protocols, plans, judges and signatures of an evaluation."""

from __future__ import annotations

import dataclasses
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aperto.cli import release, verdict
from aperto.cli.app import settings_of
from aperto.cli.options import JsonOption, LogLevelOption
from aperto.cli.table import columns
from aperto.errors import UsageError

if TYPE_CHECKING:
    from aperto.vet.plan import Plan
    from aperto.vet.protocol import Protocol

app = typer.Typer(
    help="Protocols, plans, judges and signatures of an evaluation.\n\nA protocol is fixed before "
    "anything is run; a plan tells what it can tell apart; a judge is measured on people's labels "
    "before it grades; a report is signed.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
"""The group of commands."""

release.add_to(app)
verdict.add_to(app)

ProtocolArgument = Annotated[
    Path, typer.Argument(metavar="PROTOCOL", help="A protocol file.", exists=True, dir_okay=False)
]


@app.command()
def example() -> None:
    """Print an example of a protocol file, to save and to change."""
    file = resources.files("aperto.vet") / "data" / "protocol.toml"
    typer.echo(file.read_text(encoding="utf-8"), nl=False)


@app.command()
def protocol(
    ctx: typer.Context,
    file: ProtocolArgument,
    freeze: Annotated[
        bool,
        typer.Option("--freeze", help="Fix it: write PROTOCOL's content and hash beside it."),
    ] = False,
    log_level: LogLevelOption = None,
) -> None:
    """Check a protocol, print its hash, and fix it before any run."""
    settings_of(ctx, log_level)
    from aperto.vet import protocol as protocols

    if freeze:
        frozen = protocols.freeze(file)
        typer.echo(f"{frozen.sha256}  frozen {frozen.frozen_at} in {protocols.frozen_path(file)}")
        return
    read = protocols.read_protocol(file)
    typer.echo(f"{protocols.protocol_hash(read)}  not frozen by this command")
    typer.echo(_suites(read))


@app.command()
def plan(
    ctx: typer.Context,
    file: ProtocolArgument,
    rate: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SUITE=RATE",
            help="Harm of the base model to expect, 0 to 1 (1 - accuracy where more is better). "
            "Repeat for more suites; `all=RATE` for the others. Default: all=0.02.",
        ),
    ] = None,
    tokens_per_s: Annotated[
        float,
        typer.Option(min=0.001, metavar="N", help="Tokens per second of the whole batch."),
    ] = 100.0,
    as_json: JsonOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Print what a protocol can tell apart, how many answers it takes, and hours.

    Power is the chance that a harmless model passes a suite at one effort; false passes are the
    simulated share of models exactly at the margin that pass.
    """
    settings_of(ctx, log_level)
    from aperto.vet.plan import Assumptions, make_plan
    from aperto.vet.protocol import read_protocol

    rates = dict(_rate(text) for text in rate or ())
    read = read_protocol(file)
    for name in set(rates) - {"all"}:
        read.suite(name)
    default = rates.pop("all", 0.02)
    assumed = Assumptions(base_rates=rates, default_rate=default, tokens_per_s=tokens_per_s)
    made = make_plan(read, assumed)
    typer.echo(json.dumps(_plan_json(made), indent=2) if as_json else _plan_text(made))


@app.command()
def calibrate(
    ctx: typer.Context,
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS",
            help="JSON lines of item, human and judge: comply, partial, refuse or incoherent.",
            exists=True,
            dir_okay=False,
        ),
    ],
    judge: Annotated[str, typer.Option(metavar="NAME", help="The judge, as in the protocol.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the result here, as JSON.")
    ] = None,
    as_json: JsonOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Measure a judge on people's labels.

    Fails where the lower bound of sensitivity or specificity is below 0.85: such a judge may not
    grade.
    """
    settings_of(ctx, log_level)
    from aperto.vet import calibrate as calibration

    found = calibration.calibrate(judge, calibration.read_judgements(labels))
    text = json.dumps(found.to_json(), indent=2)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    if found.usable or as_json:
        typer.echo(text if as_json else found.reading())
    calibration.require_usable(found)


@app.command()
def key(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the private key goes.")],
    log_level: LogLevelOption = None,
) -> None:
    """Make a key to sign reports with, and print its public part."""
    settings_of(ctx, log_level)
    from aperto.vet.sign import create_key

    typer.echo(create_key(file))


@app.command()
def verify(
    ctx: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A report.", exists=True, file_okay=False)
    ],
    by: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="Public key of who must have signed it."),
    ] = None,
    log_level: LogLevelOption = None,
) -> None:
    """Check the signature of a report; one changed byte makes it fail."""
    settings_of(ctx, log_level)
    from aperto.vet.sign import verify_folder

    found = verify_folder(folder, by)
    typer.echo(f"signed by {found.public_key}")
    typer.echo(f"unchanged: {', '.join(found.files)}")
    if found.unsigned:
        typer.echo(f"not signed: {', '.join(found.unsigned)}")
    if by is None:
        typer.echo("whose key this is was not checked; name it with --by")


def _rate(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not name or not 0 <= share <= 1:
        raise UsageError(f"--rate is {text!r}; expected SUITE=RATE, such as injection=0.05")
    return name, share


def _suites(read: Protocol) -> str:
    rows = [("suite", "kind", "items x epochs", "efforts", "margin")]
    rows += [
        (
            suite.name,
            suite.kind.value,
            f"{suite.num_items} x {suite.epochs}",
            ", ".join(suite.efforts),
            "-" if suite.margin is None else f"{suite.margin:g}",
        )
        for suite in read.suites
    ]
    return columns(rows)


def _plan_text(made: Plan) -> str:
    rows = [("suite", "base harm", "power", "false passes", "items for 0.99", "answers", "hours")]
    rows += [
        (
            one.suite.name,
            f"{one.base_rate:g}",
            "-" if one.power is None else f"{one.power:.3f}",
            "-" if one.false_pass is None else str(one.false_pass),
            "-" if one.needed_items is None else str(one.needed_items),
            str(one.answers),
            f"{one.hours:.1f}",
        )
        for one in made.suites
    ]
    return "\n".join(
        (
            columns(rows, right=frozenset({1, 2, 4, 5, 6})),
            f"\nA harmless model passes everything with probability {made.pass_rate:.2f}.",
            f"{made.answers} answers, {made.hours:.1f} hours; {made.enlarged_hours:.1f} with the "
            "registered enlargement.",
        )
    )


def _plan_json(made: Plan) -> dict[str, object]:
    suites = [
        {
            "suite": one.suite.name,
            "base_rate": one.base_rate,
            "power": one.power,
            "false_pass": dataclasses.asdict(one.false_pass) if one.false_pass else None,
            "needed_items": one.needed_items,
            "answers": one.answers,
            "hours": one.hours,
        }
        for one in made.suites
    ]
    return {
        "suites": suites,
        "pass_rate": made.pass_rate,
        "answers": made.answers,
        "hours": made.hours,
        "enlarged_hours": made.enlarged_hours,
    }
