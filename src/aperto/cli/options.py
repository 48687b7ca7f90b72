"""Arguments and options that several commands take."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="nano, a pulled org/name, or a path.")
]


class LogLevelChoice(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


LogLevelOption = Annotated[
    LogLevelChoice | None,
    typer.Option(
        "--log-level",
        help="How much is logged to standard error; debug adds tracebacks. Default: warning.",
    ),
]


class PrecisionChoice(StrEnum):
    """Precision of the forward pass."""

    Q8 = "q8"
    EXACT = "exact"


PrecisionOption = Annotated[
    PrecisionChoice | None,
    typer.Option(
        help="q8: int8 activations, Q8_0 attention; exact: bf16 weights as stored, float32. "
        "Default: q8."
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Threads. Default: one for each available core."),
]
ContextOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="TOKENS", help="Longest conversation that memory is kept for."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
