"""Frames and chunks become segments: collect, compute features, encode, put into the prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge.clock import NS_PER_S, Clock
from edge.engines.engine import AnyEngine
from edge.features.mel import log_mel
from edge.features.pixels import tubelet_patches, video_grid
from edge.model.prompt import audio_text, tubelet_text
from edge.model.spec import SAMPLE_RATE_HZ
from edge.model.tokenizer import Tokenizer
from edge.session.context import Perceived
from edge.types import AudioChunk, Evidence, Float32, Frame, Stages

MIN_CLIP_SAMPLES = 1600
"""Shorter clips are padded with silence to 0.1 s, as the model was served."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A segment before it is prefilled, with its times so far."""

    perceived: Perceived
    stages: Stages


def embed_media(engine: AnyEngine, tokenizer: Tokenizer, text: str, media: Float32) -> Float32:
    """Embed `text` and put `media` rows [n, H] at its placeholder tokens, in order.

    Raises:
        ValueError: the text has more or fewer placeholders than `media` has rows.
    """
    ids = tokenizer.encode(text)
    places = np.isin(ids, (tokenizer.special.image, tokenizer.special.audio))
    if places.sum() != len(media):
        raise ValueError(f"{places.sum()} placeholders for {len(media)} rows")
    rows = engine.embed(ids).copy()
    rows[places] = media
    return rows


class Watcher:
    """Joins frames of one source to tubelets and encodes them."""

    def __init__(
        self, engine: AnyEngine, tokenizer: Tokenizer, clock: Clock, start_ns: int
    ) -> None:
        """Watch from `start_ns` on: the prompt's times count from there."""
        self._engine, self._tokenizer, self._clock = engine, tokenizer, clock
        self._start_ns = start_ns
        self._frames: list[Frame] = []
        self._n_frames = 0

    def push(self, frame: Frame) -> Seen | None:
        """Take a frame; a segment when it completes a tubelet."""
        self._frames.append(frame)
        if len(self._frames) < self._engine.spec.vision.tubelet_frames:
            return None
        frames, self._frames = self._frames, []
        return self._encode(frames)

    def flush(self) -> Seen | None:
        """At the end of the source: the last odd frame as a tubelet of its own."""
        frames, self._frames = self._frames, []
        return self._encode(frames) if frames else None

    def _encode(self, frames: list[Frame]) -> Seen:
        taken_ns = self._clock.now_ns()
        vision = self._engine.spec.vision
        height, width = frames[0].pixels.shape[:2]
        grid = video_grid(width, height, vision.video_target_patches)
        patches = tubelet_patches([frame.pixels for frame in frames], grid, vision)
        features_ns = self._clock.now_ns()
        media = self._engine.encode_tubelets(patches, grid)[0]
        times_s = [(frame.capture_ns - self._start_ns) / NS_PER_S for frame in frames]
        text = tubelet_text(self._n_frames + 1, times_s, len(media))
        self._n_frames += len(frames)
        rows = embed_media(self._engine, self._tokenizer, text, media)
        evidence = Evidence(
            source=frames[0].source,
            start_ns=frames[0].capture_ns,
            end_ns=frames[-1].capture_ns,
            frame_ids=tuple(frame.frame_id for frame in frames),
        )
        stages = Stages(
            modality="video",
            captured_ns=evidence.end_ns,
            taken_ns=taken_ns,
            features_ns=features_ns,
            encoded_ns=self._clock.now_ns(),
        )
        return Seen(Perceived("video", rows, evidence), stages)


class Listener:
    """Joins chunks of one source to windows and encodes each as one clip."""

    def __init__(
        self, engine: AnyEngine, tokenizer: Tokenizer, clock: Clock, window_s: float
    ) -> None:
        """Listen in windows of `window_s` seconds."""
        self._engine, self._tokenizer, self._clock = engine, tokenizer, clock
        self._window_samples = max(int(window_s * SAMPLE_RATE_HZ), MIN_CLIP_SAMPLES)
        self._chunks: list[AudioChunk] = []
        self._n_samples = 0

    def push(self, chunk: AudioChunk) -> Seen | None:
        """Take a chunk; a segment when it completes a window."""
        self._chunks.append(chunk)
        self._n_samples += len(chunk.samples)
        return self._encode() if self._n_samples >= self._window_samples else None

    def flush(self) -> Seen | None:
        """At the end of the source: what is left, as a short clip."""
        return self._encode() if self._n_samples else None

    def _encode(self) -> Seen:
        taken_ns = self._clock.now_ns()
        chunks, self._chunks, self._n_samples = self._chunks, [], 0
        samples = np.concatenate([chunk.samples for chunk in chunks])
        end_ns = chunks[-1].capture_ns + len(chunks[-1].samples) * NS_PER_S // SAMPLE_RATE_HZ
        padded = np.pad(samples, (0, max(0, MIN_CLIP_SAMPLES - len(samples))))
        mel = log_mel(padded, self._engine.spec.audio.n_mels)
        features_ns = self._clock.now_ns()
        media = self._engine.encode_audio(mel)
        rows = embed_media(self._engine, self._tokenizer, audio_text(len(media)), media)
        evidence = Evidence(chunks[0].source, chunks[0].capture_ns, end_ns)
        stages = Stages(
            modality="audio",
            captured_ns=end_ns,
            taken_ns=taken_ns,
            features_ns=features_ns,
            encoded_ns=self._clock.now_ns(),
        )
        return Seen(Perceived("audio", rows, evidence), stages)
