"""The loop: takes what the senses deliver, keeps the live context, answers questions.

One thread owns the engine and runs `run`. Others put: each sense its ring, the socket its turns.
A step does one thing and looks again: a waiting question first, then sound, then sight. What
arrives meanwhile waits in a bounded ring; a full ring drops its oldest and counts it.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TypeVar

from edge.clock import NS_PER_MS, Clock
from edge.config import Config, Perception
from edge.engines.engine import AnyEngine
from edge.errors import CapacityError, EdgeError, EngineError, MediaError, ProtocolError
from edge.features.evs import CausalPruner
from edge.senses.ring import Ring
from edge.senses.source import AudioSource, FrameSource
from edge.senses.turns import UtteranceDetector
from edge.session.answer import LivePrompt, answer
from edge.session.context import LiveContext
from edge.session.perceive import Collector, Listener, Seen, Watcher, WindowCollector
from edge.session.turn import AnswerEvent, Done, Failed, Question, Status, Turn
from edge.types import AudioChunk, Frame, Stages

log = logging.getLogger(__name__)

T = TypeVar("T")
AUDIO_RING_CHUNKS = 300
"""30 s of sound in chunks of 0.1 s may wait."""
N_RECENT_STAGES = 32
FEED_JOIN_S = 2.0
"""A source may sleep until its next frame; its thread does not outlive the process."""


class LiveLoop:
    """A live session over one engine."""

    def __init__(
        self,
        engine: AnyEngine,
        prompt: LivePrompt,
        config: Config,
        clock: Clock,
        model: str,
        *,
        start_ns: int,
        video: FrameSource | None = None,
        audio: AudioSource | None = None,
    ) -> None:
        """Prefill the anchor; nothing plays before `run`.

        Args:
            model: the name that clients see.
            start_ns: the session's time 0, from which the prompt counts.
        """
        self._clock, self._model, self._prompt, self._config = clock, model, prompt, config
        self._start_ns = start_ns
        self._context = LiveContext(
            engine,
            prompt.anchor(),
            prompt.separator(),
            max_tokens=config.context.max_tokens,
            keep_tokens=config.context.keep_tokens,
        )
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._video, self._audio = video, audio
        self._frames: Ring[Frame] = Ring(engine.spec.vision.tubelet_frames, self._wake.set)
        self._chunks: Ring[AudioChunk] = Ring(AUDIO_RING_CHUNKS, self._wake.set)
        tokenizer = prompt.tokenizer
        pruner = _pruner(config.perception, engine.spec.vision.tubelet_frames)
        self._watcher = Watcher(engine, tokenizer, clock, start_ns, pruner)
        self._n_rebuilds_watched = 0
        self._listener = Listener(engine, tokenizer, clock, _collector(config.perception))
        self._turns: deque[Turn] = deque()
        self._turns_lock = threading.Lock()
        self._ended: deque[Callable[[], list[Seen]]] = deque()
        self._counters: Counter[str] = Counter()
        self._defects: list[Exception] = []
        self._recent: deque[Stages] = deque(maxlen=N_RECENT_STAGES)

    # What other threads call.

    def ask(self, question: Question, deliver: Callable[[AnswerEvent], None]) -> Turn:
        """Queue a question; `deliver` is called from the loop's thread.

        Raises:
            CapacityError: socket.max_waiting questions wait already.
        """
        turn = Turn(question, self._clock.now_ns(), deliver)
        with self._turns_lock:
            limit = self._config.socket.max_waiting
            if len(self._turns) >= limit:
                raise CapacityError(
                    "question", f"{limit} others are waiting already", "ask again later"
                )
            self._turns.append(turn)
        self._wake.set()
        return turn

    def status(self) -> Status:
        """The session as it stands."""
        counters = dict(self._counters)
        counters["frames_dropped"] = self._frames.n_dropped
        counters["chunks_dropped"] = self._chunks.n_dropped
        counters["rebuilds"] = self._context.n_rebuilds
        return Status(
            ready=not self._stopped.is_set(),
            model=self._model,
            n_context_tokens=self._context.n_tokens,
            max_context_tokens=self._context.max_tokens,
            counters=counters,
            uptime_ns=self._clock.now_ns() - self._start_ns,
            start_ns=self._start_ns,
            recent=tuple(self._recent),
        )

    def stop(self) -> None:
        """End `run` after the step it is in."""
        self._stopped.set()
        with self._turns_lock:
            for turn in self._turns:
                turn.cancel()
        self._wake.set()
        for source in (self._video, self._audio):
            if source is not None:
                source.close()

    # What the loop's own thread does.

    def run(self) -> None:
        """Play the sources and step until `stop`.

        Raises:
            EngineError: the engine failed; the service must end.
        """
        feeds = []
        if self._video is not None:
            feeds.append(self._feed("video", self._video.frames(), self._frames, self._watcher))
        if self._audio is not None:
            feeds.append(self._feed("audio", self._audio.chunks(), self._chunks, self._listener))
        try:
            while not self._stopped.is_set():
                self._wake.clear()
                if not self.step():
                    self._wake.wait()
                if self._defects:
                    raise self._defects[0]
        finally:
            self.stop()
            self._refuse_waiting()
            for feed in feeds:
                feed.join(FEED_JOIN_S)

    def _refuse_waiting(self) -> None:
        """Tell those who still wait; nobody will answer them."""
        with self._turns_lock:
            waiting, self._turns = list(self._turns), deque()
        for turn in waiting:
            turn.deliver(Failed(CapacityError("service", "is stopping", "ask again later")))

    def _feed(
        self, sense: str, items: Iterator[T], ring: Ring[T], collector: Watcher | Listener
    ) -> threading.Thread:
        """Start the thread that moves one source's items into its ring, at the source's pace."""

        def move() -> None:
            try:
                for item in items:
                    ring.put(item)
                    self._counters[f"{sense}_received"] += 1
                log.info("sense=%s event=ended", sense)
            except EdgeError as error:
                self._counters[f"{sense}_failed"] += 1
                log.error("sense=%s event=failed error=%s", sense, error)
            except Exception as defect:  # noqa: BLE001  a thread's top: the loop raises it
                self._defects.append(defect)
            self._ended.append(collector.flush)
            self._wake.set()

        thread = threading.Thread(target=move, name=sense, daemon=True)
        thread.start()
        return thread

    def step(self) -> bool:
        """Do the most urgent thing; False when there is nothing to do."""
        with self._turns_lock:
            turn = self._turns.popleft() if self._turns else None
        if turn is not None:
            self._answer(turn)
            return True
        if (chunk := self._chunks.take()) is not None:
            self._perceive(partial(self._listener.push, chunk))
            return True
        if (frame := self._frames.take()) is not None:
            self._perceive(partial(self._watch, frame))
            return True
        if self._ended:
            self._perceive(self._ended.popleft())
            return True
        return False

    def _perceive(self, collect: Callable[[], list[Seen]]) -> None:
        """Take what a sense has collected into the state, segment by segment."""
        try:
            for seen in collect():
                self._append(seen)
        except (MediaError, CapacityError) as error:
            self._counters["segments_refused"] += 1
            log.warning("segment=refused error=%s", error)

    def _watch(self, frame: Frame) -> list[Seen]:
        if self._context.n_rebuilds > self._n_rebuilds_watched:
            self._n_rebuilds_watched = self._context.n_rebuilds
            self._watcher.start_again()
        return self._watcher.push(frame)

    def _append(self, seen: Seen) -> None:
        before = self._context.n_tokens
        self._context.append(seen.perceived)
        stages = replace(
            seen.stages,
            prefilled_ns=self._clock.now_ns(),
            n_tokens=len(seen.perceived.embeddings),
        )
        self._recent.append(stages)
        self._counters[f"{stages.modality}_segments"] += 1
        if stages.modality == "video":
            self._counters["video_tokens_kept"] += stages.n_kept
            self._counters["video_tokens_pruned"] += stages.n_pruned
        log.info(
            "segment=%s tokens=%d pruned=%d context=%d->%d late_ms=%.1f features_ms=%.1f "
            "encode_ms=%.1f prefill_ms=%.1f",
            *(stages.modality, stages.n_tokens, stages.n_pruned),
            *(before, self._context.n_tokens),
            (stages.taken_ns - stages.captured_ns) / NS_PER_MS,
            (stages.features_ns - stages.taken_ns) / NS_PER_MS,
            (stages.encoded_ns - stages.features_ns) / NS_PER_MS,
            (stages.prefilled_ns - stages.encoded_ns) / NS_PER_MS,
        )

    def _answer(self, turn: Turn) -> None:
        outcome: Done | Failed
        try:
            outcome = answer(self._context, self._prompt, turn, self._clock)
            self._counters["answers"] += 1
        except (ProtocolError, CapacityError) as error:
            outcome = Failed(error)
            self._counters["answers_refused"] += 1
        except EngineError as error:
            turn.deliver(Failed(error))
            raise
        turn.deliver(outcome)
        _log_turn(outcome)


def _pruner(perception: Perception, tubelet_frames: int) -> CausalPruner | None:
    if perception.evs_tokens_per_s == 0:
        return None
    max_tubelets_per_s = math.ceil(perception.fps / tubelet_frames) + 1  # one more by jitter
    return CausalPruner(
        perception.evs_tokens_per_s,
        max_tubelets_per_s,
        whole_pictures=perception.evs_keep == "pictures",
    )


def _collector(perception: Perception) -> Collector:
    if perception.listen == "utterances":
        return UtteranceDetector()
    return WindowCollector(perception.audio_window_s)


def _log_turn(outcome: Done | Failed) -> None:
    if isinstance(outcome, Failed):
        log.warning("turn=refused error=%s", outcome.error)
        return
    times = outcome.timeline
    log.info(
        "turn=%s prompt_tokens=%d completion_tokens=%d waited_ms=%.1f first_token_ms=%.1f "
        "total_ms=%.1f",
        *(outcome.finish_reason, outcome.n_prompt_tokens, outcome.n_completion_tokens),
        (times.started_ns - times.asked_ns) / NS_PER_MS,
        (times.first_token_ns - times.asked_ns) / NS_PER_MS,
        (times.finished_ns - times.asked_ns) / NS_PER_MS,
    )
