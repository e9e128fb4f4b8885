"""The composition root: which bundle, which engine, which senses, which socket."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from edge.clock import MonotonicClock
from edge.config import Config
from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine
from edge.model.prompt import ChatTemplate
from edge.model.tokenizer import Tokenizer
from edge.senses.recording import Recording
from edge.serve import unix_socket
from edge.serve.app import make_app, serving
from edge.session.answer import LivePrompt
from edge.session.loop import LiveLoop

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
        loop, model = _session(bundle_path, config, senses)
        log.info("event=ready socket=%s model=%s", path, model)
        asyncio.run(_serve(loop, make_app(loop, config, model), listener))
    finally:
        unix_socket.release(path, listener)
        listener.close()
    log.info("event=stopped")


def _session(bundle_path: Path, config: Config, senses: Senses) -> tuple[LiveLoop, str]:
    """Load the bundle and wire the session; returns it and the model's name."""
    bundle, clock = Bundle(bundle_path), MonotonicClock()
    engine, model = CpuEngine(bundle), bundle.manifest.name
    prompt = LivePrompt(Tokenizer(bundle.path), ChatTemplate(bundle.path), config.context.system)
    start_ns, fps = clock.now_ns(), config.perception.fps
    video = None if senses.video is None else senses.video.video(clock, start_ns, fps)
    audio = None if senses.audio is None else senses.audio.sound(clock, start_ns)
    loop = LiveLoop(
        engine, prompt, config, clock, model, start_ns=start_ns, video=video, audio=audio
    )
    return loop, model


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
        async with serving(app, listener):
            await ended.wait()
            loop.stop()
    finally:
        loop.stop()
        await asyncio.to_thread(thread.join)
    for failure in failures:
        raise failure
