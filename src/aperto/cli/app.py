"""What every command shares: the invocation's state, the error line, the log level."""

from __future__ import annotations

import dataclasses
import errno
import logging
import sys
from functools import cached_property
from typing import Any

import typer
from typer.core import TyperGroup

from aperto.cli.options import LogLevelChoice
from aperto.config import Settings, load_settings
from aperto.errors import (
    ApertoError,
    CheckpointError,
    DownloadError,
    EvidenceError,
    ResourceError,
    UsageError,
)

EXIT_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (UsageError, 2),
    (CheckpointError, 3),
    (ResourceError, 4),
    (MemoryError, 4),
    (DownloadError, 5),
    (EvidenceError, 6),
)
"""Exit code by kind of error; any other error exits with 1."""


@dataclasses.dataclass
class Invocation:
    """One call of the program."""

    log_level: str | None = None
    """The --log-level option, where given."""

    @cached_property
    def settings(self) -> Settings:
        """The user's settings, read when a command first asks, and the log level set from them."""
        configure_logging(self.log_level or "warning")
        settings = load_settings()
        configure_logging(self.log_level or settings.log_level)
        return settings

    @property
    def debug(self) -> bool:
        """Whether errors come with a traceback."""
        return logging.getLogger("aperto").getEffectiveLevel() <= logging.DEBUG


def configure_logging(level: str) -> None:
    """Send the package's log to standard error from `level` on."""
    logger = logging.getLogger("aperto")
    logger.setLevel(level.upper())
    logger.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("aperto: %(levelname)s: %(name)s: %(message)s"))
    logger.handlers[:] = [handler]


def invocation_of(ctx: Any) -> Invocation:
    """The state that a command shares with the program it belongs to."""
    invocation: Invocation = ctx.find_root().ensure_object(Invocation)
    return invocation


def settings_of(ctx: typer.Context, log_level: LogLevelChoice | None) -> Settings:
    """The settings of this invocation; a command's own --log-level wins."""
    invocation = invocation_of(ctx)
    if log_level is not None:
        invocation.log_level = log_level.value
    return invocation.settings


def one_line(error: BaseException) -> str:
    """The message of an error in one line of printable text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(c if c.isprintable() else "�" for c in text)


def exit_code(error: BaseException) -> int:
    """The exit code that an error stands for."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)


class AppGroup(TyperGroup):
    """A group whose commands' errors become one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a deliberate error becomes its line and its exit code."""
        if ctx.parent is not None:
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except (ApertoError, MemoryError, OSError) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise
            raise _reported(error, debug=invocation_of(ctx).debug) from error


def _reported(error: BaseException, *, debug: bool) -> typer.Exit:
    if debug:
        logging.getLogger("aperto").debug("traceback of the error", exc_info=error)
    text = "not enough memory" if isinstance(error, MemoryError) else one_line(error)
    typer.echo(f"aperto: error: {text}", err=True)
    return typer.Exit(exit_code(error))
