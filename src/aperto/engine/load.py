"""From a checkpoint to a model that runs: packed weights bound to the native core."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from aperto.config import Precision, default_cache_dir
from aperto.engine.prefix_store import PrefixOwner
from aperto.formats import Checkpoint
from aperto.formats.packed import Confirm, Progress, open_packed
from aperto.native import Model, core_path, isa_names

__all__ = ["isa_names", "load_model", "prefix_owner"]


def load_model(
    checkpoint: Checkpoint,
    *,
    precision: Precision = "q8",
    num_threads: int | None = None,
    isa: str = "",
    max_batch_tokens: int = 512,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    confirm: Confirm | None = None,
) -> Model:
    """Pack or map the weights and bind them to the kernels.

    The KV cache is f16, and f32 with precision "exact". progress and confirm: see `open_packed`.
    Raises ConfigError for settings out of range, TensorError for damaged weights, DiskSpaceError
    when the packed file does not fit.
    """
    packed = open_packed(
        checkpoint,
        precision,
        default_cache_dir() if cache_dir is None else cache_dir,
        progress=progress,
        confirm=confirm,
    )
    return Model(
        checkpoint.config,
        packed.tensors,
        num_threads=num_threads,
        isa=isa,
        max_batch_tokens=max_batch_tokens,
        kv_type="f32" if precision == "exact" else "f16",
    )


def prefix_owner(checkpoint: Checkpoint, precision: Precision) -> PrefixOwner:
    """What keys and values on disk belong to: these files, this precision, this build's kernels."""
    fingerprint = f"{checkpoint.fingerprint()} {_core_hash()}"
    return PrefixOwner(str(checkpoint.path.resolve()), precision, fingerprint)


@functools.cache
def _core_hash() -> str:
    return hashlib.blake2b(core_path().read_bytes(), digest_size=16).hexdigest()
