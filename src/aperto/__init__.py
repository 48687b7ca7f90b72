"""Run, shape and vet open-weight gpt-oss models on your own machine."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aperto.chat import Chat, ChatOptions
    from aperto.config import EngineConfig
    from aperto.engine import Engine, Request, SamplingParams
    from aperto.errors import ApertoError
    from aperto.formats import open_checkpoint, write_checkpoint
    from aperto.harmony import Conversation, Message
    from aperto.local_model import Answer, LocalModel, load

__all__ = [
    "Answer",
    "ApertoError",
    "Chat",
    "ChatOptions",
    "Conversation",
    "Engine",
    "EngineConfig",
    "LocalModel",
    "Message",
    "Request",
    "SamplingParams",
    "load",
    "open_checkpoint",
    "write_checkpoint",
]

_HOMES = {
    "Answer": "aperto.local_model",
    "ApertoError": "aperto.errors",
    "Chat": "aperto.chat",
    "ChatOptions": "aperto.chat",
    "Conversation": "aperto.harmony",
    "Engine": "aperto.engine",
    "EngineConfig": "aperto.config",
    "LocalModel": "aperto.local_model",
    "Message": "aperto.harmony",
    "Request": "aperto.engine",
    "SamplingParams": "aperto.engine",
    "load": "aperto.local_model",
    "open_checkpoint": "aperto.formats",
    "write_checkpoint": "aperto.formats",
}


def __getattr__(name: str) -> object:
    # Imported at first use: `import aperto` itself stays fast and loads nothing heavy.
    if name not in _HOMES:
        raise AttributeError(f"module 'aperto' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
