"""A model loaded for a conversation on this machine: memory checked first, then with progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from aperto import machine
from aperto.chat import Chat
from aperto.cli.asking import confirm
from aperto.cli.progress import byte_progress
from aperto.config import EngineConfig, ModelConfig, Precision, Settings
from aperto.engine import Engine
from aperto.engine.load import load_model
from aperto.errors import MemoryLimitError
from aperto.formats import open_checkpoint
from aperto.formats.hub import resolve_model
from aperto.measure.plan import default_context, plan_memory, readable_bytes
from aperto.tokenizer import Tokenizer


def require_memory(config: ModelConfig, precision: Precision, context: int | None) -> None:
    """Raise MemoryLimitError, with the numbers and what to change, where a model does not fit."""
    plan = plan_memory(
        config,
        precision=precision,
        context=context or default_context(config, precision),
        available_bytes=machine.available_bytes(),
    )
    if not plan.fits:
        raise MemoryLimitError(
            f"the model needs {readable_bytes(plan.total_bytes)} of memory for a context of {plan.context} "
            f"tokens, and {readable_bytes(plan.available_bytes)} are available: {'; '.join(plan.advice)}"
        )


@contextmanager
def local_chat(name: str, settings: Settings) -> Iterator[Chat]:
    """Load a model by name or path with the user's settings; free it at the end.

    Raises ModelNotFoundError, CheckpointError, MemoryLimitError and DiskSpaceError.
    """
    checkpoint = open_checkpoint(resolve_model(name))
    context = settings.context or None
    require_memory(checkpoint.config, settings.precision, context)
    tokenizer = Tokenizer.from_checkpoint(checkpoint.tokenizer_source())
    with byte_progress(f"packing {name}") as progress:
        model = load_model(
            checkpoint,
            precision=settings.precision,
            num_threads=settings.threads or None,
            isa=settings.isa,
            cache_dir=settings.cache_dir,
            progress=progress,
            confirm=confirm,
        )
    with Engine(model, EngineConfig(context_tokens=context)) as engine:
        yield Chat(engine, tokenizer)
