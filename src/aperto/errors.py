"""Every error that aperto raises on purpose.

    ApertoError
    ├── UsageError                  what was asked for does not exist or does not fit
    │   ├── ModelNotFoundError      a name or path that resolves to no model
    │   ├── ConfigError             a configuration value that is unknown or out of range
    │   └── MissingExtraError       an optional package is not installed; carries the install line
    ├── CheckpointError             a checkpoint on disk is not what it claims to be
    │   ├── FormatError             the container is damaged (header, offsets, sizes)
    │   ├── TensorError             a tensor is missing, or has the wrong dtype, shape or values
    │   └── UnsupportedError        well formed, but outside what aperto reads; names what it is
    ├── ResourceError               this machine cannot do it as asked
    │   ├── MemoryLimitError        not enough memory; carries the numbers
    │   └── DiskSpaceError          not enough disk; carries the numbers
    ├── DownloadError               a hub did not deliver what it announced
    ├── EngineError                 a request could not be served
    │   ├── ContextLengthError      prompt and answer do not fit; carries the numbers
    │   ├── QueueFullError          back-pressure: try again later
    │   └── EngineClosedError       the engine was shut down while the request was open
    ├── TemplateError               a conversation cannot be rendered
    ├── DataError                   training data cannot be used; carries every problem
    ├── TrainingError               training cannot go on; what was reached is kept
    └── EvidenceError               rows, protocols or reports that no verdict can rest on
        └── SignatureError          a signature does not hold

A message says what was found, what was expected and what to do.
"""

from collections.abc import Sequence


class ApertoError(Exception):
    """Base of every deliberate error of the package."""


class UsageError(ApertoError):
    """The caller asked for something that does not exist or does not fit."""


class ModelNotFoundError(UsageError):
    """A name or path that resolves to no model."""


class ConfigError(UsageError):
    """A configuration value that is unknown or out of range."""


class MissingExtraError(UsageError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed; "
            f"install it with: pip install 'aperto[{extra}]'"
        )
        self.package = package
        self.extra = extra


class CheckpointError(ApertoError):
    """A checkpoint on disk is not what it claims to be."""


class FormatError(CheckpointError):
    """The container file is damaged: header, offsets or sizes."""


class TensorError(CheckpointError):
    """A tensor is missing, or has the wrong dtype, shape or values."""


class AdapterError(CheckpointError):
    """An adapter is damaged, is of a kind that cannot be applied, or does not fit its model."""


class UnsupportedError(CheckpointError):
    """Well formed, but outside what aperto reads."""


class ResourceError(ApertoError):
    """This machine cannot do it as asked."""


class MemoryLimitError(ResourceError):
    """Not enough memory."""


class DiskSpaceError(ResourceError):
    """Not enough free disk space."""


class DownloadError(ApertoError):
    """A hub did not deliver what it announced."""


class EngineError(ApertoError):
    """A request could not be served."""


class ContextLengthError(EngineError):
    """Prompt and answer do not fit into the context or the cache."""


class QueueFullError(EngineError):
    """The waiting queue is full; try again later."""


class EngineClosedError(EngineError):
    """The engine was shut down while the request was open."""


class TemplateError(ApertoError):
    """A conversation cannot be rendered to tokens."""


class DataError(ApertoError):
    """Training data cannot be used as it is."""

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)
        """Every problem found, one line each; the message shows the first ones."""


class TrainingError(ApertoError):
    """Training cannot go on; the state of the last whole step is kept."""


class EvidenceError(ApertoError):
    """Rows, protocols or reports that no verdict can rest on."""


class SignatureError(EvidenceError):
    """A signature does not hold."""
