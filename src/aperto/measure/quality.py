"""How far a changed model answers from the one it was made of: KL, top-1 agreement, perplexity.

Both are run by callables, one after the other: the first one's logits wait in a temporary file.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aperto.errors import UsageError

WINDOW_TOKENS = 512
"""Tokens that are computed at a time; each window begins anew."""

Forward: TypeAlias = Callable[[Sequence[int]], NDArray[np.float32]]
"""Ids [n] to logits [n, vocab]."""


@dataclasses.dataclass(frozen=True, slots=True)
class Quality:
    """What a text says of a changed model beside the one before."""

    num_tokens: int
    """Tokens that were predicted."""
    kl: float
    """Mean of KL(before || after) a token, in nats."""
    kl_max: float
    """The largest of them."""
    top1: float
    """Share of tokens where both hold the same token for the likeliest."""
    perplexity_before: float
    """exp of the mean loss before the change."""
    perplexity_after: float
    """exp of the mean loss after it."""

    def lines(self) -> list[tuple[str, str]]:
        """Label and text of each line for people."""
        return [
            ("KL", f"{self.kl:.4g} nats a token, at most {self.kl_max:.4g}"),
            ("top-1 agreement", f"{self.top1:.1%} of {self.num_tokens} tokens"),
            ("perplexity", f"{self.perplexity_before:.4g} to {self.perplexity_after:.4g}"),
        ]


class Measured:
    """The first model's logits on a text, kept on disk until the other has its turn.

    Args:
        ids: the text; windows of WINDOW_TOKENS are computed by themselves.
        forward: the model before the change.
        kept: ids whose logits are compared, ascending; None for all. Losses are of these too.
        folder: where the temporary file lies; None for the system's own place.

    Raises UsageError for a text of fewer than two tokens.
    """

    def __init__(
        self,
        ids: Sequence[int],
        forward: Forward,
        kept: Sequence[int] | None = None,
        folder: Path | None = None,
    ) -> None:
        if len(ids) < 2:
            raise UsageError(f"the text has {len(ids)} tokens; expected 2 or more to measure on")
        starts = range(0, len(ids) - 1, WINDOW_TOKENS)
        self._windows = [list(ids[s : s + WINDOW_TOKENS]) for s in starts]
        self._kept = None if kept is None else np.asarray(kept)
        # Unlinked at once: it is gone with the process, however that ends.
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._vocab = 0
        for window in self._windows:
            logits = forward(window)
            chosen = logits if self._kept is None else logits[:, self._kept]
            self._vocab = chosen.shape[1]
            self._file.write(np.ascontiguousarray(chosen, np.float32).data)

    def compare(self, forward: Forward) -> Quality:
        """Run the changed model, whose ids are the ranks in `kept`, on the same text."""
        rows: list[NDArray[np.float64]] = []
        self._file.seek(0)
        for window in self._windows:
            size = 4 * len(window) * self._vocab
            before = np.frombuffer(self._file.read(size), np.float32).reshape(len(window), -1)
            ids = window if self._kept is None else np.searchsorted(self._kept, window).tolist()
            after = forward(ids)
            rows += [_token(*row) for row in zip(before, after, ids[1:], strict=False)]
        kl, same, loss_before, loss_after = np.array(rows).T
        return Quality(
            num_tokens=len(rows),
            kl=float(kl.mean()),
            kl_max=float(kl.max()),
            top1=float(same.mean()),
            perplexity_before=math.exp(float(loss_before.mean())),
            perplexity_after=math.exp(float(loss_after.mean())),
        )

    def close(self) -> None:
        """Free the disk space."""
        self._file.close()

    def __enter__(self) -> Measured:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _token(before: NDArray[Any], after: NDArray[Any], label: int) -> NDArray[np.float64]:
    """Of one token: KL, whether the likeliest is the same, and both losses; logits [vocab]."""
    p, q = _log_softmax(before), _log_softmax(after)
    kl = float(np.dot(np.exp(p), p - q))
    same = float(int(p.argmax()) == int(q.argmax()))
    return np.array([max(kl, 0.0), same, -p[label], -q[label]])


def _log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    values -= values.max()
    result: NDArray[np.float64] = values - math.log(float(np.exp(values).sum()))
    return result
