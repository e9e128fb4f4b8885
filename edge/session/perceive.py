"""Frames and chunks become segments: collect, compute features, encode, put into the prompt.

Taking an item costs no work of the engine; encoding what the items make together does. So the loop
may listen while it answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edge.clock import NS_PER_S, Clock
from edge.engines.engine import AnyEngine
from edge.features.evs import CausalPruner
from edge.features.mel import CLIP_SAMPLES, LogMelStream
from edge.features.pixels import tubelet_patches, video_grid
from edge.model.prompt import audio_text, tubelet_text
from edge.model.spec import SAMPLE_RATE_HZ
from edge.model.tokenizer import Tokenizer
from edge.senses.sound import end_ns, goes_on, joined
from edge.senses.turn_events import Control, Cut, Mode, Overheard, Silence, TurnEvent
from edge.session.budget import LADDER, Rung
from edge.session.slot import Perceived
from edge.types import AudioChunk, Evidence, Float32, Frame, Int32, Stages

MAX_APART_PERIODS, MIN_APART_NS = 2.5, 2 * NS_PER_S
"""Frames that lie further apart than both are not of one tubelet: between them the camera was away,
or there was no time for it."""


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A segment before it is prefilled, with its times so far."""

    perceived: Perceived
    stages: Stages
    due_ns: int
    """When it could have been taken: the capture time of what completed it, which after a gap is
    what came behind the gap."""


def embed_media(engine: AnyEngine, tokenizer: Tokenizer, text: str, media: Float32) -> Float32:
    """Embed `text` and put `media` rows [n, H] at its placeholder tokens, in order.

    Raises:
        ValueError: the text has more or fewer placeholders than `media` has rows.
    """
    return place_media(engine, tokenizer, tokenizer.encode(text), media)


def place_media(engine: AnyEngine, tokenizer: Tokenizer, ids: Int32, media: Float32) -> Float32:
    """Embed `ids` and put `media` rows [n, H] at their placeholders, in order.

    Raises:
        ValueError: there are more or fewer placeholders than `media` has rows.
    """
    places = np.isin(ids, (tokenizer.special.image, tokenizer.special.audio))
    if places.sum() != len(media):
        raise ValueError(f"{places.sum()} placeholders for {len(media)} rows")
    rows = engine.embed(ids)
    if places.any():
        rows = rows.copy()
        rows[places] = media
    return rows


