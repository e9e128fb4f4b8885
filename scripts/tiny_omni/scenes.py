"""Scenes of coloured shapes, rendered at any size: what the small model learns to see.

A scene is a handful of shapes on a varied background; each may move and be there only for a while.
Positions are fractions of the picture, so the same scene renders at any resolution and aspect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = ("red", "green", "blue", "yellow", "purple", "white")
RGB = np.array(
    [
        [0.85, 0.10, 0.10],
        [0.10, 0.70, 0.15],
        [0.15, 0.25, 0.90],
        [0.90, 0.85, 0.10],
        [0.60, 0.15, 0.70],
        [0.97, 0.97, 0.97],
    ],
    np.float32,
)
MOTIONS = ("not at all", "left", "right", "up", "down")
STEP = 0.16
"""How far a moving shape goes by default from one frame to the next (0.5 s), in heights."""
FRAME_S = 0.5
ALWAYS = (0, 1 << 30)


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape."""

    shape: int
    color: int
    x: float
    """Centre in the first frame, 0..aspect, in picture heights; y likewise 0..1."""
    y: float
    radius: float
    """In picture heights."""
    motion: int = 0
    frames: tuple[int, int] = ALWAYS
    """Visible from the first frame of the pair, up to but not in the second."""
    speed: float = STEP

    def at(self, frame: float) -> tuple[float, float]:
        """Centre in a frame."""
        dx, dy = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))[self.motion]
        return self.x + dx * self.speed * frame, self.y + dy * self.speed * frame

    def visible(self, frame: float) -> bool:
        return self.frames[0] <= frame < self.frames[1]

    @property
    def name(self) -> str:
        return f"{COLORS[self.color]} {SHAPES[self.shape]}"


@dataclass(frozen=True, slots=True)
class Scene:
    """Shapes, from left to right in the first frame."""

    things: tuple[Thing, ...]
    aspect: float
    n_frames: int
    style: int
    """Seeds the background and the camera's noise."""
    max_grain: float = 0.07
    """Standard deviation of the strongest camera noise."""


def place(
    rng: np.random.Generator,
    n: int,
    aspect: float,
    n_frames: int = 1,
    moving: bool = False,
    smallest: float = 0.12,
) -> tuple[Thing, ...]:
    """Up to n shapes that never touch, the first of them moving if asked."""
    things: list[Thing] = []
    for _ in range(60):
        if len(things) == n:
            break
        radius = rng.uniform(smallest, 0.2)
        motion = int(rng.integers(1, 5)) if moving and not things else 0
        thing = Thing(
            int(rng.integers(len(SHAPES))),
            int(rng.integers(len(COLORS))),
            rng.uniform(radius + 0.02, aspect - radius - 0.02),
            rng.uniform(radius + 0.02, 0.98 - radius),
            radius,
            motion,
            speed=rng.uniform(0.07, 0.2),
        )
        if _inside(thing, aspect, n_frames) and all(
            _apart(thing, other, n_frames) for other in things
        ):
            things.append(thing)
    # Smaller rather than drawn again: nothing that is drawn after this scene changes.
    while any(_touch(one, other, n_frames) for one, other in combinations(things, 2)):
        things = [replace(thing, radius=0.9 * thing.radius) for thing in things]
    return tuple(sorted(things, key=lambda thing: thing.x))


def _inside(thing: Thing, aspect: float, n_frames: int) -> bool:
    x, y = thing.at(n_frames - 1)
    margin = thing.radius * 0.9
    return margin <= x <= aspect - margin and margin <= y <= 1 - margin


def _apart(one: Thing, other: Thing, n_frames: int) -> bool:
    gap = 1.15 * (one.radius + other.radius)
    for frame in range(n_frames):
        (ax, ay), (bx, by) = one.at(frame), other.at(frame)
        if (ax - bx) ** 2 + (ay - by) ** 2 < gap**2:
            return False
    return True


MIN_GAP = 0.005
"""Between two outlines: soft edges a pixel wide stay apart in a picture 120 high."""
_ANGLES = 2 * np.pi * np.arange(72) / 72
_DIRECTIONS = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)
_CORNERS = (
    _DIRECTIONS,
    np.array([(x, y) for x in (-0.86, 0.86) for y in (-0.86, 0.86)]),
    np.array([(0, -1), (-1, 0.8), (1, 0.8)]),
    np.array([(s * x, t * y) for x, y in ((0.33, 1), (1, 0.33)) for s in (-1, 1) for t in (-1, 1)]),
)
"""Of each shape with a radius of 1, as `_cover` draws it."""
_REACH = np.stack([(_DIRECTIONS @ corners.T).max(1) for corners in _CORNERS])
"""How far a shape reaches in each direction, [shapes, directions]."""


