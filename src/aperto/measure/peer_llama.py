"""Executor for llama.cpp: runs under the Python that has llama-cpp-python, without aperto.

Reads one JSON command a line from standard input and answers each with one JSON line, as
`aperto.measure.executor` does for aperto; `aperto.measure.bench` drives both alike.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp

BATCH_TOKENS = 2048
MICRO_BATCH_TOKENS = 512
FLASH_ATTENTION_ON = 1
F16 = 1
READ_BYTES = 16 << 20


class Executor:
    """One model in one context; commands are its methods."""

    def load(self, path: str, threads: int, context: int) -> dict[str, Any]:
        """Load a GGUF file whose pages are resident; make a context of `context` tokens."""
        with Path(path).open("rb", buffering=0) as file:
            buffer = bytearray(READ_BYTES)
            while file.readinto(buffer):
                pass
        start = time.perf_counter()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.context = self._context(threads, context)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "engine": f"llama-cpp-python {llama_cpp.__version__}"}

    def _context(self, threads: int, context: int) -> Any:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = BATCH_TOKENS
        params.n_ubatch = MICRO_BATCH_TOKENS
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = FLASH_ATTENTION_ON
        params.type_k = params.type_v = F16
        params.swa_full = False
        made = llama_cpp.llama_init_from_model(self.model, params)
        if not made:
            raise SystemExit(f"llama.cpp cannot make a context of {context} tokens")
        return made

    def clear(self) -> dict[str, Any]:
        """Forget every token."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        return {}

    def feed(self, ids: list[int]) -> dict[str, Any]:
        """Append tokens as a prompt; logits are made for the last one of a batch."""
        start = time.perf_counter()
        for first in range(0, len(ids), BATCH_TOKENS):
            self._run(ids[first : first + BATCH_TOKENS])
        return {"seconds": time.perf_counter() - start}

    def decode(self, ids: list[int]) -> dict[str, Any]:
        """Append tokens one at a time, with logits for each, as generation does."""
        start = time.perf_counter()
        for token in ids:
            self._run([token])
        return {"seconds": time.perf_counter() - start}

    def save(self, path: str) -> dict[str, Any]:
        """Store the cache in a file."""
        none = (llama_cpp.llama_token * 1)()
        if not llama_cpp.llama_state_seq_save_file(self.context, path.encode(), 0, none, 0):
            raise SystemExit(f"llama.cpp cannot store its cache in {path}")
        return {}

    def restore(self, path: str) -> dict[str, Any]:
        """Replace the cache by a stored one."""
        self.clear()
        none, count = (llama_cpp.llama_token * 1)(), ctypes.c_size_t(0)
        if not llama_cpp.llama_state_seq_load_file(
            self.context, path.encode(), 0, none, 1, ctypes.byref(count)
        ):
            raise SystemExit(f"llama.cpp cannot read its cache from {path}")
        return {}

    def _run(self, ids: list[int]) -> None:
        tokens = (llama_cpp.llama_token * len(ids))(*ids)  # the batch only points to it
        batch = llama_cpp.llama_batch_get_one(tokens, len(ids))
        code = llama_cpp.llama_decode(self.context, batch)
        if code:
            raise SystemExit(f"llama_decode returned {code} for a batch of {len(ids)} tokens")
        llama_cpp.llama_synchronize(self.context)


def main() -> None:
    """Answer on the real standard output; what llama.cpp prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    executor = Executor()
    for line in sys.stdin:
        command = json.loads(line)
        answer = getattr(executor, command.pop("do"))(**command)
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