class Watcher:
    """Joins frames of one source to tubelets and encodes them."""

    def __init__(
        self,
        engine: AnyEngine,
        tokenizer: Tokenizer,
        clock: Clock,
        start_ns: int,
        pruner: CausalPruner | None = None,
        *,
        fps: float = 2.0,
        name: str = "",
        is_named: bool = False,
    ) -> None:
        """Watch from `start_ns` on: the prompt's times count from there.

        Args:
            pruner: chooses what is kept of each tubelet; None keeps everything.
            fps: frames a second that the source should give.
            name: the source in evidence; empty leaves it to the frames.
            is_named: the prompt says it too, as the model was not trained to read: for several.
        """
        self.name, self._prefix = name, f"{name}: " if is_named else ""
        self._engine, self._tokenizer, self._clock = engine, tokenizer, clock
        self._start_ns, self._pruner = start_ns, pruner
        self._frames: list[Frame] = []
        self._whole: list[Frame] = []  # a tubelet that waits to be encoded
        self._due_ns = 0  # since then
        self._period_ns = NS_PER_S / fps
        self._n_frames = 0
        self.rung = LADDER[0]

    @property
    def n_frames_of_a_tubelet(self) -> int:
        """Frames that are embedded as one."""
        return self._engine.spec.vision.tubelet_frames

    def wants(self, n: int) -> bool:
        """Whether the source's frame number `n` is taken on this rung."""
        return self.rung.one_frame_in > 0 and n % self.rung.one_frame_in == 0

    @property
    def n_waiting(self) -> int:
        """Tubelets that are complete and not encoded: while there is one, take no frame."""
        return int(bool(self._whole))

    def take(self, frame: Frame) -> list[TurnEvent]:
        """Take a frame, which may complete a tubelet, or end one that it does not belong to."""
        if self._frames and not self._goes_on(frame):
            self._complete(frame.capture_ns)
        self._frames.append(frame)
        if len(self._frames) == self.n_frames_of_a_tubelet:
            self._complete(frame.capture_ns)
        return []

    def _goes_on(self, frame: Frame) -> bool:
        """Whether it may be of one tubelet with the frame before."""
        last, period_ns = self._frames[-1], self._period_ns * max(1, self.rung.one_frame_in)
        apart_ns = abs(frame.capture_ns - last.capture_ns)
        is_near = apart_ns <= max(MAX_APART_PERIODS * period_ns, MIN_APART_NS)
        return is_near and frame.pixels.shape == last.pixels.shape

    def _complete(self, due_ns: int) -> None:
        self._whole, self._frames, self._due_ns = self._frames, [], due_ns

    def start_again(self) -> None:
        """Show the next tubelet whole: the context has forgotten pictures that it built on."""
        if self._pruner is not None:
            self._pruner.start_again()

    def flush(self) -> list[TurnEvent]:
        """At the end of the source: the last odd frame makes a tubelet of its own."""
        self._complete(self._clock.now_ns())
        return []

    def encode(self) -> Seen:
        """The tubelet that waits, as a segment.

        Raises:
            MediaError: a frame cannot be used.
        """
        frames, self._whole = self._whole, []
        taken_ns = self._clock.now_ns()
        vision = self._engine.spec.vision
        height, width = frames[0].pixels.shape[:2]
        n_patches = int(vision.video_target_patches * self.rung.patch_share)
        grid = video_grid(width, height, n_patches)
        patches = tubelet_patches([frame.pixels for frame in frames], grid, vision)
        features_ns = self._clock.now_ns()
        whole = self._engine.encode_tubelets(patches, grid)[0]
        media = whole
        if self._pruner is not None:
            places = (grid[0] // vision.merge, grid[1] // vision.merge)
            shaped = whole.reshape(*places, -1)
            keep = self._pruner.keep(shaped, frames[-1].capture_ns, self.rung.token_share)
            media = shaped[keep]
        times_s = [(frame.capture_ns - self._start_ns) / NS_PER_S for frame in frames]
        text = self._prefix + tubelet_text(self._n_frames + 1, times_s, len(media))
        self._n_frames += len(frames)
        rows = media
        if len(media):  # else nothing changed, and the text would say nothing either
            rows = embed_media(self._engine, self._tokenizer, text, media)
        evidence = Evidence(
            source=self.name or frames[0].source,
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
            n_kept=len(media),
            n_pruned=len(whole) - len(media),
        )
        return Seen(Perceived("video", rows, evidence), stages, self._due_ns)


class Collector(Protocol):
    """What makes clips of one source's chunks: windows, or utterances, or turns."""

    @property
    def mode(self) -> Mode:
        """Whose speech takes the turn."""

    def push(self, chunk: AudioChunk) -> Sequence[AudioChunk | TurnEvent]:
        """Take the next chunk; the clips that it completes, and what happened in it."""

    def flush(self) -> Sequence[AudioChunk | TurnEvent]:
        """At the end of the source: what is left."""

    def control(self, control: Control | Silence) -> Sequence[AudioChunk | TurnEvent]:
        """Do what a client wants, or what silence ends; likewise.

        Raises:
            ProtocolError: that cannot be done now.
        """


class WindowCollector:
    """Everything, in windows that end with the chunk that fills them, or where sound is missing, or
    before a chunk with which they would be longer than a clip."""

    mode: Mode = "typed"

    def __init__(self, window_s: float) -> None:
        """Collect windows of `window_s` seconds."""
        self._window_samples = round(window_s * SAMPLE_RATE_HZ)
        self._chunks: list[AudioChunk] = []

    def push(self, chunk: AudioChunk) -> list[AudioChunk]:
        """Take the next chunk; a window when it is full."""
        last = self._chunks[-1] if self._chunks else None
        fits = self._n_samples + len(chunk.samples) <= CLIP_SAMPLES
        windows = [] if fits and goes_on(last, chunk) else self.flush()
        self._chunks.append(chunk)
        full = self._n_samples >= self._window_samples
        return windows + self.flush() if full else windows

    @property
    def _n_samples(self) -> int:
        return sum(len(chunk.samples) for chunk in self._chunks)

    def flush(self) -> list[AudioChunk]:
        """What is left, as a short window."""
        chunks, self._chunks = self._chunks, []
        return [joined(chunks)] if chunks else []

    def control(self, _control: Control | Silence) -> list[AudioChunk]:
        """Nothing: windows take no turns."""
        return []


class Listener:
    """Encodes what a collector makes of one source's chunks, each of its clips as a segment."""

    def __init__(
        self,
        engine: AnyEngine,
        tokenizer: Tokenizer,
        clock: Clock,
        collector: Collector,
        *,
        name: str = "",
        is_named: bool = False,
    ) -> None:
        """Listen to what `collector` gives; names as in `Watcher`."""
        self.name, self._prefix = name, f"{name}: " if is_named else ""
        self._engine, self._tokenizer, self._clock = engine, tokenizer, clock
        self._collector = collector
        self._clips: deque[tuple[AudioChunk, int]] = deque()  # with the time since it is due
        self._mel = LogMelStream(engine.spec.audio.n_mels)
        self.rung = LADDER[0]

    @property
    def mode(self) -> Mode:
        """Whose speech takes the turn."""
        return self._collector.mode

    def wants(self, _n: int) -> bool:
        """Whether sound is taken on this rung."""
        return self.rung.sound

    def start_again(self) -> None:
        """Nothing: no clip builds on another."""

    @property
    def n_waiting(self) -> int:
        """Clips that are complete and not encoded."""
        return len(self._clips)

    def take(self, item: AudioChunk | Control | Silence) -> list[TurnEvent]:
        """Take a chunk, what a client wants, or silence; what that says about turns.

        Raises:
            MediaError: a sample is not a finite number.
            ProtocolError: what the client wants cannot be done now.
        """
        if isinstance(item, AudioChunk):
            return self._keep(self._collector.push(item), end_ns(item))
        return self._keep(self._collector.control(item), self._clock.now_ns())

    def flush(self) -> list[TurnEvent]:
        """At the end of the source: what is left."""
        return self._keep(self._collector.flush(), self._clock.now_ns())

    def wait(self, clip: AudioChunk, due_ns: int) -> None:
        """Let a clip wait behind the others, which could have been taken at `due_ns`."""
        self._clips.append((clip, due_ns))

    def _keep(self, found: Sequence[AudioChunk | TurnEvent], due_ns: int) -> list[TurnEvent]:
        """Clips that take no turn wait here; the rest is for the loop."""
        events: list[TurnEvent] = []
        for one in found:
            if isinstance(one, AudioChunk):
                self.wait(one, due_ns)
            elif isinstance(one, Cut | Overheard):
                self.wait(one.utterance.clip, due_ns)
            else:
                events.append(one)
        return events

    def encode(self) -> Seen:
        """The clip that waits longest, as a segment."""
        clip, due_ns = self._clips.popleft()
        taken_ns = self._clock.now_ns()
        # more than one where a long chunk came at the end
        mels = self._mel.push(clip.samples) + self._mel.flush()
        features_ns = self._clock.now_ns()
        media = np.concatenate([self._engine.encode_audio(mel) for mel in mels])
        text = self._prefix + audio_text(len(media))
        rows = embed_media(self._engine, self._tokenizer, text, media)
        evidence = Evidence(self.name or clip.source, clip.capture_ns, end_ns(clip))
        stages = Stages(
            modality="audio",
            captured_ns=evidence.end_ns,
            taken_ns=taken_ns,
            features_ns=features_ns,
            encoded_ns=self._clock.now_ns(),
        )
        return Seen(Perceived("audio", rows, evidence), stages, due_ns)


class Perceiver(Protocol):
    """What makes segments of a source's items."""

    name: str
    """The source in evidence; empty leaves it to its items."""
    rung: Rung
    """How much of the source is perceived; the loop sets it."""

    @property
    def n_waiting(self) -> int:
        """What is complete and not encoded."""

    def wants(self, n: int) -> bool:
        """Whether the source's item number `n` is taken at all."""

    def start_again(self) -> None:
        """The context has forgotten its older part: build on nothing that was said before."""

    def take(self, item: Any) -> list[TurnEvent]:
        """Take the next item; what it says about turns.

        Raises:
            EdgeError: the item cannot be used.
        """

    def flush(self) -> list[TurnEvent]:
        """At the end of the source: what is left."""

    def encode(self) -> Seen:
        """What waits longest, as a segment.

        Raises:
            MediaError: it cannot be used.
        """


def encoded(perceiver: Perceiver) -> Iterator[Seen]:
    """All that waits, as segments."""
    while perceiver.n_waiting:
        yield perceiver.encode()
