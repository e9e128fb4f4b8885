"""What a message brings along: encoded like what a camera or a microphone gives."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from edge.engines.engine import AnyEngine
from edge.features.evs import retention_mask
from edge.features.mel import LogMelStream
from edge.features.pixels import Grid, image_grids, image_patches, tubelet_patches, video_grid
from edge.model.prompt import audio_text, image_text, video_text
from edge.types import Film, Float32, Medium, Picture, Sound


@dataclass(frozen=True, slots=True, eq=False)
class Attached:
    """Media of one prompt, in order."""

    texts: tuple[str, ...]
    """What stands in the prompt for each."""
    rows: Float32
    """[n, H] of all of them, for the placeholders in `texts`."""


Steps = Generator[None, None, "Attached"]
"""A call of an encoder each, and at the end what came of all."""


def encode_attached(engine: AnyEngine, media: Sequence[Medium], n_free_tokens: int) -> Steps:
    """Encode what the messages of a question bring along, a call of an encoder at a time.

    Args:
        n_free_tokens: that all of it may take; pictures are shrunk for it and films are pruned, as
            far as that goes.
    Raises:
        MediaError: something of it cannot be used.
    """
    vision = engine.spec.vision
    sizes = [(picture.width, picture.height) for picture in media if isinstance(picture, Picture)]
    grids = image_grids(sizes, vision, n_free_tokens, 0) if sizes else []
    films = [one for one in media if isinstance(one, Film)]
    n_free_tokens -= sum(rows * columns // vision.merge**2 for rows, columns in grids)
    n_of_film = n_free_tokens // max(1, len(films))
    texts: list[str] = []
    rows: list[Float32] = [np.empty((0, engine.spec.decoder.hidden_size), np.float32)]
    left = iter(grids)
    for one in media:
        if isinstance(one, Picture):
            rows.append(_see(engine, one, next(left)))
            texts.append(image_text(len(rows[-1])))
            yield
        elif isinstance(one, Sound):
            rows.append((yield from _hear(engine, one)))
            texts.append(audio_text(len(rows[-1])))
        else:
            text, found = yield from _watch(engine, one, n_of_film)
            rows.append(found)
            texts.append(text)
    return Attached(tuple(texts), np.concatenate(rows))


def _see(engine: AnyEngine, picture: Picture, grid: Grid) -> Float32:
    shape = (picture.height, picture.width, 3)
    pixels = np.frombuffer(picture.rgb, np.uint8).reshape(shape)
    return engine.encode_image(image_patches(pixels, grid, engine.spec.vision), grid)


def _hear(engine: AnyEngine, sound: Sound) -> Generator[None, None, Float32]:
    stream = LogMelStream(engine.spec.audio.n_mels)
    heard = []
    for mel in stream.push(np.frombuffer(sound.samples, np.float32)) + stream.flush():
        heard.append(engine.encode_audio(mel))
        yield
    return np.concatenate(heard)


def _watch(
    engine: AnyEngine, film: Film, n_free_tokens: int
) -> Generator[None, None, tuple[str, Float32]]:
    """What stands in the prompt for a film, and its rows [n, H]: its frames, then its sound.

    Source: vLLM 0.20 `nano_nemotron_vl`, where its sound follows at once (`use_audio_in_video`).
    """
    vision = engine.spec.vision
    grid = video_grid(film.width, film.height, vision.video_target_patches)
    frames = np.frombuffer(film.rgb, np.uint8).reshape(-1, film.height, film.width, 3)
    tubelets = []
    for start in range(0, len(frames), vision.tubelet_frames):
        some = [*frames[start : start + vision.tubelet_frames]]
        tubelets.append(engine.encode_tubelets(tubelet_patches(some, grid, vision), grid)[0])
        yield
    sound = None
    if film.sound is not None:
        sound = yield from _hear(engine, film.sound)
        n_free_tokens -= len(sound)
    places = (grid[0] // vision.merge, grid[1] // vision.merge)
    whole = np.stack(tubelets).reshape(len(tubelets), *places, -1)
    n_tokens = whole.shape[0] * whole.shape[1] * whole.shape[2]
    must_go = 1 - max(n_free_tokens, 1) / n_tokens
    keep = retention_mask(whole, max(film.pruning_rate, must_go, 0.0))
    counts = keep.reshape(len(tubelets), -1).sum(1).tolist()
    text, rows = video_text(film.times_s, counts, vision.tubelet_frames), whole[keep]
    if sound is None:
        return text, rows
    return text + audio_text(len(sound)), np.concatenate([rows, sound])
