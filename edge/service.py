"""The composition root: which bundle, which engine, which senses, which socket."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from edge.clock import MonotonicClock
from edge.config import Config, Perception
from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine
from edge.errors import ConfigurationError
from edge.features.evs import CausalPruner
from edge.model.prompt import ChatTemplate
from edge.model.sampling import Sampling
from edge.model.tokenizer import Tokenizer
from edge.senses.recording import Recording
from edge.senses.turns import UtteranceDetector
from edge.serve import unix_socket
from edge.serve.app import make_app, serving
from edge.session.answer import LivePrompt
from edge.session.loop import LiveLoop
from edge.session.perceive import Collector, WindowCollector
from edge.session.sense import Sense, audio_sense, video_sense

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Senses:
    """Which recordings stand for the camera and the microphone."""

    video: Recording | None
    audio: Recording | None


def open_senses(video: Path | None, audio: Path | None, *, sound: bool) -> Senses:
    """Check the recordings.

    Args:
        video: stands for the camera.
        audio: stands for the microphone; None takes the video's sound track, if it has one.
        sound: False leaves the video's sound track out.
    Raises:
        MediaError: one of them cannot be played.
    """
    film = None if video is None else Recording.open(video, need=["video"])
    if audio is not None:
        return Senses(film, Recording.open(audio, need=["sound"]))
    return Senses(film, film if sound else None)


def run(bundle_path: Path, config: Config, senses: Senses) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        EdgeError: the service cannot start, or its engine failed.
    """
    path = Path(config.socket.path)
    listener = unix_socket.bind(path)
    try:
        bundle = Bundle(bundle_path)
        loop = _session(bundle, config, senses)
        own, model = bundle.manifest.spec.sampling, bundle.manifest.name
        app = make_app(loop, config, model, Sampling(own.temperature, own.top_p))
        log.info("event=ready socket=%s model=%s", path, model)
        asyncio.run(_serve(loop, app, listener))
    finally:
        unix_socket.release(path, listener)
        listener.close()
    log.info("event=stopped")


def _session(bundle: Bundle, config: Config, senses: Senses) -> LiveLoop:
    """Load the engine and wire the session."""
    clock, engine = MonotonicClock(), CpuEngine(bundle)
    prompt = LivePrompt(Tokenizer(bundle.path), ChatTemplate(bundle.path), config.context.system)
    _check_room(config, engine.spec.decoder.max_tokens)
    start_ns, tokenizer = clock.now_ns(), prompt.tokenizer
    parts: list[Sense[Any]] = []  # sound first: an utterance may be a question
    if senses.audio and (sound := senses.audio.sound(clock, start_ns)):
        collector = _collector(config.perception)
        parts.append(audio_sense(sound, engine, tokenizer, clock, collector))
    if senses.video and (film := senses.video.video(clock, start_ns, config.perception.fps)):
        pruner = _pruner(config.perception, engine.spec.vision.tubelet_frames)
        parts.append(video_sense(film, engine, tokenizer, clock, start_ns, pruner))
    return LiveLoop(engine, prompt, config, clock, bundle.manifest.name, parts, start_ns=start_ns)


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
