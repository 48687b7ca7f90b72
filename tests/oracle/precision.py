"""How far `q8` is from `exact` on tiny checkpoints: python -m tests.oracle.precision prints it."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from tests.tiny import write_tiny

from aperto.formats import open_checkpoint

TOKENS = 400
SHAPES: dict[str, dict[str, Any]] = {
    "one expert": {"experts": 1, "top_k": 1, "hidden": 128, "intermediate": 128},
    "one expert, 6 layers": {"experts": 1, "top_k": 1, "windows": (16, 0) * 3},
    "4 experts, top 2": {},
    "8 experts, top 4, 4 layers": {"experts": 8, "top_k": 4, "windows": (8, 0) * 2},
    "32 experts, top 4": {"experts": 32, "top_k": 4, "hidden": 128, "heads": 16, "head_dim": 64},
    "32 experts, top 1": {"experts": 32, "top_k": 1, "windows": (0, 33)},
}


def load_script() -> ModuleType:
    """bench/precision.py as a module."""
    path = Path(__file__).parents[2] / "bench" / "precision.py"
    spec = importlib.util.spec_from_file_location("precision_script", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["precision_script"] = module
    spec.loader.exec_module(module)
    return module


script = load_script()


def measure(name: str) -> Any:
    """The agreement on a text of random tokens."""
    ids = np.random.default_rng(9).integers(0, 384, TOKENS, dtype=np.int32)
    with tempfile.TemporaryDirectory() as folder:
        path = write_tiny(Path(folder) / "tiny", seed=6, **SHAPES[name])
        return script.compare(open_checkpoint(path), ids)


def main() -> None:
    """Print the table of docs/precision.md."""
    print(script.HEADER)
    for name in SHAPES:
        print(measure(name).row(f"tiny, {name}", "random tokens"))


if __name__ == "__main__":
    main()
