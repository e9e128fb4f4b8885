"""Which scenes happen in a conversation, and which questions are asked about one."""

from __future__ import annotations

import numpy as np
from scenes import Scene, Thing, place
from tasks import (
    ABOUT_A_FILM,
    ABOUT_A_PICTURE,
    Asked,
    ask_color,
    ask_count,
    ask_exist,
    ask_move,
    ask_see,
    ask_shape,
    ask_where,
)

SPOKEN = (ask_color, ask_shape, ask_count, ask_exist, ask_where, ask_move, ask_see)
"""What is also asked aloud."""


def a_scene(rng: np.random.Generator, aspect: float, n_frames: int) -> Scene:
    """A scene for a conversation; a film may move or change."""
    event = rng.random() if n_frames > 1 else 1.0
    things = list(
        place(
            rng,
            int(rng.integers(0 if rng.random() < 0.1 else 1, 4)),
            aspect,
            n_frames,
            event < 0.55,
        )
    )
    if n_frames >= 4 and 0.55 <= event < 0.85 and things:
        i = int(rng.integers(len(things)))
        at = 2 * int(rng.integers(1, n_frames // 2))
        frames = (at, 1 << 30) if rng.random() < 0.5 else (0, at)
        old = things[i]
        things[i] = Thing(old.shape, old.color, old.x, old.y, old.radius, 0, frames)
    return Scene(tuple(things), aspect, n_frames, int(rng.integers(1 << 31)))


def some_turns(rng: np.random.Generator, scene: Scene, film: bool, n: int) -> list[Asked]:
    """Different questions about a scene, in random order."""
    makers = list(ABOUT_A_FILM if film else ABOUT_A_PICTURE)
    rng.shuffle(makers)  # type: ignore[arg-type]
    turns: list[Asked] = []
    for maker in makers:
        asked = maker(rng, scene)
        if asked and len(turns) < n and all(asked.question != old.question for old in turns):
            turns.append(asked)
    return turns
