"""Which shapes a plan is made for: the profiles of the four graphs."""

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
MIN_AUDIO_FRAMES = 1
"""A client may send a clip of any length."""
SMALLEST_SIDE = 2
"""Of a grid, in patches. A profile's minima must fit together: its square is the fewest patches."""
LONGEST_SIDE = 256
"""Patches along one side of a grid. Longer strips would make the position table's rows and columns,
whose maxima a profile multiplies, take the memory of the whole encoder."""
LARGE_PICTURE = "large"
LIVE_SHARE = 4
"""The live path's profile takes a picture with this part of the largest one's patches."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Smallest, typical and largest shape of each input that has a dynamic one."""

    name: str
    shapes: Mapping[str, tuple[Shape, Shape, Shape]]


def longest_past(max_past_rows: int) -> int:
    """Rows of the K/V cache that a decoder's plans can be given, for so many that are wanted."""
    return -(-max_past_rows // PAST_STEP_ROWS) * PAST_STEP_ROWS


def decoder_profiles(spec: DecoderSpec, max_past_rows: int) -> list[Profile]:
    """Of decode, one token, and of prefill, two to a whole call; each with any past.

    Args:
        max_past_rows: rows of the K/V cache that can be bound.
    """
    longest = longest_past(max_past_rows)
    typical = min(longest, 4096)
    past = {
        f"past_{kind}.{layer}": tuple(
            (rows, spec.n_kv_heads, spec.head_dim) for rows in (1, typical, longest)
        )
        for layer in spec.layers("*")
        for kind in "kv"
    }
    hidden, most = spec.hidden_size, MAX_PREFILL_TOKENS
    tokens = {"decode": (1, 1, 1), "prefill": (2, most, most)}
    return [
        Profile(name, {"embeddings": _three(*((n, hidden) for n in counts))} | _all_three(past))
        for name, counts in tokens.items()
    ]


def vision_profiles(spec: VisionSpec) -> list[Profile]:
    """One image or one tubelet: of what the live path needs, and of any size.

    A tubelet has about `video_target_patches` at any resolution of its camera, twice as many in the
    longest strip. The engine keeps memory for the first profile, and takes what the second needs
    for a call of it. One item a call, because a profile's largest shape would else be several of
    the largest images.
    """
    typical, most = spec.video_target_patches, spec.max_patches
    live = min(max(most // LIVE_SHARE, 2 * typical), most)
    profiles = [_picture(spec, "live", typical, live, LONGEST_SIDE // 2)]
    return (
        [*profiles, _picture(spec, LARGE_PICTURE, live, most, LONGEST_SIDE)]
        if live < most
        else profiles
    )


def _picture(spec: VisionSpec, name: str, typical: int, most: int, longest: int) -> Profile:
    features, table = 3 * spec.patch_size**2 * spec.tubelet_frames, spec.position_grid
    square, longest = math.isqrt(typical - 1) + 1, min(most // SMALLEST_SIDE, longest)
    sides = _three(*((side, table) for side in (SMALLEST_SIDE, square, longest)))
    patches = _three(*((1, n, features) for n in (SMALLEST_SIDE**2, typical, most)))
    return Profile(name, {"patches": patches, "row_weights": sides, "column_weights": sides})


def audio_profiles(spec: AudioSpec) -> list[Profile]:
    """One clip of up to 30 s."""
    frames = (MIN_AUDIO_FRAMES, MAX_AUDIO_FRAMES // 6, MAX_AUDIO_FRAMES)
    return [Profile("clip", {"mel": _three(*((1, n, spec.n_mels) for n in frames))})]


def profiles_of(spec: ModelSpec, max_past_rows: int) -> dict[str, list[Profile]]:
    """Of each graph, by its name."""
    return {
        "vision": vision_profiles(spec.vision),
        "audio": audio_profiles(spec.audio),
        **{p.name: [p] for p in decoder_profiles(spec.decoder, max_past_rows)},
    }


def _three(*shapes: Shape) -> tuple[Shape, Shape, Shape]:
    smallest, typical, largest = shapes
    return smallest, typical, largest


def _all_three(
    shapes: Mapping[str, tuple[Shape, ...]],
) -> dict[str, tuple[Shape, Shape, Shape]]:
    return {name: _three(*each) for name, each in shapes.items()}
