"""The GPU's frame and pruning kernels in Triton's interpreter, against the CPU's."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import numpy as np
import pytest
from gpu_interpreter import interpreted, launch, require_triton
from numpy.typing import NDArray

from edge import _kernels
from edge.features import evs
from edge.features.pixels import bicubic_axis
from edge.types import Float32, UInt8
from gpu_kernels.launch import KERNELS

GAIN = np.float32([0.0146, 0.015, 0.0142])
OFFSET = np.float32([-1.79, -1.75, -1.48])
FLOAT32_ERROR = 1e-5
"""Of both kernels together, before the GPU's rounding to float16."""


@cache
def modules() -> dict[str, ModuleType]:
    require_triton()
    return interpreted()


def cpu_patches(pixels: UInt8, rows: int, columns: int, side: int) -> Float32:
    out = np.empty((rows * columns, 3 * side * side), np.float32)
    across = bicubic_axis(pixels.shape[1], columns * side)
    down = bicubic_axis(len(pixels), rows * side)
    _kernels.patches(pixels, *across, *down, GAIN, OFFSET, out, 1)
    return out


def gpu_patches(
    planes: tuple[UInt8, ...], rows: int, columns: int, side: int, patches: NDArray[np.float16]
) -> None:
    """Of RGB [h, w, 3], or of NV12's luma [h, w] and chroma [h / 2, w / 2, 2]."""
    height, width = planes[0].shape[:2]
    n_columns, n_rows = columns * side, rows * side
    first, weights = bicubic_axis(width, n_columns)
    resized = np.full((3, height, n_columns), np.nan, np.float32)
    arguments = {
        "pixels": planes[0], "first": first, "weights": weights,
        "row_bytes": planes[0].strides[0], "n_rows": height, "n_columns": n_columns,
        "n_taps": weights.shape[1], "planes": resized,
    }  # fmt: skip
    if len(planes) == 2:
        arguments |= {"chroma": planes[1], "chroma_row_bytes": planes[1].strides[0]}
    launch(modules(), "resize_width_nv12" if len(planes) == 2 else "resize_width_rgb", arguments)
    first, weights = bicubic_axis(height, n_rows)
    arguments = {
        "planes": resized, "first": first, "weights": weights, "gain": GAIN, "offset": OFFSET,
        "n_rows": height, "n_columns": n_columns, "n_taps": weights.shape[1], "side": side,
        "stride": patches.strides[0] // 2, "patches": patches,
    }  # fmt: skip
    launch(modules(), "patchify", arguments, n_rows_out=n_rows)


def assert_equal_within_float16(got: NDArray[np.float16], expected: Float32) -> None:
    bound = 2.0**-11 * (np.abs(expected) + FLOAT32_ERROR) + 2.0**-25 + FLOAT32_ERROR
    np.testing.assert_array_less(np.abs(got.astype(np.float64) - expected), bound)


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns", "side"),
    [(23, 31, 2, 3, 4), (8, 12, 2, 3, 4), (5, 300, 1, 2, 8), (7, 9, 1, 9, 16)],
)
def test_rgb(height: int, width: int, rows: int, columns: int, side: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    got = np.full((rows * columns, 3 * side * side), np.nan, np.float16)
    gpu_patches((pixels,), rows, columns, side, got)
    assert_equal_within_float16(got, cpu_patches(pixels, rows, columns, side))


def test_a_part_of_a_frame_into_a_part_of_a_tubelet() -> None:
    large = np.random.default_rng(1).integers(0, 256, (20, 40, 3), np.uint8)
    tubelet = np.full((4, 2, 48), 7, np.float16)
    gpu_patches((large[3:15, 5:30],), 2, 2, 4, tubelet[:, 1])
    expected = cpu_patches(np.ascontiguousarray(large[3:15, 5:30]), 2, 2, 4)
    assert_equal_within_float16(tubelet[:, 1], expected)
    np.testing.assert_array_equal(tubelet[:, 0], 7)


def rgb_of(luma: UInt8, chroma: UInt8) -> UInt8:
    """BT.601's published factors in float64, rounded as 20-bit integers round them."""
    y = np.maximum(luma.astype(np.int64) - 16, 0)
    u, v = (chroma.astype(np.int64).repeat(2, 0).repeat(2, 1) - 128).transpose(2, 0, 1)
    fy, fvr, fvg, fug, fub = (round(f * 2**20) for f in (1.164, 1.596, 0.813, 0.391, 2.018))
    rgb = np.stack([fy * y + fvr * v, fy * y - fvg * v - fug * u, fy * y + fub * u], -1)
    return np.clip((rgb + 2**19) // 2**20, 0, 255).astype(np.uint8)


def test_nv12() -> None:
    rng = np.random.default_rng(2)
    luma = rng.integers(0, 256, (12, 18), np.uint8)
    chroma = rng.integers(0, 256, (6, 9, 2), np.uint8)
    got = np.full((6, 48), np.nan, np.float16)
    gpu_patches((luma, chroma), 2, 3, 4, got)
    assert_equal_within_float16(got, cpu_patches(rgb_of(luma, chroma), 2, 3, 4))


def dissimilarity(tubelet: NDArray[np.float16], before: NDArray[np.float16]) -> Float32:
    places, n = tubelet.shape
    result = np.full(places, np.nan, np.float32)
    arguments = {"tubelet": tubelet, "before": before, "n": n, "result": result}
    launch(modules(), "dissimilarity", arguments, n_places=places)
    return result


def check_dissimilarity(places: int, n: int) -> None:
    rng = np.random.default_rng(n)
    before = rng.standard_normal((places, n)).astype(np.float16)
    nearly = (before + rng.standard_normal((places, n)) * 0.05).astype(np.float16)
    block = KERNELS["dissimilarity"].constants["BLOCK"]
    roundings = -(-n // block) + np.log2(block) + 2
    bound = (2 * roundings + 5) * 2.0**-24
    for other in (nearly, -before, rng.standard_normal((places, n)).astype(np.float16)):
        expected = evs._dissimilarity(other.astype(np.float32), before.astype(np.float32))
        np.testing.assert_allclose(dissimilarity(other, before), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("n", [16, 1024, 2688])
def test_dissimilarity(n: int) -> None:
    check_dissimilarity(6, n)


def test_a_still_picture_gives_exact_zeros_and_nothing_gives_one() -> None:
    rng = np.random.default_rng(3)
    scales = 10.0 ** rng.uniform(-3, 3, (40, 1))
    tubelet = (rng.standard_normal((40, 48)) * scales).astype(np.float16)
    np.testing.assert_array_equal(dissimilarity(tubelet, tubelet), 0)
    nothing = np.zeros((2, 48), np.float16)
    np.testing.assert_array_equal(dissimilarity(nothing, nothing), 1)  # as evs.py has it
    np.testing.assert_array_equal(dissimilarity(nothing, tubelet[:2]), 1)
