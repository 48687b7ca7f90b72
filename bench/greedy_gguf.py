"""A GGUF file in llama.cpp and here: the same greedy tokens, logits as near as 8 bits let them be.

    python bench/greedy_gguf.py MODEL.gguf --peer-python ~/peers/llama/bin/python

Questions are answered by aperto at precision exact; llama.cpp reads the same tokens one by one and
tells at each what it would choose. It rounds activations to 8 bits before a product with MXFP4, as
precision q8 does here, so its logits may lie as far from the exact ones as those of q8: at most
twice as far, root mean square, for it rounds in other blocks. Exit code 1 where they lie further.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from aperto.config import Precision
from aperto.engine.load import load_model
from aperto.formats import open_checkpoint
from aperto.harmony import Conversation, Message, Role, render, stop_ids
from aperto.native import PAGE_TOKENS
from aperto.tokenizer import Tokenizer

QUESTIONS = ("What is baked on Monday?", "What is 12 + 30?", "Who are you?", "Say hello.")
PEER = """
import json, sys
import llama_cpp as api
import numpy as np
settings = api.llama_model_default_params()
settings.n_gpu_layers = 0
model = api.llama_model_load_from_file(sys.argv[1].encode(), settings)
settings = api.llama_context_default_params()
settings.n_ctx, settings.type_k, settings.type_v = 4096, 0, 0
context = api.llama_init_from_model(model, settings)
vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
for line in sys.stdin:
    api.llama_memory_clear(api.llama_get_memory(context), True)
    rows = []
    for token in json.loads(line):
        batch = api.llama_batch_get_one((api.llama_token * 1)(token), 1)
        assert api.llama_decode(context, batch) == 0
        rows.append(np.ctypeslib.as_array(api.llama_get_logits_ith(context, -1), (vocab,)).tolist())
    print(json.dumps(rows), flush=True)
"""


Text = tuple[list[int], int]
"""Tokens of a prompt and its answer, and the prompt's length."""


class Ours:
    """aperto's core on a file, at one precision."""

    def __init__(self, path: Path, precision: Precision) -> None:
        self.checkpoint = open_checkpoint(path)
        self.tokenizer = Tokenizer.from_checkpoint(self.checkpoint.tokenizer_source())
        self.core = load_model(self.checkpoint, precision=precision)

    def logits(self, ids: list[int]) -> np.ndarray:
        """Logits [tokens, vocabulary] of what follows each token."""
        pages, every = -(-len(ids) // PAGE_TOKENS), np.arange(len(ids), dtype=np.int32)
        groups = len(self.core.window_groups)
        tables = [np.arange(pages, dtype=np.int32)[None]] * groups
        cache = self.core.new_cache([pages] * groups)
        new = np.array(ids, np.int32)
        return self.core.forward(cache, new, every, np.zeros_like(every), tables, every)

    def answer(self, question: str, new_tokens: int) -> Text:
        """The likeliest token after each, until the turn ends."""
        ids = render(Conversation([Message(Role.USER, question)]), self.tokenizer)
        prompt = len(ids)
        while len(ids) < prompt + new_tokens and ids[-1] not in stop_ids(self.tokenizer):
            ids.append(int(self.logits(ids)[-1].argmax()))
        return ids, prompt


def theirs(python: Path, model: Path, texts: list[list[int]]) -> list[np.ndarray]:
    """llama.cpp's logits of each text."""
    done = subprocess.run(
        [python, "-c", PEER, model],
        input="".join(json.dumps(ids) + "\n" for ids in texts),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return [np.array(json.loads(line)) for line in done.stdout.splitlines()]


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--peer-python", type=Path, required=True)
    parser.add_argument("--new-tokens", type=int, default=64)
    options = parser.parse_args()
    exact, q8 = Ours(options.model, "exact"), Ours(options.model, "q8")
    answers = [exact.answer(question, options.new_tokens) for question in QUESTIONS]
    texts = [ids[:-1] for ids, _ in answers]
    found = [[exact.logits(ids) for ids in texts], [q8.logits(ids) for ids in texts]]
    found.append(theirs(options.peer_python, options.model, texts))
    for name, rows in zip(("q8", "llama.cpp"), found[1:], strict=True):
        same = [
            ours.argmax(-1)[prompt - 1 :] == np.array(ids[prompt:])
            for ours, (ids, prompt) in zip(rows, answers, strict=True)
        ]
        chosen = np.concatenate(same)
        off = far(found[0], rows)
        print(f"{name}: {chosen.sum()} of {len(chosen)} greedy tokens; logits off by {off:.4f}")
    near = 2 * far(found[0], found[1])
    sys.exit(far(found[0], found[2]) > near)


def far(exact: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Root mean square of the differences over that of the exact logits around their mean."""
    gap = np.concatenate([(a - b).ravel() for a, b in zip(exact, other, strict=True)])
    spread = np.concatenate([(a - a.mean(-1, keepdims=True)).ravel() for a in exact])
    return float(np.sqrt(np.mean(gap**2) / np.mean(spread**2)))


if __name__ == "__main__":
    main()
