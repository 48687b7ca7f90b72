"""A trace as one HTML page with plots, without scripts and without anything from outside."""

from __future__ import annotations

import base64
import html
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aperto.trace.record import Trace

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;
color:#1c2430;background:#fff}
h1{font-size:1.6rem}h2{margin-top:2.4rem;border-bottom:1px solid #d5dae2}
p.note{color:#56606f;max-width:60rem}.row{display:flex;flex-wrap:wrap;gap:1.4rem}
figure{margin:0}figcaption{font-size:.8rem;color:#56606f}svg{display:block}
img{display:block;width:260px;height:260px;image-rendering:pixelated;border:1px solid #d5dae2}
svg text{font:9px ui-monospace,monospace;fill:#56606f}
.tokens{font:13px/1.9 ui-monospace,monospace}.tokens span{padding:1px 0;white-space:pre-wrap;
border-bottom:2px solid transparent}.tokens .said{border-color:#2563eb}
.scroll{overflow-x:auto}table{border-collapse:collapse;font:11px ui-monospace,monospace}
td,th{padding:2px 5px;white-space:pre;border:1px solid #e6e9ee}th{text-align:right;color:#56606f;
font-weight:normal}
"""
_MOST_LENS = 40
_SIDE = 260
_DARK = (15, 61, 107)


def write_page(trace: Trace, path: Path, title: str) -> None:
    """Write the page. Raises OSError where it cannot be written."""
    sections = (
        _tokens(trace),
        _routing(trace),
        _together(trace),
        _attention(trace),
        _sinks(trace),
        _lens(trace),
    )
    heading = html.escape(title)
    said = len(trace.ids) - trace.num_prompt
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{heading}</title>'
        f"<style>{_STYLE}</style><h1>{heading}</h1><p>{len(trace.ids)} tokens, {said} of them said "
        f"by the model; {len(trace.layers)} layers.</p>{''.join(sections)}</html>\n",
        encoding="utf-8",
    )


def _tokens(trace: Trace) -> str:
    most = max(float(trace.entropies.max()), 1e-6)
    spans = []
    # The entropy after the token before is what there was to decide about this one.
    before = np.concatenate([[0.0], trace.entropies[:-1]])
    for index, text in enumerate(trace.texts):
        hint = f"{trace.classes[index]}, entropy {before[index]:.2f}"
        if index:
            hint += f", probability {np.exp(trace.logprobs[index]):.3f}"
        said = ' class="said"' if index >= trace.num_prompt else ""
        shade = f"background:rgba(234,88,12,{0.6 * before[index] / most:.2f})"
        spans.append(
            f'<span{said} style="{shade}" title="{html.escape(hint)}">{html.escape(text)}</span>'
        )
    return (
        '<h2>Tokens and their entropy</h2><p class="note">The darker, the less certain the model '
        f"was before the token: up to {most:.2f} nats. Underlined tokens are its own. Hover for "
        f'class and probability.</p><p class="tokens">{"".join(spans)}</p>'
    )


def _routing(trace: Trace) -> str:
    figures = []
    for layer in range(len(trace.layers)):
        shares = trace.routing(layer)
        grid = np.stack(list(shares.values()))
        figures.append(_heat_map(grid, f"layer {layer}", list(shares), cell=(12, 14)))
    return _section(
        "Experts by class of token",
        "Share of the choices of each class (rows) that each expert (columns) got. The darkest "
        "cell of each map is its largest.",
        figures,
    )


def _together(trace: Trace) -> str:
    figures = []
    for layer in range(len(trace.layers)):
        counts = trace.together(layer).astype(float)
        np.fill_diagonal(counts, 0)
        side = max(4, min(16, _SIDE // len(counts)))
        figures.append(_heat_map(counts, f"layer {layer}", None, cell=(side, side)))
    return _section(
        "Experts chosen together", "How often two experts were chosen for one token.", figures
    )


def _attention(trace: Trace) -> str:
    figures = [
        _image(_pooled(layer.attention), f"layer {index}, {_window(trace, index)}")
        for index, layer in enumerate(trace.layers)
    ]
    return _section(
        "Attention",
        "Who (rows, from the top) looks at whom (columns), mean of the heads, without the sink. "
        "Square roots of the weights are shown, so that faint ones can be seen.",
        figures,
    )


def _window(trace: Trace, layer: int) -> str:
    window = trace.config.layers[layer].window
    return f"window {window}" if window else "whole context"


def _pooled(attention: NDArray[np.float32]) -> NDArray[Any]:
    """Square roots, of the largest in each square where there are many tokens."""
    step = -(-len(attention) // _SIDE)
    size = -(-len(attention) // step) * step
    padded = np.zeros((size, size), np.float32)
    padded[: len(attention), : len(attention)] = attention
    pooled = padded.reshape(size // step, step, size // step, step).max(axis=(1, 3))
    return np.asarray(np.sqrt(pooled))


def _sinks(trace: Trace) -> str:
    grid = np.stack([layer.sinks.mean(axis=0) for layer in trace.layers])
    names = [f"layer {index}" for index in range(len(trace.layers))]
    figure = _heat_map(grid, "mean over all tokens", names, cell=(14, 14), top=1.0)
    return _section(
        "Sinks",
        "What each head (columns) gives to its sink, that is, to nothing; black is all of it.",
        [figure],
    )


def _lens(trace: Trace) -> str:
    first = max(0, min(trace.num_prompt - 1, len(trace.ids) - _MOST_LENS))
    shown = range(first, min(first + _MOST_LENS, len(trace.ids)))
    head = "".join(f"<th>{html.escape(_visible(trace.texts[i]))}</th>" for i in shown)
    rows = [f"<tr><th>after</th>{head}</tr>"]
    for index in reversed(range(len(trace.layers))):
        layer = trace.layers[index]
        cells = "".join(
            f'<td style="background:rgba(37,99,235,{0.7 * layer.lens_probs[i]:.2f})" '
            f'title="{layer.lens_probs[i]:.3f}">'
            f"{html.escape(_visible(trace.lens_texts[index][i]))}</td>"
            for i in shown
        )
        rows.append(f"<tr><th>layer {index}</th>{cells}</tr>")
    return (
        '<h2>Logit lens</h2><p class="note">The likeliest next token, were a layer the last one; '
        "the darker, the more probable. The top row of layers is what the model says.</p>"
        f'<div class="scroll"><table>{"".join(rows)}</table></div>'
    )


def _visible(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·")


def _section(title: str, note: str, figures: Sequence[str]) -> str:
    return f'<h2>{title}</h2><p class="note">{note}</p><div class="row">{"".join(figures)}</div>'


def _heat_map(
    grid: NDArray[Any],
    caption: str,
    names: Sequence[str] | None,
    cell: tuple[int, int],
    top: float | None = None,
) -> str:
    """An SVG of a grid; `top` is what is darkest, the grid's largest value if None."""
    top = float(grid.max()) if top is None else top
    width, height = cell
    left = 0 if names is None else 6 * max(map(len, names)) + 6
    parts = [
        f'<text x="0" y="{row * height + height - 3}">{html.escape(name)}</text>'
        for row, name in enumerate(names or ())
    ]
    for row, column in np.argwhere(grid > 0.004 * top):
        value = float(grid[row, column])
        parts.append(
            f'<rect x="{left + column * width}" y="{row * height}" width="{width}" '
            f'height="{height}" fill="#0f3d6b" fill-opacity="{min(1.0, value / top):.2f}"/>'
        )
    size = (left + grid.shape[1] * width, grid.shape[0] * height)
    frame = (
        f'<rect x="{left}" y="0" width="{size[0] - left}" height="{size[1]}" fill="none" '
        'stroke="#d5dae2"/>'
    )
    return (
        f'<figure><svg width="{size[0]}" height="{size[1]}" role="img">{"".join(parts)}{frame}'
        f"</svg><figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _image(grid: NDArray[Any], caption: str) -> str:
    """A square grid as an image: where cells are many, far smaller than an SVG of it."""
    shade = (grid / max(float(grid.max()), 1e-6))[..., None]
    pixels = np.rint(255 + shade * (np.array(_DARK) - 255)).astype(np.uint8)
    height, width = grid.shape
    lines = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    text = base64.b64encode(png).decode()
    name = html.escape(caption)
    return (
        f'<figure><img alt="{name}" src="data:image/png;base64,{text}">'
        f"<figcaption>{name}</figcaption></figure>"
    )
