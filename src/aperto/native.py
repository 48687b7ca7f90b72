"""The one door to the C++ core: forward pass, KV cache and sampler."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

import aperto._native as _native
from aperto.config import ModelConfig
from aperto.errors import ConfigError

PAGE_TOKENS: int = _native.PAGE_TOKENS
"""Tokens of one KV page."""

PackedTensors: TypeAlias = Mapping[str, tuple[str, NDArray[np.uint8]]]
"""Packed weights: name -> (kind, bytes)."""

KvCache = _native.KvCache
"""Pages of keys and values; made by `Model.new_cache`."""

sample = _native.sample
"""sample(logits [m, vocab] float32, rows): a (token id, logprob, top) for each row.

Logprobs are of the logits as given. A draw depends on its row's logits, settings and
(seed, position) alone.
"""

log_sum_exp = _native.log_sum_exp
"""Log of the sum of exponentials of one row of logits, so that logprob = logit - this."""

tiles_bytes = _native.tiles_bytes
quantize_q8_0 = _native.quantize_q8_0
quantize_q8_0_bf16 = _native.quantize_q8_0_bf16
encode_mxfp4 = _native.encode_mxfp4
encode_mxfp4_bf16 = _native.encode_mxfp4_bf16
decode_mxfp4 = _native.decode_mxfp4
decode_mxfp4_bf16 = _native.decode_mxfp4_bf16
pack_q8 = _native.pack_q8
pack_bf16 = _native.pack_bf16
pack_f32 = _native.pack_f32
pack_mxfp4 = _native.pack_mxfp4
probe_read_bandwidth = _native.probe_read_bandwidth
probe_int8_peak = _native.probe_int8_peak
probe_f32_peak = _native.probe_f32_peak


def core_path() -> Path:
    """The file of the compiled core: other bytes may compute other bits."""
    return Path(str(_native.__file__))


def isa_names() -> list[str]:
    """Return the instruction sets this CPU can run, best first; "reference" is the last."""
    return list(_native.isa_names())


class Model:
    """The forward pass of one model over packed weights.

    One call at a time: forward uses scratch memory of its own.
    """

    page_tokens = PAGE_TOKENS

    def __init__(
        self,
        config: ModelConfig,
        tensors: PackedTensors,
        *,
        num_threads: int | None = None,
        isa: str = "",
        max_batch_tokens: int = 512,
        kv_type: str = "f16",
    ) -> None:
        """Bind weights (kept alive, not copied), threads and scratch memory.

        num_threads: None takes one a CPU this process may run on. isa: an instruction set of
        `isa_names`, empty for the best. kv_type: "f16" or "f32".
        Raises ConfigError for values out of range and for weights that do not fit the config.
        """
        if num_threads is None:
            num_threads = len(os.sched_getaffinity(0))
        try:
            self._core = _native.Model(config, dict(tensors), isa, num_threads, max_batch_tokens)
            self._kv_type = kv_type
            self.page_bytes(0)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.config = config
        self.window_groups = config.window_groups
        self.max_batch_tokens = max_batch_tokens

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return str(self._core.isa)

    @property
    def num_threads(self) -> int:
        """Threads of a forward pass, the caller's included."""
        return int(self._core.num_threads)

    def page_bytes(self, group: int) -> int:
        """Bytes of one page of a window group."""
        return int(self._core.page_bytes(group, self._kv_type))

    def new_cache(self, num_pages: Sequence[int]) -> Any:
        """Allocate a cache with this many pages for each window group; committed when written."""
        return self._core.new_cache(list(num_pages), self._kv_type)

    def new_variant(self) -> _native.Variant:
        """A variant of this model that changes nothing yet; keeps the model alive."""
        return self._core.new_variant()

    def new_taps(self, points: Iterable[str]) -> _native.Taps:
        """What copies the named points of a forward pass: see `aperto.engine.hooks`."""
        return _native.Taps(set(points))

    def forward(
        self,
        cache: Any,
        token_ids: NDArray[np.int32],
        positions: NDArray[np.int32],
        seq_idx: NDArray[np.int32],
        page_tables: list[NDArray[np.int32]],
        output_rows: NDArray[np.int32],
        variants: Sequence[Any] | None = None,
        taps: Any = None,
    ) -> NDArray[np.float32]:
        """Write keys and values of n tokens and return the logits [m, vocab] of m of them.

        token_ids, positions, seq_idx: [n]; tokens of one sequence stand together in order of
        position. page_tables: one [num_seqs, max_pages] a window group. output_rows: [m].
        variants: one of `new_variant` or None (the base) for each of num_seqs; None: all the base.
        taps: of `new_taps`, where to copy what passes its points.
        Raises ValueError for numbers out of range.
        """
        logits = self._core.forward(
            cache, token_ids, positions, seq_idx, page_tables, output_rows, variants, taps
        )
        return cast("NDArray[np.float32]", logits)
