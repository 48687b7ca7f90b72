"""The fixed checkpoints behind tests/goldens/logits.json, and how their logits are hashed.

The hashes were made once and hold on every machine and instruction set. The weights come from
NumPy's PCG64 (integers, normals), whose streams have not changed so far but are not promised for
ever: each entry also hashes the weights, so that a failure tells which of the two moved.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from tests.native.harness import Weights, whole

PATH = Path(__file__).parents[1] / "goldens" / "logits.json"

CASES: dict[str, tuple[dict[str, Any], int]] = {
    "default": ({}, 100),
    "windows-in-any-order": (
        {"seed": 1, "windows": (0, 5, 40, 0), "experts": (3, 8, 1, 32), "top_k": (1, 4, 1, 2)},
        150,
    ),
    "heads-and-experts-of-20b": (
        {
            "seed": 2,
            "hidden": 96,
            "windows": (128, 0),
            "experts": 32,
            "top_k": 4,
            "heads": 16,
            "kv_heads": 2,
            "head_dim": 64,
            "vocab": 201,
        },
        300,
    ),
    "past-the-original-context": (
        {"seed": 3, "hidden": 128, "original_context": 64, "beta_fast": 4.0, "head_dim": 48},
        200,
    ),
}
"""Name -> (arguments of write_tiny, tokens of text)."""


def text(name: str) -> np.ndarray:
    """Token ids by a written rule, so that no generator is involved."""
    shape, length = CASES[name]
    steps = np.arange(length, dtype=np.int64)
    return (steps * steps * 7 + steps * 31 + 5) % shape.get("vocab", 384)


def compute(name: str, folder: Path, isa: str = "", threads: int = 1) -> dict[str, str]:
    """SHA-256 of the weights and of the little-endian float32 logits [tokens, vocab]."""
    weights = Weights(CASES[name][0], folder)
    result = {"weights": _sha256((folder / "tiny" / "model.safetensors").read_bytes())}
    for precision in ("q8", "exact"):
        model = weights.model(precision, threads, isa)
        logits = whole(model, text(name).astype(np.int32))
        result[precision] = _sha256(np.ascontiguousarray(logits, "<f4").tobytes())
    return result


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
