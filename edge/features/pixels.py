"""Images and video frames become normalised patches, exactly as the vision encoder was trained.

Source: vLLM 0.33 `processors/nano_nemotron_vl.py` and `multimodal/video.py`, transformers 5.23.0
`models/nemotron_h_omni/image_processing_nemotron_h_omni.py`, and torch's anti-aliased bicubic
interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge import _kernels
from edge.errors import MediaError
from edge.model.spec import VisionSpec
from edge.types import Float32, UInt8

MIN_SIDE_PIXELS = 8
"""Half a patch: a smaller image would be nearly all interpolation."""
MAX_PIXELS = 1 << 26
"""Past this a decoded image alone takes 200 MB."""
MAX_ASPECT_RATIO = 200
"""A longer strip does not survive the patch budget: its short side becomes a single patch."""

_MERGE = 2  # pixel shuffle joins 2 x 2 patches into one token, so both sides of a grid are even
_IMAGE_OVERHEAD_TOKENS = 4  # what the published tiler sets aside beside text and images
_MAX_SHRINKING_ROUNDS = 10
_BICUBIC_A = np.float32(-0.5)

Grid = tuple[int, int]
"""Patches as (rows, columns)."""


def image_grid(
    width: int, height: int, budget_patches: int, min_patches: int, patch_size: int
) -> Grid:
    """Grid that an image is resized to: its own size, within the budget, both sides even.

    Args:
        width, height: of the image, pixels.
        budget_patches: most patches that the image may take.
        min_patches: a smaller image is enlarged to about so many patches.
        patch_size: side of a patch, pixels.
    Returns:
        (rows, columns) of patches.
    Raises:
        MediaError: the image is too small, too large or too long.
    Source: transformers `get_patch_grid_size`; `round` is to even on ties, as there.
    """
    check_size(width, height)
    rows = round(height / patch_size + 0.5)
    columns = round(width / patch_size + 0.5)
    shrink = min(math.sqrt(budget_patches / (rows * columns)), 1.0)
    rows, columns = math.floor(shrink * rows), math.floor(shrink * columns)
    if not min(rows, columns):  # a strip and a small budget: one token across, as many as fit along
        along = min(max(rows, columns), budget_patches // _MERGE)
        rows, columns = (along, _MERGE) if rows else (_MERGE, along)
    if budget_patches > min_patches and rows * columns < min_patches:
        grow = math.sqrt(min_patches / (rows * columns))
        rows, columns = math.ceil(grow * rows), math.ceil(grow * columns)
    rows = _even(rows, columns, budget_patches)
    return rows, _even(columns, rows, budget_patches)


def _even(side: int, other: int, budget_patches: int) -> int:
    """`side` made even: upwards where the budget allows, else downwards."""
    up = side + side % _MERGE
    return up if up * other <= budget_patches else max(_MERGE, side - side % _MERGE)


def image_grids(
    sizes: Sequence[tuple[int, int]], spec: VisionSpec, context_tokens: int, text_tokens: int
) -> list[Grid]:
    """Grids of all images of one prompt, shrunk together until they fit its context.

    Args:
        sizes: (width, height) of each image, pixels.
        spec: the vision encoder.
        context_tokens: tokens that the context holds.
        text_tokens: tokens that the prompt's text takes of them.
    Returns:
        (rows, columns) of each image. Their sum may pass the budget where even the smallest
        grids do not fit.
    Raises:
        MediaError: an image is too small, too large or too long.
    Source: vLLM `DynamicResolutionImageTiler.compute_params`.
    """
    free_patches = (context_tokens - text_tokens - _IMAGE_OVERHEAD_TOKENS) * _MERGE**2
    budget = max(free_patches, spec.min_patches * len(sizes))
    budgets = [min(budget, spec.max_patches)] * len(sizes)
    grids: list[Grid] = []
    for _ in range(_MAX_SHRINKING_ROUNDS):
        grids = [
            image_grid(width, height, b, spec.min_patches, spec.patch_size)
            for (width, height), b in zip(sizes, budgets, strict=True)
        ]
        n_patches = [rows * columns for rows, columns in grids]
        if sum(n_patches) <= budget:
            break
        share = budget / sum(n_patches)
        shrunk = [max(spec.min_patches, int(n * share)) for n in n_patches]
        some_shrank = any(new < old for new, old in zip(shrunk, budgets, strict=True))
        budgets = shrunk if some_shrank else [spec.min_patches] * len(sizes)
    return grids


def video_grid(width: int, height: int, target_patches: int) -> Grid:
    """Grid that video frames are resized to: about `target_patches`, aspect kept, sides even.

    Args:
        width, height: of a frame, pixels.
        target_patches: patches a frame, which its own size does not change.
    Returns:
        (rows, columns) of patches.
    Raises:
        MediaError: the frame is too small, too large or too long.
    Source: vLLM `_compute_aspect_preserving_size`.
    """
    check_size(width, height)
    aspect = width / height
    rows = max(round(math.sqrt(target_patches / aspect)), 1)
    columns = max(round(math.sqrt(target_patches * aspect)), 1)
    up_rows, up_columns = rows + rows % _MERGE, columns + columns % _MERGE
    if up_rows * up_columns <= target_patches:
        return up_rows, up_columns
    return max(_MERGE, rows - rows % _MERGE), max(_MERGE, columns - columns % _MERGE)


def sample_frames(
    n_total: int, duration_s: float, fps: float, max_frames: int
) -> NDArray[np.int64]:
    """Which frames of a whole recording the model sees.

    Args:
        n_total: frames in the recording.
        duration_s: its length.
        fps: frames to take a second; 0 sets no rate.
        max_frames: most frames to take; 0 sets no bound.
    Returns:
        Ascending frame indices, at least one.
    Raises:
        MediaError: the recording has no frames.
    Source: vLLM `multimodal/video.py`.
    """
    if n_total < 1:
        raise MediaError("video", f"has {n_total} frames", "give a recording with at least one")
    n = min(max_frames, n_total) if max_frames > 0 else n_total
    if fps > 0:
        n = min(n, math.floor(duration_s * fps))
    n = max(1, n)
    if n == n_total:
        return np.arange(n_total)
    return np.linspace(0, n_total - 1, n, dtype=np.int64)


def image_patches(pixels: UInt8, grid: Grid, spec: VisionSpec, n_threads: int = 0) -> Float32:
    """One image as normalised patches: resized with anti-aliased bicubic weights.

    Overshoot at sharp edges is kept, as the model was trained with it.

    Args:
        pixels: RGB image [H, W, 3], uint8; a view into a larger picture is read where it lies.
        grid: (rows, columns) from `image_grid` or `video_grid`.
        spec: the vision encoder.
        n_threads: 0 takes all cores.
    Returns:
        float32 [rows * columns, 3 * p * p], row-major; features ordered (channel, y, x).
    Raises:
        MediaError: `pixels` is no such image, or is too small, too large or too long.
    Source: torch `interpolate(mode="bicubic", align_corners=False, antialias=True)`.
    """
    rows, columns = grid
    patches = np.empty((rows * columns, 3 * spec.patch_size**2), np.float32)
    _write_patches(pixels, grid, spec, patches, n_threads)
    return patches


def tubelet_patches(
    frames: Sequence[UInt8], grid: Grid, spec: VisionSpec, n_threads: int = 0
) -> Float32:
    """Video frames as normalised tubelets of `spec.tubelet_frames` frames each.

    Args:
        frames: RGB images [H, W, 3], uint8, in time order. The last is repeated to fill the
            last tubelet.
        grid: (rows, columns) from `video_grid`.
        spec: the vision encoder.
        n_threads: 0 takes all cores.
    Returns:
        float32 [n_tubelets, rows * columns, tubelet_frames * 3 * p * p]; features ordered
        (time, channel, y, x).
    Raises:
        MediaError: there is no frame, or one is no such image.
    """
    if not frames:
        raise MediaError("video", "has 0 frames", "give at least one frame")
    rows, columns = grid
    n_tubelets = -(-len(frames) // spec.tubelet_frames)
    shape = (n_tubelets, rows * columns, spec.tubelet_frames, 3 * spec.patch_size**2)
    tubelets = np.empty(shape, np.float32)
    for index, frame in enumerate(frames):
        tubelet, time = divmod(index, spec.tubelet_frames)
        _write_patches(frame, grid, spec, tubelets[tubelet, :, time], n_threads)
    tubelets[-1, :, time + 1 :] = tubelets[-1, :, time, None]
    return tubelets.reshape(n_tubelets, rows * columns, -1)


def check_size(width: int, height: int) -> None:
    """Refuse what no grid can hold.

    Args:
        width, height: of an image, pixels.
    Raises:
        MediaError: the image is too small, too large or too long.
    """
    size = f"is {width}x{height} pixels"
    if min(width, height) < MIN_SIDE_PIXELS:
        raise MediaError(
            "image", size, f"give one of at least {MIN_SIDE_PIXELS} pixels on each side"
        )
    if width * height > MAX_PIXELS:
        raise MediaError("image", size, f"scale it down to at most {MAX_PIXELS} pixels")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        ratio = max(width, height) / min(width, height)
        raise MediaError(
            "image",
            f"{size}, an aspect ratio of {ratio:.0f}",
            f"crop it to an aspect ratio of at most {MAX_ASPECT_RATIO}",
        )


def _check_pixels(pixels: UInt8) -> None:
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise MediaError("image", f"has shape {pixels.shape}", "give RGB as (height, width, 3)")
    if pixels.dtype != np.uint8:
        raise MediaError("image", f"has dtype {pixels.dtype}", "give uint8 values 0..255")
    check_size(pixels.shape[1], pixels.shape[0])


def _write_patches(
    pixels: UInt8, grid: Grid, spec: VisionSpec, patches: Float32, n_threads: int
) -> None:
    """`image_patches` into `patches` [rows * columns, 3 * p * p], whose rows may be apart."""
    _check_pixels(pixels)
    if pixels.strides[1:] != (3, 1):
        pixels = np.ascontiguousarray(pixels)
    rows, columns = grid
    std = np.array(spec.norm_std)
    gain = (1 / (255 * std)).astype(np.float32)
    offset = (-np.array(spec.norm_mean) / std).astype(np.float32)
    _kernels.patches(
        pixels,
        *bicubic_axis(pixels.shape[1], columns * spec.patch_size),
        *bicubic_axis(pixels.shape[0], rows * spec.patch_size),
        gain,
        offset,
        patches,
        n_threads,
    )


@lru_cache(maxsize=16)
def bicubic_axis(n_in: int, n_out: int) -> tuple[NDArray[np.int32], Float32]:
    """How one axis is resized: out[i] = sum over t of weights[i, t] * in[first[i] + t].

    Returns:
        first int32 [n_out], ascending; weights [n_out, n_taps]. first + n_taps <= n_in.
    """
    if n_in == n_out:
        return np.arange(n_out, dtype=np.int32), np.ones((n_out, 1), np.float32)
    # float32 where torch has it: the rounding of the centres alone moves results by up to 0.02
    # on the 0..255 scale.
    scale = np.float32(n_in) / np.float32(n_out)
    stretch = max(scale, np.float32(1))
    support = np.float32(2) * stretch
    centre = (scale * (np.arange(n_out) + 0.5)).astype(np.float32)
    begin = np.maximum((centre - support + np.float32(0.5)).astype(np.int64), 0)
    end = np.minimum((centre + support + np.float32(0.5)).astype(np.int64), n_in)
    n_taps = int((end - begin).max())
    first = np.minimum(begin, n_in - n_taps)
    position = first[:, None] + np.arange(n_taps)
    weights = _bicubic((position - centre[:, None] + np.float32(0.5)) / stretch)
    weights[(position < begin[:, None]) | (position >= end[:, None])] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    return first.astype(np.int32), weights.astype(np.float32)


def _bicubic(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """Keys' cubic kernel."""
    x = np.abs(x)
    near = ((_BICUBIC_A + 2) * x - (_BICUBIC_A + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * _BICUBIC_A - 4 * _BICUBIC_A
    return np.where(x < 1, near, np.where(x < 2, far, 0))
