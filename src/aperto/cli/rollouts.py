"""Answers for reward-driven tuning, drawn by the native engine with the adapter as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aperto.engine import Engine, Request, SamplingParams
from aperto.harmony import stop_ids
from aperto.tokenizer import Tokenizer

if TYPE_CHECKING:
    from aperto.adapt.reward import Rollout
    from aperto.formats.adapter import Adapter

_NAME = "policy"


class EnginePolicy:
    """An engine's model with an adapter that changes from step to step."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self._engine = engine
        self._stop_ids = stop_ids(tokenizer)

    def update(self, adapter: Adapter) -> None:
        """Draw with this adapter from now on."""
        self._engine.add_variant(_NAME, adapter)

    def draw(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_tokens: int
    ) -> list[Rollout]:
        """An answer to each prompt at temperature 1, all of them under way at once."""
        from aperto.adapt.reward import Rollout

        streams = [
            self._engine.submit(
                Request(
                    prompt=prompt,
                    max_tokens=max_tokens,
                    sampling=SamplingParams(seed=seed),
                    stop_ids=self._stop_ids,
                    variant=_NAME,
                )
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        tokens = [list(stream) for stream in streams]
        return [Rollout(tuple(t.id for t in one), tuple(t.logprob for t in one)) for one in tokens]
