"""What a model will take of memory, known before it is loaded."""

from __future__ import annotations

from aperto import machine
from aperto.config import EngineConfig, ModelConfig, Precision
from aperto.engine.engine import plan_cache_bytes
from aperto.errors import MemoryLimitError
from aperto.formats import Checkpoint
from aperto.formats.packed import packed_bytes

_PAGE_TOKENS = 32
_GIB = 1 << 30


class CacheShape:
    """What page planning asks of a model (see `CacheModel`), from its configuration alone."""

    page_tokens = _PAGE_TOKENS

    def __init__(self, config: ModelConfig, precision: Precision) -> None:
        self.config = config
        self.window_groups = config.window_groups
        self._value_bytes = 4 if precision == "exact" else 2

    def page_bytes(self, group: int) -> int:
        """Bytes of one page: keys and values of all layers of the group."""
        window = self.window_groups[group]
        num_layers = sum(layer.window == window for layer in self.config.layers)
        return num_layers * _PAGE_TOKENS * 2 * self.config.kv_size * self._value_bytes


def require_memory(checkpoint: Checkpoint, precision: Precision, config: EngineConfig) -> None:
    """Raise MemoryLimitError, with the numbers, where weights and cache do not fit."""
    weights = packed_bytes(checkpoint, precision)
    cache = plan_cache_bytes(CacheShape(checkpoint.config, precision), config)
    available = machine.available_bytes()
    if weights + cache > available:
        raise MemoryLimitError(
            f"{checkpoint.path} needs {weights / _GIB:.2f} GiB for its weights and "
            f"{cache / _GIB:.2f} GiB for keys and values, {(weights + cache) / _GIB:.2f} GiB "
            f"together, but {available / _GIB:.2f} GiB are available; close other programs, ask "
            "for a shorter context, or take a smaller model"
        )
