"""Token ids in, token ids out: continuous batching over a paged, prefix-sharing cache."""

from aperto.engine.constraint import Constraint
from aperto.engine.engine import (
    Engine,
    default_context_tokens,
    plan_cache_bytes,
    plan_pages,
)
from aperto.engine.sampling import SamplingParams
from aperto.engine.sequence import Request
from aperto.engine.stream import FinishReason, Timings, Token, TokenStream, Usage
from aperto.engine.worker import EngineStats

__all__ = [
    "Constraint",
    "Engine",
    "EngineStats",
    "FinishReason",
    "Request",
    "SamplingParams",
    "Timings",
    "Token",
    "TokenStream",
    "Usage",
    "default_context_tokens",
    "plan_cache_bytes",
    "plan_pages",
]
