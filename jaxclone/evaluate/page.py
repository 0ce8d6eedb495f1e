"""How the report looks: the page, its style, tables and line charts, as HTML and SVG.

The page carries everything inside it, and its content security policy forbids fetching anything
else, so that it can be opened years later or sent to somebody.
"""

from __future__ import annotations

import base64
import math
import string
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float


def page(title: str, notes: str, sections: Sequence[tuple[str, str]]) -> str:
    """A whole document.

    Args:
        title: text of the heading.
        notes: text under it.
        sections: heading and HTML of each; one without content is left out.
    """
    return _PAGE.substitute(
        title=escape(title),
        notes=escape(notes),
        style=_STYLE,
        sections="\n".join(
            f"<section><h2>{heading}</h2>{body}</section>" for heading, body in sections if body
        ),
    )


def table(
    heading: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()
) -> str:
    """A table; the first column names its row, and the cells are HTML already."""

    def cell(tag: str, column: int, text: str, scope: str = "") -> str:
        kind = " class=number" if column in numbers else ""
        return f"<{tag}{scope}{kind}>{text}</{tag}>"

    head = "".join(cell("th", i, text, " scope=col") for i, text in enumerate(heading))
    body = "".join(
        "<tr>"
        + cell("th", 0, row[0], " scope=row")
        + "".join(cell("td", i, text) for i, text in enumerate(row[1:], start=1))
        + "</tr>"
        for row in rows
    )
    head, body = f"<thead><tr>{head}</tr></thead>", f"<tbody>{body}</tbody>"
    return f"<div class=scroll><table>{head}{body}</table></div>"


def data_url(kind: str, data: bytes) -> str:
    """A file as an address that contains it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def charts(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """A line chart of each curve, by name: (step, value) pairs, of which the finite are drawn."""
    figures = []
    for name, points in curves.items():
        finite = [(step, value) for step, value in points if math.isfinite(value)]
        if len(finite) > 1:
            last = f"{finite[-1][1]:.3g} after {finite[-1][0]} steps"
            figures.append(
                f"<figure><figcaption>{escape(name)} <small>{last}</small></figcaption>"
                f"{line_chart(name, np.array(finite, np.float64))}</figure>"
            )
    return f"<div class=charts>{''.join(figures)}</div>" if figures else ""


def line_chart(name: str, points: Float[np.ndarray, "n 2"]) -> str:
    """A line chart: every value thin, their running mean bold."""
    width, height, left, right, top, bottom = 360, 170, 44, 8, 8, 22
    shown = np.linspace(0, len(points) - 1, min(len(points), 400)).astype(int)
    points = points[shown]
    steps, values = points.T
    low, high = float(values.min()), float(values.max())
    high = high if high > low else low + 1
    x = left + (steps - steps[0]) / (steps[-1] - steps[0] or 1) * (width - left - right)

    def y(value: Any) -> Any:
        return top + (high - value) / (high - low) * (height - top - bottom)

    def line(heights: Float[np.ndarray, " n"], kind: str) -> str:
        pairs = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, heights, strict=True))
        return f'<polyline class="{kind}" points="{pairs}"/>'

    ticks = "".join(
        f'<line x1="{left}" x2="{width - right}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text x="{left - 5}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.3g}</text>'
        for v in np.linspace(low, high, 3)
    )
    ends = "".join(
        f'<text x="{position}" y="{height - 5}" text-anchor="{anchor}">{step:.0f}</text>'
        for position, anchor, step in [
            (left, "start", steps[0]),
            (width - right, "end", steps[-1]),
        ]
    )
    label = escape(f"{name}, from {values[0]:.3g} to {values[-1]:.3g}", quote=True)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{ticks}{ends}'
        f"{line(y(values), 'thin')}{line(y(_running_mean(values)), 'bold')}</svg>"
    )


def _running_mean(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The mean of each value's neighbours, up to a twentieth of the curve on either side."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    position = np.arange(len(values))
    before = np.minimum(position, len(values) // 20)
    after = np.minimum(before, len(values) - 1 - position)  # as narrow as before: keeps the start
    return (total[position + after + 1] - total[position - before]) / (before + after + 1)


_PAGE = string.Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header><h1>$title</h1><p>$notes</p></header>
<main>
$sections
</main>
</body>
</html>
""")

_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf8; --card: #fff; --ink: #1d1b20; --quiet: #625d69; --line: #e3dfe6;
  --accent: #7a2f8f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #141217; --card: #1e1b22; --ink: #ece8f0; --quiet: #a59dae; --line: #37313e;
    --accent: #d795ea;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 70rem; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 4rem;
  background: var(--paper); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif;
}
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; text-wrap: balance; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.25rem; }
h3 { margin: 0; font-size: 1.05rem; }
header p, section > p, figure p, article p, small, .tile span, dt { color: var(--quiet); }
header p, section > p { margin: .4rem 0 1rem; max-width: 46rem; }
article p { margin: .1rem 0 .75rem; }
article, .tile, .charts figure {
  background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
}
article { padding: 1rem; margin-bottom: 1rem; }
.tiles, .charts, .figures { display: grid; gap: 1rem; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); margin-bottom: 1.25rem; }
.tile { padding: .9rem 1rem; font-size: .9rem; }
.tile span { display: block; }
.tile strong { font-size: 1.8rem; line-height: 1.3; color: var(--accent); }
.figures { grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); }
.charts { grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); }
.charts figure { padding: .75rem; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .9rem; font-weight: 600; margin-bottom: .3rem; }
small { font-weight: 400; font-size: .85em; }
img { display: block; width: 100%; height: 8rem; border-radius: .35rem; }
audio { display: block; width: 100%; height: 2.4rem; margin-top: .4rem; }
.chips { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .75rem 0 0; padding: 0; }
.chips li { list-style: none; font-size: .85rem; color: var(--quiet); }
.chips b { color: var(--ink); font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; padding: .4rem 1.2rem .4rem 0; border-bottom: 1px solid var(--line); }
thead th { color: var(--quiet); font-weight: 500; }
tbody th { font-weight: 600; }
th small { display: block; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
tbody .number { white-space: nowrap; }
tbody td, thead th { vertical-align: top; }
.bar { height: .7rem; min-width: 2px; max-width: 45vw; border-radius: .2rem; }
.bar { background: var(--accent); }
svg { display: block; width: 100%; }
svg text { font-size: 11px; fill: var(--quiet); }
svg line { stroke: var(--line); }
polyline { fill: none; stroke: var(--accent); stroke-linejoin: round; }
.thin { opacity: .35; }
.bold { stroke-width: 2; }
dl { display: grid; gap: .6rem 1.2rem; }
dl { grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
dt { font-size: .85rem; }
summary { cursor: pointer; }
pre {
  padding: 1rem; overflow-x: auto; font-size: .8rem; line-height: 1.45;
  background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
}
"""
