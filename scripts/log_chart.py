"""One picture as SVG, without a library: measured and predicted lines on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP = 720, 300, 60, 20, 34
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")


@dataclass(frozen=True)
class Line:
    """A measured line, and the predicted one that is drawn dashed in its colour.

    Args:
        measured, predicted: points (x, y), all above zero, in order of x.
    """

    name: str
    measured: Sequence[tuple[float, float]]
    predicted: Sequence[tuple[float, float]]


def log_chart(title: str, x_name: str, y_name: str, lines: Sequence[Line]) -> str:
    """An SVG picture; x in steps of two, y in steps of ten."""
    points = [p for line in lines for p in (*line.measured, *line.predicted)]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    first, last = math.log2(min(xs)), math.log2(max(xs))

    def place(x: float, y: float) -> tuple[float, float]:
        right = (math.log2(x) - first) / (last - first)
        up = (math.log10(y) - low) / (high - low)
        return LEFT + right * (WIDTH - LEFT - RIGHT), TOP + HEIGHT - up * HEIGHT

    out = [_text(10, 20, title, 15)]
    for power in range(low, high + 1):
        y = place(min(xs), 10.0**power)[1]
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        out.append(_text(LEFT - 6, y + 4, f"{10.0**power:g}", 11, "end"))
    for x in sorted(set(xs)):
        out.append(_text(place(x, min(ys))[0], TOP + HEIGHT + 16, _short(x), 11, "middle"))
    out.append(_text(WIDTH - RIGHT, TOP + HEIGHT + 34, x_name, 12, "end"))
    out.append(_text(LEFT, TOP + HEIGHT + 34, f"{y_name}; dashed: predicted", 12))
    for i, line in enumerate(lines):
        color, y = COLORS[i % len(COLORS)], TOP + HEIGHT + 48 + 18 * i
        for kind, dashes in ((line.measured, ""), (line.predicted, ' stroke-dasharray="5 4"')):
            path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in kind)
            out.append(f'<polyline points="{path}" fill="none" stroke="{color}"{dashes}/>')
        for point in line.measured:
            x, top = place(*point)
            out.append(f'<circle cx="{x:.1f}" cy="{top:.1f}" r="2.5" fill="{color}"/>')
        out.append(f'<rect x="{LEFT}" y="{y}" width="12" height="12" fill="{color}"/>')
        out.append(_text(LEFT + 18, y + 11, line.name, 12))
    size = f'width="{WIDTH}" height="{TOP + HEIGHT + 56 + 18 * len(lines)}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><rect {size} fill="white"/>\n'
        + "\n".join(out)
        + "</svg>\n"
    )


def _short(x: float) -> str:
    return f"{x / 1024:g}k" if x >= 1024 else f"{x:g}"


def _text(x: float, y: float, text: str, size: int, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-family="sans-serif" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )
