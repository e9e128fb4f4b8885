"""The composition root: which bundle, which engine, which senses, which socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from edge.clock import Clock, MonotonicClock
from edge.config import Config, Perception
from edge.engines.bundle import Bundle
from edge.engines.choose import Choice, opened
from edge.engines.engine import AnyEngine
from edge.errors import ConfigurationError
from edge.features.evs import CausalPruner
from edge.model.prompt import ChatTemplate
from edge.model.sampling import Sampling
from edge.model.tokenizer import Tokenizer
from edge.senses.recording import Recording, Repeated
from edge.senses.source import AudioSource, FrameSource
from edge.senses.turns import UtteranceDetector
from edge.serve import unix_socket
from edge.serve.app import make_app, serving
from edge.session.answer import LivePrompt
from edge.session.loop import LiveLoop
from edge.session.perceive import Collector, Listener, Watcher, WindowCollector
from edge.session.sense import Sense, audio_sense, video_sense

if TYPE_CHECKING:
    from edge.session.record import Recorder, ReplayedClock
    from edge.session.replay import Observed, Replayed

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Senses:
    """Which recordings stand for the camera and the microphone."""

    video: Recording | None
    audio: Recording | None
    repeat: bool = False
    """Play them again and again."""

    def sound(self, clock: Clock, start_ns: int) -> AudioSource | None:
        """What is heard; None if nothing is."""
        if self.audio is None or "sound" not in self.audio.tracks:
            return None
        repeated = Repeated(self.audio, clock, start_ns)
        return repeated if self.repeat else self.audio.sound(clock, start_ns)

    def film(self, clock: Clock, start_ns: int, fps: float) -> FrameSource | None:
        """What is seen; None if nothing is."""
        if self.video is None or "video" not in self.video.tracks:
            return None
        repeated = Repeated(self.video, clock, start_ns, fps)
        return repeated if self.repeat else self.video.video(clock, start_ns, fps)


def open_senses(
    video: Path | None, audio: Path | None, *, sound: bool, repeat: bool = False
) -> Senses:
    """Check the recordings.

    Args:
        video: stands for the camera.
        audio: stands for the microphone; None takes the video's sound track, if it has one.
        sound: False leaves the video's sound track out.
        repeat: play them again and again.
    Raises:
        MediaError: one of them cannot be played.
    """
    film = None if video is None else Recording.open(video, need=["video"])
    if audio is not None:
        return Senses(film, Recording.open(audio, need=["sound"]), repeat)
    return Senses(film, film if sound else None, repeat)


def run(
    bundle_path: Path,
    config: Config,
    senses: Senses,
    choice: Choice,
    record: Path | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        choice: of the engine.
        record: file to write the session to.
    Raises:
        EdgeError: the service cannot start, or its engine failed.
    """
    path = Path(config.socket.path)
    listener = unix_socket.bind(path)
    try:
        with contextlib.ExitStack() as stack:
            clock: Clock = MonotonicClock()
            recorder: Recorder | None = None
            if record is not None:
                from edge.session.record import RecordedClock, Recorder

                clock = RecordedClock(clock)
                recorder = stack.enter_context(Recorder(record, clock))
            bundle = Bundle(bundle_path)
            engine = stack.enter_context(opened(bundle, choice))
            loop = _session(engine, bundle, config, senses, clock, recorder)
            own, model = bundle.manifest.spec.sampling, bundle.manifest.name
            app = make_app(loop, config, model, Sampling(own.temperature, own.top_p))
            log.info("event=ready socket=%s model=%s", path, model)
            asyncio.run(_serve(loop, app, listener))
    finally:
        unix_socket.release(path, listener)
        listener.close()
    log.info("event=stopped")


def _session(
    engine: AnyEngine,
    bundle: Bundle,
    config: Config,
    senses: Senses,
    clock: Clock,
    recorder: Recorder | None,
) -> LiveLoop:
    """Wire the session."""
    prompt = _prompt(engine, bundle, config)
    start_ns, tokenizer = clock.now_ns(), prompt.tokenizer
    name = bundle.manifest.name
    if recorder is not None:
        recorder.describe(name, start_ns, msgspec.to_builtins(config))
    parts: list[Sense[Any]] = []  # sound first: an utterance may be a question
    if (sound := senses.sound(clock, start_ns)) is not None:
        listener = Listener(engine, tokenizer, clock, _collector(config.perception))
        parts.append(audio_sense(listener, sound))
    if (film := senses.film(clock, start_ns, config.perception.fps)) is not None:
        watcher = _watcher(engine, tokenizer, clock, start_ns, config.perception)
        parts.append(video_sense(watcher, film))
    return LiveLoop(
        engine, prompt, config, clock, name, parts, start_ns=start_ns, recorder=recorder
    )


def replay(bundle_path: Path, path: Path) -> Iterator[Replayed]:
    """Run a recorded session again on a bundle.

    Raises:
        EdgeError: the bundle or the recording cannot be used.
    """
    from edge.session.replay import replay

    bundle = Bundle(bundle_path)

    def build(
        about: dict[str, Any], clock: ReplayedClock, observed: Observed
    ) -> tuple[LiveLoop, list[Sense[Any]]]:
        config = msgspec.convert(about["settings"], Config)
        prompt = _prompt(engine, bundle, config)
        tokenizer, start_ns = prompt.tokenizer, about["start_ns"]
        listener = Listener(engine, tokenizer, clock, _collector(config.perception))
        watcher = _watcher(engine, tokenizer, clock, start_ns, config.perception)
        senses: list[Sense[Any]] = [audio_sense(listener), video_sense(watcher)]
        loop = LiveLoop(
            *(engine, prompt, config, clock, about["model"], senses),
            start_ns=start_ns,
            recorder=observed,
        )
        return loop, senses

    with opened(bundle, Choice(unverified=True)) as engine:
        yield from replay(path, build)


def _prompt(engine: AnyEngine, bundle: Bundle, config: Config) -> LivePrompt:
    _check_room(config, engine.spec.decoder.max_tokens)
    template = ChatTemplate(bundle.path)
    return LivePrompt(Tokenizer(bundle.path), template, config.context.system)


def _watcher(
    engine: AnyEngine, tokenizer: Tokenizer, clock: Clock, start_ns: int, perception: Perception
) -> Watcher:
    pruner = _pruner(perception, engine.spec.vision.tubelet_frames)
    return Watcher(engine, tokenizer, clock, start_ns, pruner)


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


def _check_room(config: Config, model_max_tokens: int) -> None:
    """Live context, question and answer share the model's own context."""
    context, answer = config.context.max_tokens, config.answer.max_tokens
    if context + answer >= model_max_tokens:
        raise ConfigurationError(
            "context.max_tokens",
            f"is {context}; with answers of {answer} that exceeds the model's {model_max_tokens}",
            "lower it",
        )


async def _serve(loop: LiveLoop, app: web.Application, listener: unix_socket.Listener) -> None:
    """Run the loop in its thread and the socket in this one, until either ends."""
    ended = asyncio.Event()
    events = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        events.add_signal_handler(number, ended.set)
    failures: list[BaseException] = []

    def run_loop() -> None:
        try:
            loop.run()
        except Exception as error:  # noqa: BLE001  a thread's top: the main thread raises it
            failures.append(error)
        events.call_soon_threadsafe(ended.set)

    thread = threading.Thread(target=run_loop, name="loop")
    thread.start()
    try:
        async with serving(app, listener.dup()):
            await ended.wait()
            loop.stop()
    finally:
        loop.stop()
        await asyncio.to_thread(thread.join)
    for failure in failures:
        raise failure
