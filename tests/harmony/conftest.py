from __future__ import annotations

import gzip
import importlib.resources
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aperto.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.bundled()


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """openai-harmony's encoding, fed with the bundled ranks instead of the network."""
    import openai_harmony

    folder: Path = tmp_path_factory.mktemp("ranks")
    packed = importlib.resources.files("aperto") / "data" / "o200k_base.tiktoken.gz"
    (folder / "o200k_base.tiktoken").write_bytes(gzip.decompress(packed.read_bytes()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "TIKTOKEN_ENCODINGS_BASE", str(folder))
        yield openai_harmony.load_harmony_encoding("HarmonyGptOss")
