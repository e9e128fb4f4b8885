"""The composition root: which bundle, which engine, which senses, which socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

from edge.clock import Clock, MonotonicClock
from edge.config import Config
from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine
from edge.errors import EdgeError, EngineError
from edge.model.prompt import ChatTemplate
from edge.model.tokenizer import Tokenizer
from edge.senses.recording import Recording
from edge.senses.source import AudioSource, FrameSource
from edge.serve import unix_socket
from edge.serve.app import make_app, serving
from edge.session.answer import LivePrompt
from edge.session.loop import LiveLoop

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Senses:
    """Which recordings stand for the camera and the microphone."""

    video: Path | None = None
    audio: Path | None = None
    """None takes the video's own sound track, if it has one."""
    sound: bool = True
    """False leaves the video's sound track out."""


def open_senses(
    senses: Senses, config: Config, clock: Clock
) -> tuple[FrameSource | None, AudioSource | None]:
    """Open the recordings; they play from the moment they are read.

    Raises:
        MediaError: one of them cannot be played.
    """
    raise NotImplementedError


def run(bundle_path: Path, config: Config, senses: Senses) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        EdgeError: the service cannot start, or its engine failed.
    """
    clock = MonotonicClock()
    video, audio = open_senses(senses, config, clock)
    listener = unix_socket.bind(Path(config.socket.path))
    try:
        loop = _session(bundle_path, config, clock, video, audio)
        log.info("event=ready socket=%s model=%s", config.socket.path, loop.status().model)
        asyncio.run(_serve(loop, config, listener))
    finally:
        unix_socket.release(Path(config.socket.path), listener)
        listener.close()
    log.info("event=stopped")


def _session(
    bundle_path: Path,
    config: Config,
    clock: Clock,
    video: FrameSource | None,
    audio: AudioSource | None,
) -> LiveLoop:
    bundle = Bundle(bundle_path)
    prompt = LivePrompt(Tokenizer(bundle.path), ChatTemplate(bundle.path), config.context.system)
    return LiveLoop(
        CpuEngine(bundle), prompt, config, clock, bundle.manifest.name, video=video, audio=audio
    )


async def _serve(loop: LiveLoop, config: Config, listener: unix_socket.Listener) -> None:
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
        async with serving(make_app(loop, config, loop.status().model), listener):
            await ended.wait()
            loop.stop()
    finally:
        loop.stop()
        await asyncio.to_thread(thread.join)
    for failure in failures:
        raise failure


_ = (contextlib, EdgeError, EngineError)
