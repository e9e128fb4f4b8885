"""Pictures and sounds that a message brings along: encoded like those of a camera or microphone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge.engines.engine import AnyEngine
from edge.features.mel import LogMelStream
from edge.features.pixels import Grid, image_grids, image_patches
from edge.model.prompt import audio_text, image_text
from edge.types import Float32, Picture, Sound


@dataclass(frozen=True, slots=True, eq=False)
class Attached:
    """Media of one prompt, in order."""

    texts: tuple[str, ...]
    """What stands in the prompt for each."""
    rows: Float32
    """[n, H] of all of them, for the placeholders in `texts`."""


def encode_attached(
    engine: AnyEngine, media: Sequence[Picture | Sound], n_free_tokens: int
) -> Attached:
    """Encode what the messages of a question bring along.

    Args:
        n_free_tokens: that all of it may take; pictures are shrunk for it as far as that goes.
    Raises:
        MediaError: a picture or a sound cannot be used.
    """
    vision = engine.spec.vision
    sizes = [(picture.width, picture.height) for picture in media if isinstance(picture, Picture)]
    grids = iter(image_grids(sizes, vision, max(n_free_tokens, 0), 0) if sizes else ())
    texts: list[str] = []
    rows: list[Float32] = [np.empty((0, engine.spec.decoder.hidden_size), np.float32)]
    for one in media:
        if isinstance(one, Picture):
            rows.append(_see(engine, one, next(grids)))
            texts.append(image_text(len(rows[-1])))
        else:
            rows.append(_hear(engine, one))
            texts.append(audio_text(len(rows[-1])))
    return Attached(tuple(texts), np.concatenate(rows))


def _see(engine: AnyEngine, picture: Picture, grid: Grid) -> Float32:
    shape = (picture.height, picture.width, 3)
    pixels = np.frombuffer(picture.rgb, np.uint8).reshape(shape)
    return engine.encode_image(image_patches(pixels, grid, engine.spec.vision), grid)


def _hear(engine: AnyEngine, sound: Sound) -> Float32:
    stream = LogMelStream(engine.spec.audio.n_mels)
    mels = stream.push(np.frombuffer(sound.samples, np.float32)) + stream.flush()
    return np.concatenate([engine.encode_audio(mel) for mel in mels])
