"""The composition root: which bundle, which engine, which senses, which socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from edge.clock import Clock, MonotonicClock
from edge.config import Config, Perception
from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine
from edge.errors import ConfigurationError
from edge.features.evs import CausalPruner
from edge.model.constrain import vocabulary
from edge.model.prompt import ChatTemplate
from edge.model.sampling import Sampling
from edge.model.tokenizer import Tokenizer
from edge.senses.recording import Recording, Repeated
from edge.senses.source import AudioSource, FrameSource
from edge.senses.turns import TurnDetector
from edge.serve import tcp, unix_socket
from edge.serve.app import make_app, serving
from edge.session.answer import LivePrompt
from edge.session.health import linux_health
from edge.session.loop import LiveLoop
from edge.session.perceive import Collector, Listener, Watcher, WindowCollector
from edge.session.sense import Sense, audio_sense, video_sense

if TYPE_CHECKING:
    from edge.session.record import Recorder, ReplayedClock
    from edge.session.replay import Observed, Replayed

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0002
"""A thread that computes in Python lets another in after so long: the socket's sends a token while
the loop's goes on. Python's own 5 ms would be most of the time between two tokens."""
VIDEO, AUDIO = "video", "audio"
"""What the command line's recordings are called; their evidence names the file."""


@dataclass(frozen=True, slots=True)
class Senses:
    """Which recordings stand for cameras and microphones, by name."""

    cameras: dict[str, Recording]
    microphones: dict[str, Recording]
    repeat: bool = False
    """Play them again and again."""

    def sound(self, name: str, clock: Clock, start_ns: int) -> AudioSource | None:
        """What a microphone hears."""
        recording = self.microphones[name]
        repeated = Repeated(recording, clock, start_ns)
        return repeated if self.repeat else recording.sound(clock, start_ns)

    def film(self, name: str, clock: Clock, start_ns: int, fps: float) -> FrameSource | None:
        """What a camera sees."""
        recording = self.cameras[name]
        repeated = Repeated(recording, clock, start_ns, fps)
        return repeated if self.repeat else recording.video(clock, start_ns, fps)


def open_senses(
    config: Config, video: Path | None, audio: Path | None, *, sound: bool, repeat: bool = False
) -> Senses:
    """Check the recordings.

    Args:
        config: its cameras and microphones are opened unless `video` or `audio` is given.
        video: stands for the camera.
        audio: stands for the microphone; None takes the video's sound track, if it has one.
        sound: False leaves all sound out.
        repeat: play them again and again.
    Raises:
        MediaError: one of them cannot be played.
    """
    if video is None and audio is None:
        cameras = {c.name: Recording.open(Path(c.source), need=["video"]) for c in config.camera}
        ears = config.microphone if sound else ()
        microphones = {m.name: Recording.open(Path(m.source), need=["sound"]) for m in ears}
        return Senses(cameras, microphones, repeat)
    film = None if video is None else Recording.open(video, need=["video"])
    heard = film if audio is None and sound else None
    if audio is not None:
        heard = Recording.open(audio, need=["sound"])
    return Senses(
        {} if film is None else {VIDEO: film},
        {} if heard is None or "sound" not in heard.tracks else {AUDIO: heard},
        repeat,
    )


