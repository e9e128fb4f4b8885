"""What the benchmarks of real-sized blocks predict from, and the picture that they draw."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from bench_growth import decode_bytes, operations, slope
from log_chart import Line, log_chart
from real_layers import RealLayers, rows_of


@pytest.fixture(scope="module")
def layers() -> RealLayers:
    return RealLayers("M*")


def test_what_a_token_reads_and_computes(layers: RealLayers) -> None:
    """By hand, from the published sizes; biases, norms and the convolution are below 1 %."""
    in_proj, out_proj, state = 10304 * 2688, 2688 * 4096, 64 * 64 * 128 * 4
    assert decode_bytes(layers, "M", 9) == pytest.approx(in_proj + out_proj + state, rel=0.01)
    assert operations(layers, "M", 9) == 2 * (in_proj + out_proj)
    qkv, o = (32 + 2 + 2) * 128 * 2688, 2688 * 32 * 128
    cache = 1000 * 2 * 2 * 128 * 4
    assert decode_bytes(layers, "*", 1000) == pytest.approx(2 * qkv + o + cache, rel=0.01)
    assert operations(layers, "*", 1000) == 2 * (qkv + o) + 4 * 1000 * 32 * 128


def test_activations_stay_near_one(layers: RealLayers) -> None:
    rows = rows_of(np.random.default_rng(0), 3, layers.spec)
    for layer in range(2):
        after = layers.run(layer, rows)
        assert 0.1 < np.std(after - rows) < 10


def test_slope() -> None:
    assert slope([(x, 3 + 0.5 * x) for x in (1, 2, 4, 8)]) == pytest.approx(0.5)


def test_the_picture_shows_each_point_where_it_belongs() -> None:
    line = Line("a < b", [(1, 1.0), (2, 10.0), (4, 100.0)], [(1, 1.0), (4, 1.0)])
    root = ElementTree.fromstring(log_chart("t", "x", "y", [line]))
    space = "{http://www.w3.org/2000/svg}"
    centres = [
        (float(c.get("cx", "")), float(c.get("cy", ""))) for c in root.iter(f"{space}circle")
    ]
    (x0, y0), (x1, y1), (x2, y2) = centres
    assert (x1 - x0, y1 - y0) == pytest.approx((x2 - x1, y2 - y1), abs=0.11)
    measured, predicted = (p.get("points", "") for p in root.iter(f"{space}polyline"))
    assert [tuple(map(float, p.split(","))) for p in measured.split()] == centres
    assert predicted.split() == [f"{x0:.1f},{y0:.1f}", f"{x2:.1f},{y0:.1f}"]
    assert "a < b" in "".join(root.itertext())
