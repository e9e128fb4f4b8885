"""Calibration samples: recordings, pictures, sounds and texts, prepared as the runtime does it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from build_engine.checkpoint import Checkpoint
from build_engine.checkpoint_weights import CheckpointWeights
from build_engine.encoder_graphs import write_encoders
from edge.engines.encoders import Encoders
from edge.errors import MediaError
from edge.features.mel import LogMelStream
from edge.features.pixels import image_grid, image_patches, tubelet_patches, video_grid
from edge.model.outside import Outside
from edge.model.prompt import ChatTemplate, audio_text, flatten, image_text, video_text
from edge.model.spec import SAMPLE_RATE_HZ, ModelSpec
from edge.model.tokenizer import Tokenizer
from edge.senses import media
from edge.types import Float32, Int32, UInt8

TEXT_SUFFIXES = (".txt", ".md")
QUESTION = "Describe what you see and hear."
FPS = 2
MAX_S = 30
"""Of a longer recording the beginning is taken."""


Perceived: TypeAlias = tuple[str, Float32 | None]
"""What the prompt says of it, and the embeddings [n, H] of its placeholders."""
NOTHING: Perceived = ("", None)


class Embedder(Protocol):
    """What samples are prepared with: an engine, or a checkpoint's parts."""

    @property
    def spec(self) -> ModelSpec: ...
    def encode_image(self, patches: Float32, grid: tuple[int, int]) -> Float32: ...
    def encode_tubelets(self, patches: Float32, grid: tuple[int, int]) -> Float32: ...
    def encode_audio(self, mel: Float32) -> Float32: ...
    def embed(self, ids: Int32) -> Float32: ...


class CheckpointEmbedder(Encoders):
    """A checkpoint's encoders and its embedding table."""

    def __init__(self, checkpoint: Checkpoint, folder: Path) -> None:
        """Write the encoders' graphs into `folder` and load them."""
        write_encoders(checkpoint, folder)
        super().__init__(folder, checkpoint.spec, frugal=True)
        self._weights = CheckpointWeights(checkpoint)

    def embed(self, ids: Int32) -> Float32:
        """[n] -> [n, H]."""
        return self._weights.rows("embeddings", ids)


def samples_of_checkpoint(checkpoint: Checkpoint, paths: Sequence[Path]) -> list[Float32]:
    """`read_samples` with a checkpoint, which need not be a bundle yet."""
    if not paths:
        return []
    with tempfile.TemporaryDirectory() as folder:
        embedder = CheckpointEmbedder(checkpoint, Path(folder))
        return read_samples(embedder, checkpoint.folder, paths)


def read_samples(embedder: Embedder, folder: Path, paths: Sequence[Path]) -> list[Float32]:
    """Embedded prompts, one a file.

    Args:
        folder: holds the tokenizer and the chat template.
        paths: media files that FFmpeg decodes, and texts (.txt, .md).
    Returns:
        [n, H] each.
    Raises:
        MediaError: a file cannot be used.
    """
    reader = _Reader(embedder, folder)
    seen = [reader.see(path) for path in paths]  # one sense after the other: one encoder in memory
    heard = [reader.hear(path) for path in paths]
    return [reader.prompt(*sample) for sample in zip(paths, seen, heard, strict=True)]


class _Reader:
    def __init__(self, embedder: Embedder, folder: Path) -> None:
        self._embedder, self._spec = embedder, embedder.spec
        self._tokenizer, self._template = Tokenizer(folder), ChatTemplate(folder)

    def prompt(self, path: Path, *senses: Perceived) -> Float32:
        """[n, H]: a text, or what was perceived of a recording and a question about it."""
        outside = Outside(self._tokenizer)
        content = outside.hide(_text(path)) if path.suffix in TEXT_SUFFIXES else QUESTION
        perceived = [(text, rows) for text, rows in senses if rows is not None]
        messages = [{"role": "user", "content": flatten(content, [text for text, _ in perceived])}]
        ids = outside.encode(self._template.render(messages, thinking=False))
        rows = self._embedder.embed(ids).copy()
        if perceived:
            special = self._tokenizer.special
            places = np.isin(ids, (special.image, special.audio))
            rows[places] = np.concatenate([rows for _, rows in perceived])
        return rows

    def see(self, path: Path) -> Perceived:
        """The pictures of a file; nothing if it has none."""
        contents = _contents(path)
        if contents is None:
            return NOTHING
        vision = self._spec.vision
        frames, times_s = _frames(contents)
        if not frames:
            return NOTHING
        height, width = frames[0].shape[:2]
        if len(frames) == 1:
            grid = image_grid(
                width, height, vision.max_patches, vision.min_patches, vision.patch_size
            )
            image = self._embedder.encode_image(image_patches(frames[0], grid, vision), grid)
            return image_text(len(image)), image
        grid = video_grid(width, height, vision.video_target_patches)
        patches = tubelet_patches(frames, grid, vision)
        tubelets = np.concatenate(
            [self._embedder.encode_tubelets(tubelet[None], grid) for tubelet in patches]
        )
        text = video_text(times_s, [tubelets.shape[1]] * len(tubelets), vision.tubelet_frames)
        return text, tubelets.reshape(-1, tubelets.shape[-1])

    def hear(self, path: Path) -> Perceived:
        """The sound of a file; nothing if it has none."""
        contents = _contents(path)
        if contents is None:
            return NOTHING
        blocks = [block for _, block in media.mono_blocks(contents)]
        samples = np.concatenate(blocks or [np.zeros(0, np.float32)])[: MAX_S * SAMPLE_RATE_HZ]
        if not len(samples):
            return NOTHING
        stream = LogMelStream(self._spec.audio.n_mels)
        mels = stream.push(samples) + stream.flush()
        heard = np.concatenate([self._embedder.encode_audio(mel) for mel in mels])
        return audio_text(len(heard)), heard


def _contents(path: Path) -> media.Contents | None:
    if path.suffix in TEXT_SUFFIXES:
        return None
    contents = media.check(path)
    media.refuse_silence(contents)
    return contents


def _text(path: Path) -> str:
    try:
        text = path.read_text().strip()
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise MediaError(path, "holds no UTF-8 text", "give another file")
    return text


def _frames(contents: media.Contents) -> tuple[list[UInt8], list[float]]:
    """Frames at FPS from the beginning, with their times."""
    frames: list[UInt8] = []
    times_s: list[float] = []
    for time_s, frame in media.video_frames(contents):
        if time_s > MAX_S:
            break
        if not times_s or time_s >= times_s[-1] + 1 / FPS:
            frames.append(media.upright_rgb(frame))
            times_s.append(float(time_s))
    return frames, times_s
