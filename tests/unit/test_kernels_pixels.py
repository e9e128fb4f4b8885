"""The image kernel against float64, at sizes that no camera has, on both of its paths."""

from __future__ import annotations

import numpy as np
import pytest
from features import patches_of, resized
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import _kernels
from edge.features.pixels import bicubic_axis
from edge.types import Float32, UInt8

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
GAIN = (1 / (255 * STD)).astype(np.float32)
OFFSET = (-MEAN / STD).astype(np.float32)
# Measured over 2000 random sizes: 2.4e-6. The largest normalised values are near 4.
TOLERANCE = 5e-6


def random_pixels(height: int, width: int, seed: int = 0) -> UInt8:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def patches(
    pixels: UInt8, rows: int, columns: int, side: int, *, portable: bool, n_threads: int = 1
) -> Float32:
    out = np.full((rows * columns, 3 * side * side), np.nan, np.float32)
    across, down = (
        bicubic_axis(n, m * side) for n, m in ((pixels.shape[1], columns), (len(pixels), rows))
    )
    _kernels.patches(pixels, *across, *down, GAIN, OFFSET, out, n_threads, portable)
    return out


def check(pixels: UInt8, rows: int, columns: int, side: int) -> None:
    picture = resized(pixels, rows * side, columns * side)
    expected = patches_of((picture / 255 - MEAN) / STD, side)
    plain = patches(pixels, rows, columns, side, portable=True)
    np.testing.assert_allclose(plain, expected, rtol=0, atol=TOLERANCE)
    # One order of operations and no contraction: the same bits.
    np.testing.assert_array_equal(patches(pixels, rows, columns, side, portable=False), plain)


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        (1, 1, 1, 1),
        (1, 1, 2, 4),
        (1, 300, 4, 2),
        (300, 1, 2, 4),
        (2, 3, 2, 2),
        (7, 9, 2, 2),
        (8, 1599, 2, 24),  # extreme aspect ratios: more than 100 taps
        (1600, 8, 24, 2),
        (3000, 8, 2, 2),
        (31, 33, 2, 2),  # down and up by a pixel
        (33, 31, 2, 2),
        (32, 32, 2, 2),  # nothing to resize
        (32, 77, 2, 2),  # one axis only
        (77, 32, 2, 2),
        (64, 64, 2, 2),
        (120, 200, 18, 32),
        (479, 641, 8, 12),
    ],
)
def test_sizes(height: int, width: int, rows: int, columns: int) -> None:
    check(random_pixels(height, width), rows, columns, 16)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 150), st.integers(1, 150), st.integers(1, 6), st.integers(1, 6),
    st.sampled_from([1, 2, 3, 8, 14, 16, 17, 32]), st.integers(0, 99),
)  # fmt: skip
def test_any_size(height: int, width: int, rows: int, columns: int, side: int, seed: int) -> None:
    check(random_pixels(height, width, seed), rows, columns, side)


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("portable", [False, True])
def test_black_and_white_stay_flat(value: int, portable: bool) -> None:
    flat = np.full((45, 67, 3), value, np.uint8)
    got = patches(flat, 4, 2, 16, portable=portable).reshape(8, 3, 256)
    expected = (value / 255 - MEAN) / STD
    np.testing.assert_allclose(got, np.tile(expected[:, None], (8, 1, 256)), rtol=0, atol=2e-6)


def test_threads_change_nothing() -> None:
    pixels = random_pixels(211, 173)
    one = patches(pixels, 22, 6, 16, portable=False)
    for n_threads in (0, 2, 3, 64):
        np.testing.assert_array_equal(
            patches(pixels, 22, 6, 16, portable=False, n_threads=n_threads), one
        )


def test_rows_may_lie_apart() -> None:
    large = random_pixels(120, 160)
    for view in (large[10:90, 20:131], large[::2, 5:70], large[::-1], large[::-3, :50]):
        np.testing.assert_array_equal(
            patches(view, 2, 4, 16, portable=False),
            patches(np.ascontiguousarray(view), 2, 4, 16, portable=False),
        )


def test_only_its_patches_are_written() -> None:
    tubelets = np.full((6, 2, 768), 7, np.float32)
    pixels = random_pixels(50, 40)
    axes = (*bicubic_axis(40, 48), *bicubic_axis(50, 32))
    _kernels.patches(pixels, *axes, GAIN, OFFSET, tubelets[:, 1], 1)
    np.testing.assert_array_equal(tubelets[:, 0], 7)
    np.testing.assert_array_equal(tubelets[:, 1], patches(pixels, 2, 3, 16, portable=False))


def test_what_does_not_belong_together_is_refused() -> None:
    pixels, out = random_pixels(32, 32), np.empty((4, 768), np.float32)
    first, weights = bicubic_axis(32, 32)
    axes = (first, weights, first, weights)

    def refused(message: str, *arguments: object) -> None:
        with pytest.raises(ValueError, match=message):
            _kernels.patches(*arguments, 1)  # type: ignore[call-overload]

    refused("whole rows", pixels[:, ::2], *axes, GAIN, OFFSET, out)
    refused("whole rows", pixels[:, :, ::-1], *axes, GAIN, OFFSET, out)
    refused("leave the frame", pixels, first + 1, weights, first, weights, GAIN, OFFSET, out)
    refused("leave the frame", pixels, first - 1, weights, first, weights, GAIN, OFFSET, out)
    refused("descend", pixels, first[::-1].copy(), weights, first, weights, GAIN, OFFSET, out)
    refused("more taps", pixels[:, :16], first, np.ones((32, 17), np.float32), *axes[2:],
            GAIN, OFFSET, out)  # fmt: skip
    refused("not one row a patch", pixels, *axes, GAIN, OFFSET, out[:3])
    refused("3 \\* side", pixels, *axes, GAIN, OFFSET, out[:, :767])
    refused("no multiple", pixels, *axes, GAIN, OFFSET, np.empty((4, 675), np.float32))
    refused("gain or offset", pixels, *axes, GAIN[:2], OFFSET, out)
