"""
Bars of ratios as SVG: readable on a light and on a dark page, without scripts and foreign fonts.

The colours follow ``prefers-color-scheme`` of whoever looks at the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks.ratios import Spread
from benchmarks.tables import Row

WIDTH, LABELS, FIGURES, BAR, TOP = 800, 320, 150, 24, 44
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 14px }
.figure { font-variant-numeric: tabular-nums }
.bar { fill: #2f81f7 }
.spread, .limit { stroke: #24292f; stroke-width: 1.5; fill: none }
.limit { stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .spread, .limit { stroke: #e6edf3 }
}
"""


def labelled(rows: Sequence[Row], beside: str) -> list[tuple[str, Spread]]:
    """Return the ratios to ``beside`` with what they are of; "…" is replaced by its words."""
    found, last = [], ""
    for row in rows:
        if row.what.startswith("… "):
            label = f"{last} {row.what.removeprefix('… ')}"
        else:
            label = last = row.what
        if row.spread is not None and row.beside.startswith(f"{beside}:"):
            found.append((label, row.spread))
    return found


def bars(title: str, rows: Sequence[Row], *, beside: str, limit: str) -> str:
    """
    Return bars of the rows' ratios to ``beside``: a median, and a line from quartile to quartile.

    A broken line at 1 has the name ``limit``.
    """
    shown = labelled(rows, beside)
    widest = max([1.0, *(each.high for _, each in shown)])
    room = WIDTH - LABELS - FIGURES

    def x(ratio: float) -> str:
        return f"{LABELS + room * ratio / widest:.1f}"

    height = TOP + BAR * len(shown) + 30
    bottom = height - 26
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'width="{WIDTH}" height="{height}" aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="0" y="18">{escape(title)}</text>',
    ]
    for number, (label, each) in enumerate(shown):
        top = TOP + BAR * number
        middle = top + 8
        parts += [
            f'<text x="{LABELS - 10}" y="{top + 13}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="bar" x="{LABELS}" y="{top}" height="16" '
            f'width="{room * each.median / widest:.1f}"/>',
            f'<path class="spread" d="M{x(each.low)} {middle}H{x(each.high)}"/>',
            f'<text class="figure" x="{WIDTH - FIGURES + 12}" y="{top + 13}">{each}</text>',
        ]
    parts += [
        f'<path class="limit" d="M{x(1)} {TOP - 8}V{bottom}"/>',
        f'<text x="{x(1)}" y="{bottom + 18}" text-anchor="middle">1: {escape(limit)}</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"