def _touch(one: Thing, other: Thing, n_frames: int) -> bool:
    """No line fits between the two: corners reach up to 1.28 radii, `_apart` asks for 1.15."""
    backwards = np.roll(_REACH[other.shape], len(_DIRECTIONS) // 2)
    reach = one.radius * _REACH[one.shape] + other.radius * backwards + MIN_GAP
    return any(
        bool((_DIRECTIONS @ np.subtract(other.at(frame), one.at(frame)) < reach).all())
        for frame in range(n_frames)
    )


def coverage(
    scene: Scene, frame: float, height: int, width: int, soft: float
) -> NDArray[np.float32]:
    """How much of each pixel each thing covers, [things, height, width]; 0 where not visible."""
    masks = np.zeros((len(scene.things), height, width), np.float32)
    for mask, thing in zip(masks, scene.things, strict=True):
        if thing.visible(frame):
            box, alpha = _cover(thing, frame, height, width, soft)
            mask[box] = alpha
    return masks


Box = tuple[slice, slice]


def _cover(
    thing: Thing, frame: float, height: int, width: int, soft: float
) -> tuple[Box, NDArray[np.float32]]:
    """The part of the picture that a thing may touch, and how much of each pixel it covers."""
    cx, cy = (np.float32(c * height) for c in thing.at(frame))
    r = np.float32(thing.radius * height)
    top, bottom = (int(np.clip(edge, 0, height)) for edge in (cy - r - 3, cy + r + 4))
    left, right = (int(np.clip(edge, 0, width)) for edge in (cx - r - 3, cx + r + 4))
    dy = ((np.arange(top, bottom, dtype=np.float32) + np.float32(0.5) - cy) / r)[:, None]
    dx = ((np.arange(left, right, dtype=np.float32) + np.float32(0.5) - cx) / r)[None, :]
    ax, ay = np.abs(dx), np.abs(dy)
    if thing.shape == 0:
        inside = 1 - np.hypot(dx, dy)
    elif thing.shape == 1:
        inside = 0.86 - np.maximum(ax, ay)
    elif thing.shape == 2:
        inside = np.minimum(0.8 - dy, (1 + dy - 1.8 * ax) / 2.06)
    else:
        inside = np.maximum(np.minimum(0.33 - ax, 1 - ay), np.minimum(1 - ax, 0.33 - ay))
    alpha = np.clip(inside * (r / np.float32(soft)) + 0.5, 0, 1)
    return (slice(top, bottom), slice(left, right)), alpha.astype(np.float32)


def render(scene: Scene, frame: float, height: int, width: int) -> NDArray[np.uint8]:
    """One frame as a camera would give it, [height, width, 3] RGB; between frames, too."""
    style = np.random.default_rng([scene.style, 1])
    soft = style.uniform(0.8, 2.2) * max(1.0, height / 128)
    tint = RGB + style.normal(0, 0.04, RGB.shape).astype(np.float32)
    exposure, grain = style.uniform(0.75, 1.1), style.uniform(0, scene.max_grain)
    picture = _background(scene.style, height, width).copy()
    for thing in scene.things:
        if thing.visible(frame):
            box, alpha = _cover(thing, frame, height, width, soft)
            picture[box] += alpha[:, :, None] * (tint[thing.color] - picture[box])
    picture *= np.float32(exposure)
    picture += _noise(scene.style * 7919 + int(frame * 104_729), picture.shape) * np.float32(grain)
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)


_NOISE = np.random.default_rng(0).standard_normal(1 << 21, np.float32)
"""One pool for all cameras: drawing it anew would cost more than all else of a frame."""


def _noise(start: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    n = math.prod(shape)
    if n > len(_NOISE) // 2:
        return np.resize(_NOISE, shape)
    start %= len(_NOISE) - n
    return _NOISE[start : start + n].reshape(shape)


@lru_cache(maxsize=64)
def _background(seed: int, height: int, width: int) -> NDArray[np.float32]:
    """Plain, a slope of light, or soft patches."""
    style = np.random.default_rng([seed, 2])
    base = style.uniform(0.08, 0.6) + style.normal(0, 0.05, 3)
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = base
    kind = style.integers(3)
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :]
    if kind == 1:
        angle = style.uniform(0, 2 * np.pi)
        slope = np.float32(np.cos(angle)) * (x - 0.5) + np.float32(np.sin(angle)) * (y - 0.5)
        picture += (np.float32(style.uniform(0.05, 0.3)) * slope)[:, :, None]
    elif kind == 2:
        for _ in range(3):
            fx, fy = style.uniform(0.5, 3, 2)
            phase = style.uniform(0, 6.3)
            wave = np.sin(
                np.float32(2 * np.pi * fx) * x + np.float32(2 * np.pi * fy) * y + np.float32(phase)
            )
            picture += (np.float32(style.uniform(0.01, 0.06)) * wave)[:, :, None]
    return picture
