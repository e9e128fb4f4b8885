"""Which shapes a plan is made for: the profiles of the three graphs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from edge.engines.engine import MAX_AUDIO_FRAMES, MAX_PREFILL_TOKENS
from edge.model.spec import AudioSpec, DecoderSpec, ModelSpec, VisionSpec

Shape: TypeAlias = tuple[int, ...]

PAST_STEP_ROWS = 256
"""The largest bound past is a multiple of it."""
MIN_AUDIO_FRAMES = 10
"""0.1 s of sound."""
MAX_TUBELETS = 4
"""In one call."""
SMALLEST_GRID = (2, 2)
"""Of patches. Its sides are the smallest of all grids, and a profile's minima must fit together."""
LONGEST_SIDE = 256
"""Patches along one side of a grid. Longer strips would make the position table's rows and columns,
whose maxima a profile multiplies, take the memory of the whole encoder."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Smallest, typical and largest shape of each input that has a dynamic one."""

    name: str
    shapes: Mapping[str, tuple[Shape, Shape, Shape]]


def decoder_profiles(spec: DecoderSpec, max_past_rows: int) -> list[Profile]:
    """One token, and up to a whole prefill call; each with any past.

    Args:
        max_past_rows: rows of the K/V cache that can be bound.
    """
    longest = -(-max_past_rows // PAST_STEP_ROWS) * PAST_STEP_ROWS
    typical = min(longest, 4096)
    past = {
        f"past_{kind}.{layer}": tuple(
            (rows, spec.n_kv_heads, spec.head_dim) for rows in (1, typical, longest)
        )
        for layer in spec.layers("*")
        for kind in "kv"
    }
    hidden, most = spec.hidden_size, MAX_PREFILL_TOKENS
    tokens = {"decode": (1, 1, 1), "prefill": (1, most, most)}
    return [
        Profile(name, {"embeddings": _three(*((n, hidden) for n in counts))} | _all_three(past))
        for name, counts in tokens.items()
    ]


def vision_profiles(spec: VisionSpec) -> list[Profile]:
    """One picture of any size; several tubelets of a video."""
    features, table = 3 * spec.patch_size**2 * spec.tubelet_frames, spec.position_grid
    video = spec.video_target_patches
    few = SMALLEST_GRID[0] * SMALLEST_GRID[1]
    ranges = {
        "image": ((1, few), (1, max(video, spec.min_patches)), (1, spec.max_patches)),
        "tubelets": ((1, few), (1, video), (MAX_TUBELETS, video)),
    }
    profiles = []
    for name, sizes in ranges.items():
        side = min(sizes[2][1] // 2, LONGEST_SIDE)
        square = math.isqrt(sizes[1][1] - 1) + 1
        sides = _three((SMALLEST_GRID[0], table), (square, table), (side, table))
        patches = _three(*((*size, features) for size in sizes))
        profiles.append(
            Profile(name, {"patches": patches, "row_weights": sides, "column_weights": sides})
        )
    return profiles


def audio_profiles(spec: AudioSpec) -> list[Profile]:
    """One clip of 0.1 to 30 s."""
    frames = (MIN_AUDIO_FRAMES, MAX_AUDIO_FRAMES // 6, MAX_AUDIO_FRAMES)
    return [Profile("clip", {"mel": _three(*((1, n, spec.n_mels) for n in frames))})]


def profiles_of(spec: ModelSpec, max_past_rows: int) -> dict[str, list[Profile]]:
    """Of each graph, by its name."""
    return {
        "vision": vision_profiles(spec.vision),
        "audio": audio_profiles(spec.audio),
        "decoder": decoder_profiles(spec.decoder, max_past_rows),
    }


def _three(*shapes: Shape) -> tuple[Shape, Shape, Shape]:
    smallest, typical, largest = shapes
    return smallest, typical, largest


def _all_three(
    shapes: Mapping[str, tuple[Shape, ...]],
) -> dict[str, tuple[Shape, Shape, Shape]]:
    return {name: _three(*each) for name, each in shapes.items()}
