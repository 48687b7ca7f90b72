"""Random walks through a grammar: what a model without any sense would write."""

from __future__ import annotations

import random

import numpy as np

from aperto.engine import Constraint
from aperto.harmony.grammar import GrammarCompiler, TurnGrammar
from aperto.tokenizer import HARMONY_SPECIAL, Tokenizer


class Walker:
    """Draws tokens that a constraint allows, those that end something more often than others."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.compiler = GrammarCompiler(tokenizer)
        closing = [tokenizer.special[name] for name in HARMONY_SPECIAL]
        closing += [tokenizer.encode(mark)[0] for mark in '"}],:{[']
        self._closing = np.array(closing)

    def walk(self, grammar: TurnGrammar, rng: random.Random, most: int = 400) -> list[int] | None:
        """The tokens of a turn; None where it did not end within `most`."""
        return self.follow(self.compiler.constraint(grammar), rng, most)

    def follow(self, constraint: Constraint, rng: random.Random, most: int = 400):
        """Like `walk`, under any constraint."""
        ids: list[int] = []
        haste = rng.choice((0.2, 0.4, 0.7))
        while not constraint.is_done:
            ids.append(self._pick(constraint.mask(), rng, haste))
            constraint.accept(ids[-1])
            if len(ids) >= most:
                return None
        return ids

    def _pick(self, mask: np.ndarray, rng: random.Random, haste: float) -> int:
        if rng.random() < haste:
            closing = self._closing[(mask[self._closing // 32] >> (self._closing % 32)) & 1 == 1]
            if len(closing):
                return int(rng.choice(closing))
        for _ in range(10):  # most masks allow nearly everything or nearly nothing
            token = rng.randrange(self.tokenizer.vocab_size)
            if mask[token // 32] >> (token % 32) & 1:
                return token
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits[: self.tokenizer.vocab_size])
        assert len(allowed), "nothing is allowed"
        return int(rng.choice(allowed))
