"""How the next token is drawn: what a request asks for, and one row of work for the sampler."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from aperto.errors import ConfigError

_SEED_MODULUS = 2**64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to draw tokens; the defaults are OpenAI's. Raises ConfigError on values out of range."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = 1.0
    """Keep the smallest set of tokens with at least this probability, in (0, 1]."""
    top_k: int = 0
    """Keep this many of the most likely tokens; 0 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the most likely one, in [0, 1]."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of each token generated before, in [-2, 2]."""
    frequency_penalty: float = 0.0
    """Subtracted once for each time a token was generated before, in [-2, 2]."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of earlier tokens; from 0.01 to 100."""
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    """Token id to a value added to its logit."""
    seed: int | None = None
    """Seed of the draws, taken modulo 2**64; None draws one and reports it."""

    def __post_init__(self) -> None:
        self._require_range("temperature", 0.0, math.inf)
        self._require_range("top_p", 0.0, 1.0, open_low=True)
        self._require_range("min_p", 0.0, 1.0)
        self._require_range("presence_penalty", -2.0, 2.0)
        self._require_range("frequency_penalty", -2.0, 2.0)
        self._require_range("repetition_penalty", 0.01, 100.0)
        if not _is_int(self.top_k) or self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k!r}; expected an integer >= 0 (0 keeps all)")
        if self.seed is not None and not _is_int(self.seed):
            raise ConfigError(f"seed is {self.seed!r}; expected an integer or None")
        for token_id, bias in self.logit_bias.items():
            if not _is_int(token_id) or not _is_finite(bias):
                raise ConfigError(
                    f"logit_bias has {token_id!r}: {bias!r}; expected token ids with finite values"
                )

    def _require_range(self, name: str, low: float, high: float, open_low: bool = False) -> None:
        value = getattr(self, name)
        if not _is_finite(value) or not low <= value <= high or (open_low and value == low):
            interval = (
                f"{'(' if open_low else '['}{low:g}, {high:g}{')' if high == math.inf else ']'}"
            )
            raise ConfigError(f"{name} is {value!r}; expected a number in {interval}")

    @property
    def needs_counts(self) -> bool:
        """Whether draws depend on which tokens came before."""
        return (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )


class SampleRow:
    """One row of a call to the sampler; lives as long as its sequence and is updated in place.

    The draw depends on the logits, these settings and (seed, position) alone.
    """

    __slots__ = (
        "_slots",
        "bias_ids",
        "bias_values",
        "count_ids",
        "counts",
        "frequency_penalty",
        "mask",
        "min_p",
        "num_top_logprobs",
        "position",
        "presence_penalty",
        "repetition_penalty",
        "seed",
        "temperature",
        "top_k",
        "top_p",
    )

    def __init__(
        self, params: SamplingParams, prompt: NDArray[np.int32], num_top_logprobs: int
    ) -> None:
        self.temperature = float(params.temperature)
        self.top_p = float(params.top_p)
        self.top_k = params.top_k
        self.min_p = float(params.min_p)
        self.presence_penalty = float(params.presence_penalty)
        self.frequency_penalty = float(params.frequency_penalty)
        self.repetition_penalty = float(params.repetition_penalty)
        self.bias_ids = np.array(list(params.logit_bias), dtype=np.int32)
        self.bias_values = np.array(list(params.logit_bias.values()), dtype=np.float32)
        self.mask: NDArray[np.uint32] | None = None
        """One bit a token, least significant first, set where allowed; None allows all."""
        self.seed = (secrets.randbits(64) if params.seed is None else params.seed) % _SEED_MODULUS
        self.position = 0
        """Index of the token to draw within its sequence."""
        self.num_top_logprobs = num_top_logprobs
        seen = np.unique(prompt) if self.repetition_penalty != 1.0 else np.empty(0, np.int32)
        self.count_ids = seen.astype(np.int32)
        """Distinct tokens seen: the prompt's (for the repetition penalty), then drawn ones."""
        self.counts = np.zeros(len(seen), dtype=np.int32)
        """How often each of count_ids was generated; 0 for those of the prompt alone."""
        self._slots = {int(i): n for n, i in enumerate(seen)} if params.needs_counts else None

    def count(self, token_id: int) -> None:
        """Note that a token was generated."""
        if self._slots is None:
            return
        slot = self._slots.get(token_id)
        if slot is None:
            slot = self._slots[token_id] = len(self.counts)
            self.count_ids = np.append(self.count_ids, np.int32(token_id))
            self.counts = np.append(self.counts, np.int32(0))
        self.counts[slot] += 1


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
