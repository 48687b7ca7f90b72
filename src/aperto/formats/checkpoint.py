"""A checkpoint as everything above sees it: canonical names to tensors, whatever the layout."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from aperto.config import ModelConfig
from aperto.errors import TensorError
from aperto.formats import mxfp4
from aperto.formats.lineage import Lineage
from aperto.formats.names import tensor_shapes
from aperto.formats.tensor import DType, Tensor, TensorInfo, num_bytes

Layout = Literal["hf", "openai", "gguf"]
LAYOUTS: tuple[Layout, ...] = ("hf", "openai", "gguf")

_CHECKED_ELEMENTS = 1 << 20  # tensors up to this size are checked for NaN when read


@dataclasses.dataclass(frozen=True, slots=True)
class TokenizerSource:
    """Where a checkpoint's vocabulary comes from."""

    kind: Literal["hf", "gguf", "bundled"]
    """A tokenizer.json, lists inside a GGUF file, or none: the bundled o200k_harmony is meant."""
    path: Path | None = None
    """kind "hf": the tokenizer.json file."""
    tokens: tuple[str, ...] = ()
    """kind "gguf": token texts in the byte-level alphabet, by id."""
    merges: tuple[str, ...] = ()
    """kind "gguf": merge rules, "left right", by rank."""
    token_types: tuple[int, ...] = ()
    """kind "gguf": 1 normal, 3 control, 4 user defined, 5 unused, by id."""


@runtime_checkable
class TensorSource(Protocol):
    """What `write_checkpoint` and the loaders read from; every Checkpoint is one."""

    @property
    def config(self) -> ModelConfig:
        """Architecture."""

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """Generation defaults as the checkpoint states them; may be empty."""

    def names(self) -> tuple[str, ...]:
        """Canonical names, in order."""

    def info(self, name: str) -> TensorInfo:
        """Describe a tensor without reading it."""

    def tensor(self, name: str) -> Tensor:
        """Read a tensor."""

    def tokenizer_source(self) -> TokenizerSource:
        """Name the vocabulary."""


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """How one canonical tensor is obtained from the files."""

    dtype: DType
    file: Path
    load: Callable[[], Tensor]
    """Reads it; the checkpoint checks what comes back."""


class Checkpoint:
    """A read-only model on disk under canonical names. Tensors are read when asked for.

    Layout readers build it through `build`; use `open_checkpoint` to open one.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        config: ModelConfig,
        stored: Mapping[str, Stored],
        files: tuple[Path, ...],
        notes: tuple[str, ...] = (),
        generation_config: Mapping[str, Any] | None = None,
        tokenizer: Callable[[], TokenizerSource] | None = None,
        lineage: Lineage | None = None,
    ) -> None:
        self.path = path
        """The folder or file that was opened."""
        self.layout: Layout = layout
        """Which of the three layouts it has."""
        self.config = config
        """Architecture."""
        self.files = files
        """Every file that was read."""
        self.notes = notes
        """What a user should know: losses, ignored tensors, assumptions."""
        self.generation_config: Mapping[str, Any] = dict(generation_config or {})
        """Generation defaults as the checkpoint states them."""
        self.lineage = lineage
        """How it was made, for a model derived from others."""
        self._shapes = tensor_shapes(config)
        self._stored = stored
        self._tokenizer = tokenizer

    def names(self) -> tuple[str, ...]:
        """Return the canonical names, in the order of the model."""
        return tuple(self._shapes)

    def info(self, name: str) -> TensorInfo:
        """Describe a tensor without touching its data. Raises TensorError for an unknown name."""
        stored = self._find(name)
        shape = self._shapes[name]
        return TensorInfo(name, stored.dtype, shape, num_bytes(stored.dtype, shape), stored.file)

    def tensor(self, name: str) -> Tensor:
        """Read a tensor: a view into the mapped file where the layout allows.

        Raises TensorError for an unknown name, NaN scales, and NaN or infinite values in the small
        tensors (matrices are checked when they are quantised or packed).
        """
        tensor = self._find(name).load()
        if tensor.scales is not None:
            mxfp4.check_scales(tensor.scales, name)
        elif tensor.data.size <= _CHECKED_ELEMENTS and not np.isfinite(tensor.to_float32()).all():
            raise TensorError(
                f"{name}: found NaN or infinite values; expected finite weights; the file is "
                "damaged or its training diverged"
            )
        return tensor

    def tokenizer_source(self) -> TokenizerSource:
        """Name the vocabulary that belongs to the weights."""
        return self._tokenizer() if self._tokenizer else TokenizerSource("bundled")

    def fingerprint(self) -> str:
        """Return a cheap identity of the files (names, sizes, modification times), in hex."""
        digest = hashlib.sha256()
        for file in self.files:
            stat = file.stat()
            digest.update(f"{file.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
        return digest.hexdigest()[:32]

    def _find(self, name: str) -> Stored:
        if name not in self._stored:
            raise TensorError(
                f"{self.path}: there is no tensor {name!r}; expected a canonical name such as "
                "'layers.0.attn.q.weight'; names() lists them"
            )
        return self._stored[name]


def shape_error(
    file: Path, name: str, found: tuple[int, ...], expected: tuple[int, ...]
) -> TensorError:
    """Build the error for a tensor whose shape contradicts the configuration."""
    return TensorError(
        f"{file}: tensor {name!r} has shape {list(found)}; expected {list(expected)} by the "
        "configuration; weights and configuration do not belong together"
    )


def missing_error(path: Path, name: str) -> TensorError:
    """Build the error for a tensor the architecture needs and the files lack."""
    return TensorError(
        f"{path}: tensor {name!r} is missing; expected it by the configuration; the checkpoint is "
        "incomplete: download it again"
    )
