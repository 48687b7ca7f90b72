"""What the engine asks of the native core, as protocols, so that tests can stand in a fake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aperto.config import ModelConfig
from aperto.engine.sampling import SampleRow

Int32Array: TypeAlias = NDArray[np.int32]
Float32Array: TypeAlias = NDArray[np.float32]


class KvCache(Protocol):
    """Physical pages of keys and values, one pool a window group."""

    @property
    def nbytes(self) -> int:
        """Bytes held by all pages."""
        ...


class CacheModel(Protocol):
    """What page planning asks of a model."""

    @property
    def config(self) -> ModelConfig:
        """Architecture of the model."""
        ...

    @property
    def window_groups(self) -> Sequence[int]:
        """Distinct attention windows in tokens, 0 for the whole context; one page table each."""
        ...

    @property
    def page_tokens(self) -> int:
        """Positions held by one page."""
        ...

    def page_bytes(self, group: int) -> int:
        """Bytes of one page of a window group."""
        ...


class CoreModel(CacheModel, Protocol):
    """The forward pass over a paged cache; `aperto.native.Model` is the real one.

    Position p of a sequence lies in its logical page p // page_tokens; a page table row maps
    logical to physical pages, -1 where there is none (freed behind the window, or not yet taken).
    """

    def new_cache(self, num_pages: Sequence[int]) -> Any:
        """Allocate a cache with this many pages for each window group."""
        ...

    def forward(
        self,
        cache: Any,
        token_ids: Int32Array,  # [n]
        positions: Int32Array,  # [n]
        seq_idx: Int32Array,  # [n], rows of the page tables
        page_tables: list[Int32Array],  # one [num_seqs, max_pages] a window group
        output_rows: Int32Array,  # [m], indices into the n tokens
        *,
        variants: Sequence[Any] | None = ...,  # one a row of the page tables, None: the base
    ) -> Float32Array:
        """Write keys and values of n tokens and return the logits [m, vocab] of m of them.

        Tokens of one sequence stand together and in order of position.
        """
        ...


SampleResult: TypeAlias = tuple[int, float, Sequence[tuple[int, float]]]
"""A token id, its logprob, and the most likely tokens with theirs, best first.

Logprobs are of the model's own distribution: before temperature, penalties, bias and mask.
"""

Sampler: TypeAlias = Callable[[Float32Array, Sequence[SampleRow]], Sequence[SampleResult]]
"""Draws one token for each row of the logits [m, vocab]."""
