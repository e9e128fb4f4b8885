"""Before a service says that it is ready: the engine does all its work once, and it is right.

A bundle carries inputs and what the exact cpu engine made of them when it was built. Here an engine
in its fast arithmetic must come near to that. It is a test of the machine and the load, not of
the build: `build-engine verify` is the sharp one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.engines.bundle import Bundle
from edge.engines.engine import AnyEngine
from edge.engines.stored_check import check_grid
from edge.errors import EngineError

MAX_DISTANCE = 0.2
"""Relative L2 distance. Measured on tests/assets/tiny_omni: below 1e-4 if all is right; with the
image, the film, the sound or the text reversed, 0.71, 0.84, 0.26 and 0.26."""


def warm_up(engine: AnyEngine, bundle: Bundle) -> dict[str, float]:
    """Encode an image, a film and sound, prefill and decode, and compare.

    Returns:
        How far each output is from the bundle's, relative L2.
    Raises:
        EngineError: one is too far.
    """
    stored = bundle.self_check()
    distances: dict[str, float] = {}
    for name, values in _outputs(engine, stored).items():
        expected = stored[f"output.{name}"]
        distance = float(np.linalg.norm(values - expected) / np.linalg.norm(expected))
        distances[name] = distance
        if not distance <= MAX_DISTANCE:
            raise EngineError(
                f"self-check of {name}",
                f"is {distance:.2f} away from what the bundle holds, at most {MAX_DISTANCE}",
                f"run `build-engine verify {bundle.path}`",
            )
    return distances


def _outputs(engine: AnyEngine, stored: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    grid = check_grid(engine.spec.vision)
    image = engine.encode_image(stored["input.image"], grid)
    tubelets = engine.encode_tubelets(stored["input.tubelets"], grid)
    audio = engine.encode_audio(stored["input.mel"])
    ids = stored["input.ids"]
    state = engine.new_state()
    rows = np.concatenate([image, *tubelets, audio, engine.embed(ids)])
    logits = [engine.prefill(state, rows)]
    for token in ids[: len(stored["output.logits"]) - 1]:
        logits.append(engine.decode(state, int(token)))
    return {"image": image, "tubelets": tubelets, "audio": audio, "logits": np.stack(logits)}
