"""The pictures: what is drawn has the length, the place and the name of its figure."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from build_engine.chart import bars, curves

SHARES = {
    "ours": {"red": 0.5, "green & blue": 1.0},
    "theirs": {"red": 0.25, "white": 0.0},
}
LINES = {"loss": [(0.0, 8.0), (50.0, 4.0), (100.0, 2.0)], "kl": [(25.0, 1.0), (75.0, 0.5)]}


def elements(picture, kind):
    """Of one kind, without the background; numbers as such."""
    root = ET.fromstring(picture)
    found = root.findall(f"{{http://www.w3.org/2000/svg}}{kind}")
    return found[1:] if kind == "rect" else found


def number(element, *names):
    return tuple(float(element.get(name)) for name in names)


def texts(picture):
    return {one.text: one for one in elements(picture, "text")}


def drawn(picture):
    """The bars, apart from the legend's squares."""
    return [r for r in elements(picture, "rect") if float(r.get("height")) != 12]


def size(picture):
    root = ET.fromstring(picture)
    background = root[0]
    assert number(root, "width", "height") == number(background, "width", "height")
    assert background.get("fill") == "white"
    return number(root, "width", "height")


def test_a_bar_is_as_long_as_its_share():
    picture = bars("Shares", SHARES)
    full = 720 - 150 - 60  # room for names on the left, for the figure on the right
    assert [number(bar, "x", "width") for bar in drawn(picture)] == [
        (150, full / 2), (150, full / 4), (150, full), (150, 0)
    ]  # fmt: skip
    ours, theirs = (drawn(picture)[i].get("fill") for i in (0, 1))
    assert [bar.get("fill") for bar in drawn(picture)] == [ours, theirs, ours, theirs]
    assert ours != theirs


def test_bars_of_a_row_stand_under_each_other_beside_its_name():
    picture = bars("Shares", SHARES)
    red_ours, red_theirs, green, white = (number(b, "y", "height") for b in drawn(picture))
    assert {height for _, height in (red_ours, red_theirs, green, white)} == {8}
    assert red_theirs[0] == red_ours[0] + 8
    assert green[0] == red_ours[0] + 22
    assert white[0] == red_theirs[0] + 44
    said = texts(picture)
    for name, top in (("red", red_ours[0]), ("green & blue", green[0]), ("white", white[0] - 8)):
        x, y, font = number(said[name], "x", "y", "font-size")
        assert (x, font, said[name].get("text-anchor")) == (142, 12, "end")
        assert top < y < top + 16  # beside its bars
    for figure, bar in (("0.50", 0), ("0.25", 1), ("1.00", 2), ("0.00", 3)):
        x, y, height, width = number(drawn(picture)[bar], "x", "y", "height", "width")
        assert number(said[figure], "x", "y") == (x + width + 4, y + height)


@pytest.mark.parametrize("n_series", [1, 2, 9])
def test_every_series_has_a_name_in_its_colour_below_the_bars(n_series):
    shares = {f"series {k}": {"a": 0.1, "b": 0.2} for k in range(n_series)}
    picture = bars("Many", shares)
    squares = [r for r in elements(picture, "rect") if float(r.get("height")) == 12]
    fills = [square.get("fill") for square in squares]
    assert fills == [bar.get("fill") for bar in drawn(picture)[:n_series]]
    assert len(set(fills)) == min(n_series, 8)
    width, height = size(picture)
    assert (width, height) == (720, 40 + 2 * 22 + 20 * n_series)
    said = texts(picture)
    bottoms = [sum(number(bar, "y", "height")) for bar in drawn(picture)]
    for k, square in enumerate(squares):
        x, y, side = number(square, "x", "y", "width")
        assert (x, y, side) == (150, 84 + 20 * k, 12)
        assert number(said[f"series {k}"], "x", "y", "font-size") == (168, y + 11, 12)
        assert max(bottoms) < y
        assert y + side < height
    assert number(said["Many"], "x", "y", "font-size") == (10, 20, 15)
    assert said["Many"].get("text-anchor") == "start"


def points(picture):
    return [
        [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
        for line in elements(picture, "polyline")
    ]


def test_a_curve_goes_through_its_points():
    """The largest of all is at the top, zero at the bottom, the last step at the right."""
    loss, kl = points(curves("Training", LINES))
    assert loss == [(50, 40), (50 + 660 / 2, 165), (710, 227.5)]
    assert kl == [(50 + 660 / 4, pytest.approx(258.75, abs=0.06)), (545, pytest.approx(274.4))]


def test_a_curves_scale_is_told():
    picture = curves("Training", LINES)
    lines = elements(picture, "line")
    assert [number(line, "x1", "x2") for line in lines] == [(50, 710)] * 5
    heights = [number(line, "y1", "y2") for line in lines]
    assert heights == [(y, y) for y in (290, 227.5, 165, 102.5, 40)]
    said = texts(picture)
    for figure, (y, _) in zip(("0.00", "2.00", "4.00", "6.00", "8.00"), heights, strict=True):
        assert number(said[figure], "x", "y", "font-size") == (44, y + 4, 10)
        assert said[figure].get("text-anchor") == "end"
    assert number(said["step 100"], "x", "y", "font-size") == (710, 305, 10)
    assert said["step 100"].get("text-anchor") == "end"
    assert number(said["Training"], "x", "y", "font-size") == (10, 20, 15)
    strokes = [line.get("stroke") for line in elements(picture, "polyline")]
    squares = elements(picture, "rect")
    assert [square.get("fill") for square in squares] == strokes
    assert [number(square, "y")[0] for square in squares] == [312, 332]
    assert {line.get("fill") for line in elements(picture, "polyline")} == {"none"}
    assert size(picture) == (720, 360)


@pytest.mark.parametrize("series", [{}, {"empty": []}, {"zero": [(0.0, 0.0)]}])
def test_nothing_is_drawn_without_a_division_by_zero(series):
    picture = curves("Nothing", series)
    assert "step 1" in texts(picture) or series == {"zero": [(0.0, 0.0)]}
    assert "1.00" in texts(picture)
    assert [line for line in points(picture) if line] == [
        [(50, 290)] for line in series.values() if line
    ]


def test_more_curves_than_colours_begin_again():
    picture = curves("Many", {f"{k}": [(1.0, k)] for k in range(9)})
    strokes = [line.get("stroke") for line in elements(picture, "polyline")]
    assert strokes[8] == strokes[0]
    assert len(set(strokes)) == 8
    assert all(re.fullmatch("#[0-9a-f]{6}", stroke) for stroke in strokes)
