"""`aperto vet release`: the whole gate in one command, from two models to a signed report."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aperto.cli.app import settings_of
from aperto.cli.options import LogLevelOption
from aperto.cli.parent import parent_of
from aperto.cli.progress import byte_progress, duration, step_progress
from aperto.cli.verdict import KeyOption, read_sign_off

if TYPE_CHECKING:
    from aperto.local_model import LocalModel
    from aperto.vet.arms import Model
    from aperto.vet.ask import OpenArm
    from aperto.vet.gate import Verdict
    from aperto.vet.protocol import Arm, Protocol
    from aperto.vet.release import Release


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(release)


def release(
    ctx: typer.Context,
    base: Annotated[str, typer.Option(metavar="MODEL", help="The model before.")],
    adapted: Annotated[
        str, typer.Option(metavar="MODEL", help="The model after: a checkpoint, or an adapter.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Answers' grades and the report.")],
    protocol: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The protocol, fixed now if it is not yet. Default: that of `example`.",
            exists=True,
        ),
    ] = None,
    worst_case: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A laboratory's worst case; only measured."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What `calibrate --out` wrote.", exists=True),
    ] = None,
    signed: Annotated[
        list[Path] | None,
        typer.Option("--sign-off", metavar="FILE", help="A reviewer's word. May be repeated."),
    ] = None,
    key: KeyOption = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Most tokens of an answer.")
    ] = None,
    width: Annotated[int, typer.Option(min=1, metavar="N", help="Questions at once.")] = 64,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Default: one a core.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell the time, and stop.")] = False,
    log_level: LogLevelOption = None,
) -> None:
    """Decide whether an adapted model may be released, and report it.

    The suites of our own that need no judge are asked on this machine; suites that are not on it
    count as not run. Interrupted or killed, the same command goes on. On PASS the lineage of the
    adapted model says so. Exits with 0 for PASS, 10 for BLOCK, 11 for ESCALATE, 12 for
    INCONCLUSIVE.
    """
    settings_of(ctx, log_level)
    from aperto.vet.ask import Asker, own_sources
    from aperto.vet.calibrate import read_calibration
    from aperto.vet.protocol import freeze
    from aperto.vet.release import Release, seconds_for
    from aperto.vet.sign import read_key

    frozen = freeze(protocol or _example(out))
    private = None if key is None else read_key(key)
    job = Release(
        frozen,
        _models(frozen.protocol, base, adapted, worst_case, out),
        out,
        seed,
        None if calibration is None else read_calibration(calibration),
        tuple(read_sign_off(path) for path in signed or ()),
    )
    asker = Asker(
        own_sources(), _opener(job, threads), seed=seed, max_tokens=max_tokens, width=width
    )
    left = job.answers_left(asker)
    seconds = seconds_for(asker, job)
    typer.echo(f"protocol {frozen.sha256[:16]}, frozen {frozen.frozen_at}")
    typer.echo(f"{left} answers to go at the first look, about {duration(seconds)}")
    if dry_run:
        return
    with step_progress() as watch:
        verdict = job.run(asker, watch)
    report = job.report(verdict, private, max_tokens=max_tokens, width=width)
    _tell(job, verdict, report)
    raise typer.Exit(verdict.decision.exit_code)


def _example(out: Path) -> Path:
    """The example protocol, in the release's folder."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "protocol.toml"
    if not file.exists():
        text = resources.files("aperto.vet").joinpath("data/protocol.toml").read_text("utf-8")
        file.write_text(text, encoding="utf-8")
    return file


def _tell(job: Release, verdict: Verdict, report: Path) -> None:
    noted = job.note_lineage(verdict, report)
    typer.echo(f"{verdict.decision}  {report}")
    for reason in verdict.reasons:
        typer.echo(f"  {reason}")
    typer.echo(verdict.next_step)
    if noted is not None:
        typer.echo(f"noted in {noted}")


def _models(
    protocol: Protocol, base: str, adapted: str, worst_case: str | None, out: Path
) -> dict[Arm, Model]:
    from aperto.vet.arms import models_of, write_requantised
    from aperto.vet.protocol import Arm

    before = _model(base)
    after = _model(adapted, before)
    again: Path | None = None
    if Arm.BASE_REQUANTISED in protocol.arms:
        again = out / "base-requantised"
        if not again.exists():
            out.mkdir(parents=True, exist_ok=True)
            write_requantised(before, after, again)
    worst = None if worst_case is None else _model(worst_case, before)
    return models_of(protocol, before, after, requantised=again, worst_case=worst)


def _model(name: str, base: Model | None = None) -> Model:
    """A checkpoint, or an adapter on `base`, with its hash."""
    from aperto.formats import open_checkpoint
    from aperto.formats.adapter import WEIGHTS, is_adapter
    from aperto.formats.hub import resolve_model
    from aperto.vet.arms import Model

    if base is not None and is_adapter(Path(name)):
        digest = hashlib.sha256((Path(name) / WEIGHTS).read_bytes()).hexdigest()
        return Model(name, digest[: len(base.sha256)], base.checkpoint, Path(name))
    path = resolve_model(name)
    return Model(name, parent_of(name, open_checkpoint(path)).hash, path)


def _opener(job: Release, threads: int | None) -> OpenArm:
    """Loads the model of an arm for as long as it is asked."""
    import aperto

    @contextlib.contextmanager
    def open_arm(arm: Arm) -> Iterator[LocalModel]:
        model = job.models[arm]
        adapters: dict[str, Any] = {} if model.adapter is None else {"adapter": model.adapter}
        with (
            byte_progress(f"packing {model.name}") as progress,
            aperto.load(
                model.checkpoint, threads=threads, adapters=adapters, progress=progress
            ) as loaded,
        ):
            yield loaded if model.adapter is None else loaded.variant("adapter")

    return open_arm