def run(bundle_path: Path, config: Config, senses: Senses, record: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        record: file to write the session to.
    Raises:
        EdgeError: the service cannot start, or its engine failed.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    path = Path(config.socket.path)
    listener = unix_socket.bind(path)
    try:
        with contextlib.ExitStack() as stack:
            address = config.socket.tcp
            tcp_listener = stack.enter_context(tcp.bind(address)) if address else None
            clock: Clock = MonotonicClock()
            recorder: Recorder | None = None
            if record is not None:
                from edge.session.record import RecordedClock, Recorder

                clock = RecordedClock(clock)
                recorder = stack.enter_context(Recorder(record, clock))
            bundle = Bundle(bundle_path)
            loop = _session(bundle, config, senses, clock, recorder)
            own, model = bundle.manifest.spec.sampling, bundle.manifest.name
            app = make_app(loop, config, model, Sampling(own.temperature, own.top_p))
            log.info("event=ready socket=%s model=%s", path, model)
            asyncio.run(_serve(loop, app, listener, tcp_listener))
    finally:
        unix_socket.release(path, listener)
        listener.close()
    log.info("event=stopped")


def _session(
    bundle: Bundle, config: Config, senses: Senses, clock: Clock, recorder: Recorder | None
) -> LiveLoop:
    """Load the engine and wire the session."""
    engine, prompt = _parts(bundle, config)
    start_ns, tokenizer = clock.now_ns(), prompt.tokenizer
    name = bundle.manifest.name
    if recorder is not None:
        settings = msgspec.to_builtins(config)
        recorder.describe(name, start_ns, settings, [*senses.microphones], [*senses.cameras])
    playing = {name: senses.sound(name, clock, start_ns) for name in senses.microphones}
    films = {n: senses.film(n, clock, start_ns, config.perception.fps) for n in senses.cameras}
    parts = _senses(engine, tokenizer, config, clock, start_ns, playing, films)
    return LiveLoop(
        *(engine, prompt, config, clock, name, parts),
        start_ns=start_ns,
        recorder=recorder,
        health=linux_health,
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
        engine, prompt = _parts(bundle, config)
        tokenizer, start_ns = prompt.tokenizer, about["start_ns"]
        microphones = dict.fromkeys(about["microphones"])
        cameras = dict.fromkeys(about["cameras"])
        senses = _senses(engine, tokenizer, config, clock, start_ns, microphones, cameras)
        loop = LiveLoop(
            *(engine, prompt, config, clock, about["model"], senses),
            start_ns=start_ns,
            recorder=observed,
        )
        return loop, senses

    return replay(path, build)


def _parts(bundle: Bundle, config: Config) -> tuple[CpuEngine, LivePrompt]:
    engine = CpuEngine(bundle)
    engine.load_encoders()
    _check_room(config, engine.spec.decoder.max_tokens)
    template = ChatTemplate(bundle.path)
    tokenizer = Tokenizer(bundle.path)
    # Slow the first time: not to be waited for in the first turn that asks for a format.
    vocabulary(tokenizer, engine.spec.decoder.vocab_size, (tokenizer.special.turn_end,))
    return engine, LivePrompt(tokenizer, template, config.context.system)


def _senses(
    engine: CpuEngine,
    tokenizer: Tokenizer,
    config: Config,
    clock: Clock,
    start_ns: int,
    microphones: Mapping[str, AudioSource | None],
    cameras: Mapping[str, FrameSource | None],
) -> list[Sense[Any]]:
    """Sound first: an utterance may be a question. Without a source others put the items."""
    parts: list[Sense[Any]] = []
    for n, (name, sound) in enumerate(microphones.items()):
        listener = Listener(
            *(engine, tokenizer, clock, _collector(config, takes_turns=n == 0)),
            name="" if name == AUDIO else name,
            is_named=len(microphones) > 1,
        )
        parts.append(audio_sense(listener, sound, name))
    for name, film in cameras.items():
        watcher = Watcher(
            *(engine, tokenizer, clock, start_ns),
            _pruner(config.perception, engine.spec.vision.tubelet_frames, len(cameras)),
            name="" if name == VIDEO else name,
            is_named=len(cameras) > 1,
        )
        parts.append(video_sense(watcher, film, name))
    return parts


def _pruner(perception: Perception, tubelet_frames: int, n_cameras: int = 1) -> CausalPruner | None:
    """The budget of tokens is shared by all cameras."""
    if perception.evs_tokens_per_s == 0:
        return None
    max_tubelets_per_s = math.ceil(perception.fps / tubelet_frames) + 1  # one more by jitter
    return CausalPruner(
        perception.evs_tokens_per_s // n_cameras,
        max_tubelets_per_s,
        whole_pictures=perception.evs_keep == "pictures",
    )


def _collector(config: Config, takes_turns: bool = True) -> Collector:
    if config.perception.listen == "utterances":
        return TurnDetector(config.turns.mode if takes_turns else "typed")
    return WindowCollector(config.perception.audio_window_s)


def _check_room(config: Config, model_max_tokens: int) -> None:
    """Live context, question and answer share the model's own context."""
    context, answer = config.context.max_tokens, config.answer.max_tokens
    if context + answer >= model_max_tokens:
        raise ConfigurationError(
            "context.max_tokens",
            f"is {context}; with answers of {answer} that exceeds the model's {model_max_tokens}",
            "lower it",
        )


async def _serve(
    loop: LiveLoop,
    app: web.Application,
    listener: unix_socket.Listener,
    tcp_listener: socket.socket | None,
) -> None:
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
        async with serving(app, listener.dup(), tcp_listener):
            await ended.wait()
            loop.stop()
    finally:
        loop.stop()
        await asyncio.to_thread(thread.join)
    for failure in failures:
        raise failure
