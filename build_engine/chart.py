"""Two pictures as SVG, without a library: bars by task, and curves by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

WIDTH, ROW, LEFT = 720, 22, 150
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")


def bars(title: str, shares: Mapping[str, Mapping[str, float]]) -> str:
    """One bar a row and series, each 0..1.

    Args:
        shares: series -> row -> share.
    """
    rows = list(dict.fromkeys(row for series in shares.values() for row in series))
    height = 40 + ROW * len(rows) + 20 * len(shares)
    out = [_text(10, 20, title, 15)]
    thickness = (ROW - 6) / len(shares)
    for i, row in enumerate(rows):
        y = 34 + ROW * i
        out.append(_text(LEFT - 8, y + 13, row, 12, "end"))
        for k, series in enumerate(shares.values()):
            if row in series:
                length = series[row] * (WIDTH - LEFT - 60)
                at = y + k * thickness
                out.append(
                    f'<rect x="{LEFT}" y="{at:.1f}" width="{length:.1f}" '
                    f'height="{thickness:.1f}" fill="{COLORS[k % len(COLORS)]}"/>'
                )
                out.append(_text(LEFT + length + 4, at + thickness, f"{series[row]:.2f}", 10))
    out += _legend(shares, 40 + ROW * len(rows))
    return _svg(height, out)


def curves(title: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Lines over a common x.

    Args:
        series: name -> points (x, y) in order of x.
    """
    points = [point for line in series.values() for point in line]
    top = max((y for _, y in points), default=1.0) or 1.0
    right = max((x for x, _ in points), default=1.0) or 1.0
    height = 320 + 20 * len(series)
    out = [_text(10, 20, title, 15)]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = 290 - 250 * share
        out.append(f'<line x1="50" x2="{WIDTH - 10}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        out.append(_text(44, y + 4, f"{top * share:.2f}", 10, "end"))
    out.append(_text(WIDTH - 10, 305, f"step {right:.0f}", 10, "end"))
    for k, line in enumerate(series.values()):
        path = " ".join(
            f"{50 + (WIDTH - 60) * x / right:.1f},{290 - 250 * y / top:.1f}" for x, y in line
        )
        color = COLORS[k % len(COLORS)]
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}"/>')
    out += _legend(series, 312)
    return _svg(height, out)


def _legend(series: Mapping[str, object], y: float) -> list[str]:
    out = []
    for k, name in enumerate(series):
        at, color = y + 20 * k, COLORS[k % len(COLORS)]
        out.append(f'<rect x="{LEFT}" y="{at}" width="12" height="12" fill="{color}"/>')
        out.append(_text(LEFT + 18, at + 11, name, 12))
    return out


def _text(x: float, y: float, text: str, size: int, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-family="sans-serif" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )


def _svg(height: float, content: list[str]) -> str:
    size = f'width="{WIDTH}" height="{height:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
        f'<rect {size} fill="white"/>{"".join(content)}</svg>\n'
    )
