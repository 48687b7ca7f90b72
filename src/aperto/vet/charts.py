"""Charts as inline SVG: intervals beside a margin, scores beside published ones, effort curves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from html import escape
from typing import TypeAlias

Scale: TypeAlias = Callable[[float], float]
"""From a value to a place on the drawing."""

ROW = 26
LABEL_WIDTH, PLOT_WIDTH, VALUE_WIDTH = 270, 470, 150
WIDTH = LABEL_WIDTH + PLOT_WIDTH + VALUE_WIDTH
CURVE_HEIGHT = 240


@dataclasses.dataclass(frozen=True, slots=True)
class Bar:
    """One interval of a chart of intervals."""

    label: str
    value: float
    lower: float
    upper: float
    text: str
    """Written to its right."""
    tone: str = "plain"
    """`good`, `bad`, `unsure`, `plain` or `faint`."""
    marks: tuple[tuple[float, str], ...] = ()
    """Other values on the same line, each with what it is."""
    limit: float | None = None
    """A margin, drawn as a short line."""


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """One point of a curve."""

    label: str
    x: float
    y: float
    lower: float
    upper: float


def intervals(bars: Sequence[Bar], *, unit: str, zero: bool = False) -> str:
    """A line a bar: its interval and value, marks beside it, and its limit.

    Args:
        bars: from top to bottom; at least one.
        unit: of the axis.
        zero: whether 0 is drawn as a line, for differences.
    """
    low, high = _range(bars)
    height = ROW * len(bars) + 44

    def x(value: float) -> float:
        return LABEL_WIDTH + (value - low) / (high - low) * PLOT_WIDTH

    parts = [_axis(x, low, high, height, unit)]
    if zero and low < 0 < high:
        parts.append(_line(x(0), 8, x(0), height - 36, "zero"))
    for place, bar in enumerate(bars):
        parts.append(_interval(bar, 8 + ROW * place + ROW / 2, x))
    return _svg(height, "".join(parts))


def curve(points: Sequence[Point], *, title: str) -> str:
    """Score over tokens an answer on a logarithmic axis, from little effort to much."""
    ordered = sorted(points, key=lambda point: point.x)
    low, high = _log_range([point.x for point in ordered])

    def x(value: float) -> float:
        return 60 + (math.log10(max(value, 1)) - low) / (high - low) * (WIDTH - 200)

    def y(value: float) -> float:
        return 20 + (1 - value) * (CURVE_HEIGHT - 60)

    parts = [
        _line(60, y(tick), WIDTH - 140, y(tick), "grid")
        + _text(52, y(tick) + 4, f"{100 * tick:.0f} %", "end")
        for tick in (0, 0.25, 0.5, 0.75, 1)
    ]
    parts += [
        _text(x(10**power), CURVE_HEIGHT - 20, f"{10**power:,}", "middle")
        for power in range(math.ceil(low), math.floor(high) + 1)
    ]
    parts.append(_text((WIDTH - 80) / 2, CURVE_HEIGHT - 4, "tokens an answer", "middle"))
    path = " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in ordered)
    parts.append(f'<polyline class="curve" points="{path}"/>')
    for point in ordered:
        parts.append(_line(x(point.x), y(point.lower), x(point.x), y(point.upper), "plain"))
        parts.append(_dot(x(point.x), y(point.y), "plain", f"{title}, {point.label}"))
        parts.append(_text(x(point.x) + 8, y(point.y) + 16, point.label, "start"))
    return _svg(CURVE_HEIGHT, "".join(parts))


def _range(bars: Sequence[Bar]) -> tuple[float, float]:
    """Least and greatest value drawn, with some room."""
    values = [
        value
        for bar in bars
        for value in (bar.lower, bar.upper, bar.limit, *(mark for mark, _ in bar.marks))
        if value is not None
    ]
    low, high = min(values), max(values)
    room = max(0.02, 0.05 * (high - low))
    return low - room, high + room


def _log_range(values: Sequence[float]) -> tuple[float, float]:
    low = math.log10(max(min(values), 1)) - 0.15
    high = math.log10(max(max(values), 1)) + 0.15
    return low, high


def _interval(bar: Bar, y: float, x: Scale) -> str:
    parts = [
        _text(LABEL_WIDTH - 10, y + 4, bar.label, "end"),
        _line(x(bar.lower), y, x(bar.upper), y, bar.tone),
        *(_mark(x(value), y, name) for value, name in bar.marks),
        _dot(x(bar.value), y, bar.tone, f"{bar.label}: {bar.text}"),
        _text(LABEL_WIDTH + PLOT_WIDTH + 10, y + 4, bar.text, "start"),
    ]
    if bar.limit is not None:
        parts.append(_line(x(bar.limit), y - 9, x(bar.limit), y + 9, "limit"))
    return "".join(parts)


def _axis(x: Scale, low: float, high: float, height: float, unit: str) -> str:
    step = _step(high - low)
    ticks = [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)]
    parts = [
        _line(x(tick), 8, x(tick), height - 36, "grid")
        + _text(x(tick), height - 22, f"{100 * tick:.3g}", "middle")
        for tick in ticks
    ]
    return "".join(parts) + _text(LABEL_WIDTH + PLOT_WIDTH / 2, height - 6, unit, "middle")


def _step(span: float) -> float:
    """A round distance of ticks, about six over the span."""
    raw = span / 6
    power = 10.0 ** math.floor(math.log10(raw))
    return min((power, 2 * power, 5 * power, 10 * power), key=lambda step: abs(step - raw))


def _svg(height: float, inner: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img">{inner}</svg>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _dot(x: float, y: float, kind: str, title: str) -> str:
    return (
        f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5">'
        f"<title>{escape(title)}</title></circle>"
    )


def _mark(x: float, y: float, title: str) -> str:
    return (
        f'<path class="mark" d="M{x:.1f} {y - 5:.1f}l5 5-5 5-5-5z">'
        f"<title>{escape(title)}</title></path>"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
