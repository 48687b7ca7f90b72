"""`aperto chat`: talk to a model, interactively or once."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aperto.cli.app import settings_of
from aperto.cli.options import (
    ContextOption,
    JsonOption,
    LogLevelOption,
    PrecisionOption,
    ThreadsOption,
)
from aperto.cli.tools import tools_for_chat
from aperto.config import Settings
from aperto.errors import ModelNotFoundError, UsageError

if TYPE_CHECKING:
    from aperto.cli.session import Session
    from aperto.local_model import LocalModel
    from aperto.tools import Tool


class EffortChoice(StrEnum):
    """How long the model reasons."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class ReasoningChoice(StrEnum):
    """Whether the reasoning is shown."""

    SHOW = "show"
    HIDE = "hide"


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(chat)


def chat(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="nano, a pulled org/name, or a path."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Answer this once and exit.")
    ] = None,
    prompt_option: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXT", help="The prompt, for the default model."),
    ] = None,
    effort: Annotated[
        EffortChoice | None, typer.Option(help="How long the model reasons. Default: medium.")
    ] = None,
    reasoning: Annotated[
        ReasoningChoice | None,
        typer.Option(help="Whether a terminal shows the reasoning. Default: show."),
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Instructions before the conversation.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Repeats an answer. Default: a new one each time."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, metavar="X", help="0 always takes the likeliest token. Default: 1."),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="X", help="Share of probability kept. Default: 1."),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Most tokens of an answer. Default: what the context holds."
        ),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Answer with an adapter of the model, or an intervention file."
        ),
    ] = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    context: ContextOption = None,
    tool: Annotated[
        list[str] | None,
        typer.Option(
            "--tool",
            metavar="SPEC",
            help="Let the model use a tool: python, browser:FOLDER, apply_patch:FOLDER, "
            "mcp:COMMAND. May be repeated.",
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before a tool's first run.")
    ] = False,
    unsandboxed: Annotated[
        bool,
        typer.Option(
            "--unsandboxed",
            help="Where python can have no sandbox, run it with your own rights.",
        ),
    ] = False,
    as_json: JsonOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Talk to a model, or have one prompt answered.

    With a prompt or piped input, the model answers once and the program exits. Piped input is the
    prompt; with a prompt, it is added below it. In a pipe only the answer is written to standard
    output.
    """
    given = {
        "effort": effort and effort.value,
        "reasoning": reasoning and reasoning.value,
        "system": system,
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "precision": precision and precision.value,
        "threads": threads,
        "context": context,
    }
    settings = _merged(settings_of(ctx, log_level), given)
    name = _model_name(model, settings)
    question = _question(prompt, prompt_option)
    if question is None and (as_json or not sys.stdout.isatty()):
        raise UsageError("there is no prompt; give one with -p/--prompt or on standard input")
    with tools_for_chat(tool or (), ask=not yes, unsandboxed=unsandboxed) as tools:
        _run(name, question, settings, seed, tools, adapter, as_json=as_json)


def _merged(settings: Settings, given: Mapping[str, object]) -> Settings:
    """The settings with the options that were given."""
    changes = {key: value for key, value in given.items() if value is not None}
    return dataclasses.replace(settings, **changes)  # type: ignore[arg-type]


def _model_name(model: str | None, settings: Settings) -> str:
    """The model to load; a first word that is none is an error that names -p/--prompt."""
    from aperto.formats.hub import resolve_model

    if model is None:
        return settings.default_model
    try:
        resolve_model(model)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"{error}; to send a prompt to the default model ({settings.default_model}), "
            "write: aperto chat -p/--prompt TEXT"
        ) from error
    return model


def _question(prompt: str | None, prompt_option: str | None) -> str | None:
    """The prompt of the arguments with the piped text; None for an interactive chat.

    Raises UsageError for two prompts and for an empty one.
    """
    from aperto.cli.prompt import joined, piped_text

    if prompt is not None and prompt_option is not None:
        raise UsageError("there are two prompts, PROMPT and -p/--prompt; expected one")
    text = prompt if prompt is not None else prompt_option
    piped = piped_text()
    question = joined(text, piped)
    if question is None and (text is not None or piped is not None):
        raise UsageError("the prompt is empty; expected text in it or on standard input")
    return question


def _run(
    name: str,
    question: str | None,
    settings: Settings,
    seed: int | None,
    tools: tuple[Tool, ...],
    adapter: Path | None,
    *,
    as_json: bool,
) -> None:
    from aperto.cli.local import load_local
    from aperto.cli.session import Asking, Session

    asking = Asking(
        effort=settings.effort,
        system=settings.system,
        seed=seed,
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=settings.max_tokens or None,
    )
    adapters = {} if adapter is None else {adapter.stem: adapter}
    with load_local(name, settings, adapters) as model:
        answering = model if adapter is None else _varied(model, adapter)
        session = Session(answering.conversations, asking, tools)
        show_reasoning = settings.reasoning == "show"
        if question is None:
            _interactive(session, name, show_reasoning=show_reasoning)
        else:
            _once(session, name, question, show_reasoning=show_reasoning, as_json=as_json)


def _varied(model: LocalModel, adapter: Path) -> LocalModel:
    from aperto.formats.lineage import NOT_VETTED, read_lineage

    lineage = read_lineage(adapter)
    varied = model.variant(adapter.stem)
    vetted = lineage.vetted if lineage else NOT_VETTED
    typer.echo(f"aperto: {varied.name}, vetted: {vetted}", err=True)
    return varied


def _interactive(session: Session, name: str, *, show_reasoning: bool) -> None:
    from rich.console import Console

    from aperto.cli import repl, slash
    from aperto.cli.screen import TerminalScreen

    console = Console(highlight=False)
    screen = TerminalScreen(console, show_reasoning=show_reasoning)
    title = f"{name}, effort {session.asking.effort}. /help lists the commands; Ctrl-D leaves."
    repl.interact(slash.Chat(session, screen), console, title)


def _once(
    session: Session, name: str, question: str, *, show_reasoning: bool, as_json: bool
) -> None:
    from aperto.cli.screen import SilentScreen, screen_for_stdout

    screen = SilentScreen() if as_json else screen_for_stdout(show_reasoning=show_reasoning)
    answer = session.ask(question, screen)
    if as_json:
        fields = answer.to_dict(model=name, effort=session.asking.effort)
        typer.echo(json.dumps(fields, ensure_ascii=False))
    if answer.finish_reason == "cancelled":
        raise typer.Exit(130)
