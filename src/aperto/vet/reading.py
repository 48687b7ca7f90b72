"""Readings: what a score says beside a published one, in plain words."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from aperto.vet.published import Figure
from aperto.vet.stats import Estimate
from aperto.vet.stats.interval import normal_quantile

Standing = Literal["within noise of", "above", "below"]


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """Our score beside one published figure."""

    standing: Standing
    difference: float
    """Ours minus theirs, in 0..1."""
    half_width: float
    """Half of the difference's interval."""
    text: str


def read_beside(ours: Estimate, figure: Figure) -> Reading:
    """Compare a score with a published share.

    The published side's own noise is that of its number of questions where known, else taken to
    be ours: the questions are mostly the same, so the interval errs on the wide side.
    """
    half = _half_width(ours, figure)
    difference = ours.value - figure.value
    standing: Standing = "within noise of"
    if abs(difference) > half:
        standing = "above" if difference > 0 else "below"
    return Reading(standing, difference, half, _text(standing, difference, half, figure))


def _half_width(ours: Estimate, figure: Figure) -> float:
    z = normal_quantile(ours.confidence)
    # The interval's half width, not the standard error: that is 0 where all answers agree.
    own = (ours.upper - ours.lower) / 2 / z
    theirs = own
    if figure.num_items:
        theirs = math.sqrt(figure.value * (1 - figure.value) / figure.num_items)
    return z * math.hypot(own, theirs)


def _text(standing: Standing, difference: float, half: float, figure: Figure) -> str:
    name, theirs = figure.name, f"{100 * figure.value:.1f}"
    points = f"{100 * abs(difference):.1f}"
    if standing == "within noise of":
        return f"within noise of {name} ({theirs}): {points} apart, noise ±{100 * half:.1f}"
    return f"{standing} {name} ({theirs}) by {points} points, noise ±{100 * half:.1f}"
