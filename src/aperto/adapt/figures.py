"""A run's log as figures: loss, learning rate and pace over the steps, as PNG and as one page."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aperto.adapt.state import LOG, SETTINGS
from aperto.errors import DataError
from aperto.formats.disk import replace_file

PNG = "loss.png"
PAGE = "loss.html"

Log = Sequence[Mapping[str, Any]]
"""Lines of a run's log: steps, and evaluations, which lack a "loss"."""

_NAMES = ("ink", "soft", "edge", "line", "held out")
_LIGHT = dict(zip(_NAMES, ("#1c1e21", "#6b7078", "#dcdedf", "#2a5db0", "#a86400"), strict=True))
_DARK = dict(zip(_NAMES, ("#e7e9ea", "#9aa0a8", "#33373b", "#86aef2", "#e2a54a"), strict=True))

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fdfdfc; --soft: #6b7078; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ea; --paper: #16181a; --soft: #9aa0a8; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
svg { width: 100%; height: auto; } .dark { display: none; }
@media (prefers-color-scheme: dark) { .dark { display: block; } .light { display: none; } }
table { border-collapse: collapse; font-size: .9rem; } td { padding: .2rem 1.2rem .2rem 0; }
td:first-child { color: var(--soft); } code { overflow-wrap: anywhere; }
"""


def write_figures(run: Path) -> tuple[Path, Path] | None:
    """Draw the log of a run's folder into it; returns the PNG and the page.

    None where no step was taken yet. Raises DataError for a log that cannot be read.
    """
    log = _read(run / LOG)
    if not any("loss" in entry for entry in log):
        return None
    replace_file(run / PNG, _drawn(log, _LIGHT, "png", "#fdfdfc"))
    settings = json.loads((run / SETTINGS).read_text(encoding="utf-8"))
    replace_file(run / PAGE, _page(log, settings).encode())
    return run / PNG, run / PAGE


def smoothed(values: Sequence[float]) -> list[float]:
    """A running mean over about a tenth of the values, twenty at most, unbiased from the first."""
    weight = 1 - 1 / min(max(len(values) / 10, 1), 20)
    total = share = 0.0
    found = []
    for value in values:
        total, share = weight * total + value, weight * share + 1
        found.append(total / share)
    return found


def _read(file: Path) -> list[dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError as problem:
        raise DataError(f"{file}: {problem}; expected one JSON object a line", []) from problem


def _drawn(log: Log, colours: Mapping[str, str], kind: str, paper: str = "none") -> bytes:
    """The three plots, one below the other."""
    settings: Any = {
        "text.color": colours["ink"],
        "axes.labelcolor": colours["soft"],
        "axes.edgecolor": colours["edge"],
        "xtick.color": colours["soft"],
        "ytick.color": colours["soft"],
        "grid.color": colours["edge"],
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
        "svg.hashsalt": "aperto",  # the same log, the same bytes
    }
    with rc_context(settings):
        figure = Figure(figsize=(9, 7), layout="constrained", facecolor=paper)
        FigureCanvasAgg(figure)
        top, middle, below = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1))
        _loss(top, log, colours)
        steps = [entry for entry in log if "loss" in entry]
        numbers = [entry["step"] for entry in steps]
        middle.plot(numbers, [entry["learning_rate"] for entry in steps], color=colours["line"])
        middle.set_ylabel("learning rate")
        below.plot(numbers, [entry["tokens_per_s"] for entry in steps], color=colours["line"])
        below.set_ylabel("tokens/s")
        below.set_ylim(bottom=0)
        below.set_xlabel("step")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in (top, middle, below):
            axes.grid(visible=True, linewidth=0.6)
        out = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(out, format=kind, dpi=150, metadata=metadata)
    return out.getvalue()


def _loss(axes: Axes, log: Log, colours: Mapping[str, str]) -> None:
    """Each step's loss, its running mean, and the held-out rows'."""
    steps = [entry for entry in log if "loss" in entry]
    numbers, losses = ([entry[key] for entry in steps] for key in ("step", "loss"))
    axes.plot(numbers, losses, ".", markersize=4, alpha=0.35, color=colours["line"], label="step")
    axes.plot(numbers, smoothed(losses), color=colours["line"], label="mean of the last steps")
    held_out = [entry for entry in log if "eval_loss" in entry]
    if held_out:
        axes.plot(
            [entry["step"] for entry in held_out],
            [entry["eval_loss"] for entry in held_out],
            "D-",
            markersize=5,
            color=colours["held out"],
            label="held-out rows",
        )
    axes.set_ylabel("loss a token")
    axes.legend(frameon=False)


def _page(log: Log, settings: Mapping[str, Any]) -> str:
    drawings = "".join(
        f'<div class="{name}">{_inline(_drawn(log, colours, "svg"))}</div>'
        for name, colours in (("light", _LIGHT), ("dark", _DARK))
    )
    facts = {**_summary(log), **settings}
    rows = "".join(
        f"<tr><td>{escape(key)}</td><td><code>{escape(_text(value))}</code></td></tr>"
        for key, value in facts.items()
    )
    title = f"Fine-tuning of {settings.get('base', 'a model')}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1>{drawings}<table>{rows}</table></body></html>\n"
    )


def _summary(log: Log) -> dict[str, Any]:
    steps = [entry for entry in log if "loss" in entry]
    held_out = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    found = {
        "steps": len(steps),
        "last loss, mean of the last steps": smoothed([e["loss"] for e in steps])[-1],
        "tokens": sum(entry["tokens"] for entry in steps),
        "tokens/s, median": float(np.median([entry["tokens_per_s"] for entry in steps])),
    }
    return found | ({"loss of held-out rows": held_out[-1]} if held_out else {})


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _inline(svg: bytes) -> str:
    """A drawing without its XML head, as HTML takes it."""
    text = svg.decode("utf-8")
    return text[text.index("<svg") :]
