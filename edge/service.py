"""The composition root: which bundle, which engine, which senses, which socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from edge.clock import Clock, MonotonicClock
from edge.config import Config, Perception, Record, for_model, without_restart
from edge.engines.bundle import Bundle, prompts, refusing
from edge.engines.checked import Checking
from edge.engines.choose import Choice, opened
from edge.engines.engine import AnyEngine
from edge.engines.self_check import warm_up
from edge.errors import CapacityError, ConfigurationError, MediaError, ProtocolError
from edge.features.evs import CausalPruner
from edge.model.grammars import LIVE_S, Vocabulary, vocabulary
from edge.model.sampling import Sampling
from edge.model.tokenizer import Tokenizer
from edge.notify import Notifier
from edge.pulse import Pulse
from edge.senses.address import without_secrets
from edge.senses.camera import Camera, is_live
from edge.senses.media import Track
from edge.senses.microphone import DEVICE, Microphone
from edge.senses.recording import Recording, Repeated
from edge.senses.source import AudioSource, FrameSource
from edge.senses.turns import TurnDetector
from edge.serve import tcp, unix_socket
from edge.serve.app import CHANGE, make_app, serving
from edge.session.journal import Summary
from edge.session.live_prompt import LivePrompt
from edge.session.loop import LiveLoop
from edge.session.perceive import Collector, Listener, Watcher, WindowCollector
from edge.session.sense import Sense, audio_sense, video_sense
from edge.session.turn import Status
from edge.startup import Startup
from jetson.board import HealthReader

if TYPE_CHECKING:
    from edge.session.record import Recorded, RecordedClock, Recorder
    from edge.session.replay import Observed, Replayed

log = logging.getLogger(__name__)

DRAIN_S, DRAIN_LOOK_S = 2.5, 0.02
"""At the end the answers under way may take so long; how often to look whether they are done."""
VIDEO, AUDIO = "video", "audio"
"""What the command line's recordings are called; their evidence names the file."""


@dataclass(frozen=True, slots=True)
class Senses:
    """Cameras and microphones by name: what each one is, or the recording that stands for it."""

    cameras: dict[str, Recording | str]
    microphones: dict[str, Recording | str]
    repeat: bool = False
    """Play them again and again."""

    def sound(self, name: str, clock: Clock, start_ns: int) -> AudioSource | None:
        """What a microphone hears."""
        recording = self.microphones[name]
        if isinstance(recording, str):
            return Microphone(name, recording, clock)
        repeated = Repeated(recording, clock, start_ns)
        return repeated if self.repeat else recording.sound(clock, start_ns)

    def film(self, name: str, clock: Clock, start_ns: int, fps: float) -> FrameSource | None:
        """What a camera sees."""
        recording = self.cameras[name]
        if isinstance(recording, str):
            return Camera(name, recording, clock, fps)
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
        cameras = {c.name: _camera(c.source) for c in config.camera}
        ears = config.microphone if sound else ()
        return Senses(cameras, {m.name: _microphone(m.source) for m in ears}, repeat)
    film = None if video is None else Recording.open(video, need=["video"])
    heard = film if audio is None and sound else None
    if audio is not None:
        heard = Recording.open(audio, need=["sound"])
    return Senses(
        {} if film is None else {VIDEO: film},
        {} if heard is None or "sound" not in heard.tracks else {AUDIO: heard},
        repeat,
    )


def _camera(source: str) -> Recording | str:
    return source if is_live(source) else _recording(source, "video")


def _microphone(source: str) -> Recording | str:
    return source if source.startswith(DEVICE) else _recording(source, "sound")


def _recording(source: str, need: Track) -> Recording:
    try:
        return Recording.open(Path(source), need=[need])
    except MediaError as error:  # an address with a slip in it may hold a password, too
        raise MediaError(without_secrets(source), error.problem, error.remedy) from None


def run(
    checking: Checking,
    config: Config,
    senses: Senses,
    choice: Choice,
    record: Path | None = None,
    reload: Callable[[], Config] | None = None,
    given: socket.socket | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        checking: of the bundle.
        choice: of the engine.
        record: file to write the session to, in place of the settings' folder.
        reload: reads the settings again, at SIGHUP.
        given: the supervisor's socket, which stays open; None makes one.
    Raises:
        EdgeError: the service cannot start, or its engine failed.
    """
    notifier = Notifier.of(os.environ)
    startup = Startup(notifier)
    path = Path(config.socket.path)
    listener = given or unix_socket.bind(path)
    try:
        with contextlib.ExitStack() as stack:
            address = config.socket.tcp
            tcp_listener = stack.enter_context(tcp.bind(address)) if address else None
            clock: Clock = MonotonicClock()
            recorder: Recorder | None = None
            if record is not None or config.record.folder is not None:
                from edge.session.record import RecordedClock

                clock = RecordedClock(clock)
                recorder = stack.enter_context(_recorder(record, config.record, clock))
            startup.stage("bundle", f"checking every byte of {checking.path}")
            bundle = checking.open(config.bundle.trusted_keys)
            if bundle.signed:
                log.info("event=signed_bundle key=%s", bundle.signed.key_id)
            startup.stage("engine", f"loading {bundle.manifest.name}")
            engine = stack.enter_context(opened(bundle, choice))
            decoder = engine.spec.decoder

            def fitted(config: Config) -> Config:
                return for_model(config, decoder.trained_tokens, decoder.max_tokens)

            config = fitted(config)
            pulse = Pulse()
            parts = (clock, recorder, startup, notifier, pulse)
            loop = _session(engine, bundle, config, senses, *parts)
            own, model = bundle.manifest.spec.sampling, bundle.manifest.name
            sampling = Sampling(own.temperature, own.top_p, own.top_k)
            app = make_app(loop, config, model, sampling, pulse)
            changes = None
            if reload is not None:
                changes = Reload(loop, app, config, reload, fitted, notifier)
            _warn_of_missing(senses)
            startup.ready(str(path), model)
            asyncio.run(_serve(loop, app, listener, tcp_listener, notifier, changes, pulse))
    finally:
        if isinstance(listener, unix_socket.Listener):  # else it is the supervisor's
            unix_socket.release(path, listener)
            listener.close()
    log.info("event=stopped")


def _recorder(path: Path | None, wanted: Record, clock: RecordedClock) -> Recorder:
    from edge.session.record import Recorder
    from edge.session.record_files import Bounds

    if path is not None:
        return Recorder(path, clock)
    assert wanted.folder is not None
    bounds = Bounds(wanted.max_bytes, wanted.max_age_s, wanted.keep_free_bytes)
    return Recorder(Path(wanted.folder), clock, bounds)


def _warn_of_missing(senses: Senses) -> None:
    if not senses.cameras:
        log.warning("event=blind problem=there is no camera remedy=%s", "[[camera]] or --video")
    if not senses.microphones:
        log.warning(
            "event=deaf problem=there is no microphone remedy=%s", "[[microphone]] or --audio"
        )


def _session(
    engine: AnyEngine,
    bundle: Bundle,
    config: Config,
    senses: Senses,
    clock: Clock,
    recorder: Recorder | None,
    startup: Startup,
    notifier: Notifier,
    pulse: Pulse,
) -> LiveLoop:
    """Try the engine and wire the session."""
    prompt = _prompt(engine, bundle, config)
    startup.stage("self_check", "warming the engine and comparing it with its bundle")
    warm_up(engine, bundle)
    startup.stage("session", "reading the system prompt")
    start_ns, tokenizer = clock.now_ns(), prompt.tokenizer
    grammars = _grammars(engine, tokenizer)
    grammars.patience_s = LIVE_S  # a recording that is replayed can wait
    name = bundle.manifest.name
    if recorder is not None:
        settings = msgspec.to_builtins(config)
        recorder.describe(name, start_ns, settings, [*senses.microphones], [*senses.cameras])
    playing = {name: senses.sound(name, clock, start_ns) for name in senses.microphones}
    films = {n: senses.film(n, clock, start_ns, config.perception.fps) for n in senses.cameras}
    parts = _senses(engine, tokenizer, config, clock, start_ns, playing, films)
    summary = Summary(MonotonicClock())  # a recorded session's clock is not to be asked by it

    def alive() -> None:
        pulse.beat()
        summary.look(loop.status)
        notifier.alive(lambda: status_line(loop.status(), loop.n_turns), pulse.owed_s)

    loop = LiveLoop(
        *(engine, prompt, config, clock, name, parts),
        start_ns=start_ns,
        recorder=recorder,
        health=HealthReader(),
        alive=alive,
        counts_beside=grammars.counts.copy,
    )
    return loop


def status_line(status: Status, n_turns: int) -> str:
    """What `systemctl status` shows of a running service."""
    share = status.n_context_tokens / status.max_context_tokens
    counters = status.counters
    answering = f"answering {n_turns}, " if n_turns else ""
    failed = [name for name in status.senses if counters.get(f"{name}_failed")]
    failed += [problem.partition(":")[0] for problem in status.problems]
    without = f"without {', '.join(failed)}, " if failed else ""
    return (
        f"{without}{answering}context {share:.0%} full, {counters.get('answers', 0)} answers, "
        f"{counters['rebases']} rebases, degraded {counters.get('degraded', 0)} times"
    )


def replays(bundle_path: Path, recordings: Iterable[Recorded]) -> Iterator[Iterator[Replayed]]:
    """Run recorded sessions again on a bundle, one after the other, as far as they were recorded.

    Raises:
        EdgeError: the bundle or a recording cannot be used.
    """
    from edge.session.replay import replay

    bundle = Bundle(bundle_path)
    with opened(bundle, Choice(unverified=True)) as engine:
        for recorded in recordings:
            yield replay(recorded, partial(recorded_session, engine, bundle))


def recorded_session(
    engine: AnyEngine,
    bundle: Bundle,
    about: dict[str, Any],
    clock: Clock,
    observed: Observed | Recorder,
) -> tuple[LiveLoop, list[Sense[Any]]]:
    """The session that a recording describes, with senses that nothing plays.

    Raises:
        LookupError, TypeError, ValueError: it describes none.
        EdgeError: it has settings that cannot be used here.
    """
    config = msgspec.convert(about["settings"], Config)
    prompt = _prompt(engine, bundle, config)
    tokenizer, start_ns = prompt.tokenizer, about["start_ns"]
    microphones = dict.fromkeys(about["microphones"])
    cameras = dict.fromkeys(about["cameras"])
    senses = _senses(engine, tokenizer, config, clock, start_ns, microphones, cameras)
    parts = (engine, prompt, config, clock, about["model"], senses)
    return LiveLoop(*parts, start_ns=start_ns, recorder=observed), senses


_prompts = cache(prompts)
"""Once for all recordings that are replayed on a bundle."""


def _prompt(engine: AnyEngine, bundle: Bundle, config: Config) -> LivePrompt:
    template, tokenizer = _prompts(bundle)
    # Slow the first time: not to be waited for in the first turn that asks for a format.
    _grammars(engine, tokenizer).start()
    with refusing():
        return LivePrompt(tokenizer, template, config.context.system)


def _grammars(engine: AnyEngine, tokenizer: Tokenizer) -> Vocabulary:
    stop_ids = (tokenizer.special.turn_end,)
    return vocabulary(tokenizer, engine.spec.decoder.vocab_size, stop_ids)


def _senses(
    engine: AnyEngine,
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
            name="" if name == AUDIO and len(microphones) == 1 else name,
            is_named=len(microphones) > 1,
        )
        sense = audio_sense(listener, sound, name)
        sense.n_lost = partial(getattr, sound, "n_lost", 0)
        parts.append(sense)
    for name, film in cameras.items():
        watcher = Watcher(
            *(engine, tokenizer, clock, start_ns),
            _pruner(config.perception, engine.spec.vision.tubelet_frames, len(cameras)),
            fps=config.perception.fps,
            name="" if name == VIDEO and len(cameras) == 1 else name,
            is_named=len(cameras) > 1,
        )
        watching = video_sense(watcher, film, name)
        watching.n_lost = partial(getattr, film, "n_lost", 0)
        parts.append(watching)
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


async def _serve(
    loop: LiveLoop,
    app: web.Application,
    listener: socket.socket,
    tcp_listener: socket.socket | None,
    notifier: Notifier,
    changes: Reload | None,
    pulse: Pulse,
) -> None:
    """Run the loop in its thread and the socket in this one, until either ends."""
    ended = asyncio.Event()
    events = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        events.add_signal_handler(number, ended.set)
    if changes is not None:
        events.add_signal_handler(signal.SIGHUP, changes.now)
    failures: list[BaseException] = []

    def run_loop() -> None:
        try:
            loop.run()
        except Exception as error:  # noqa: BLE001  a thread's top: the main thread raises it
            failures.append(error)
        events.call_soon_threadsafe(ended.set)

    pulse.watch(events)
    thread = threading.Thread(target=run_loop, name="loop")
    thread.start()
    try:
        async with serving(app, listener.dup(), tcp_listener):
            await ended.wait()
            notifier.say("STOPPING=1", f"STATUS=stopping: {loop.n_turns} questions open")
            loop.drain()
            deadline_s = events.time() + DRAIN_S
            while loop.n_turns and thread.is_alive() and events.time() < deadline_s:
                await asyncio.sleep(DRAIN_LOOK_S)
            loop.stop()
    finally:
        loop.stop()
        await asyncio.to_thread(thread.join)
    for failure in failures:
        raise failure


@dataclass
class Reload:
    """Takes up settings that were changed while the session runs."""

    loop: LiveLoop
    app: web.Application
    config: Config
    read: Callable[[], Config]
    fitted: Callable[[Config], Config]
    """To the model; raises ConfigurationError for what does not fit."""
    notifier: Notifier

    def now(self) -> None:
        """Read them; what needs a restart, and what is wrong, is said and left as it is."""
        self.notifier.reloading()
        try:
            wanted = self.fitted(self.read())
            taken, waiting = without_restart(self.config, wanted, self.fitted)
            self.loop.change(taken)
            self.app[CHANGE](taken)
            self.config = taken
        except (ConfigurationError, ProtocolError, CapacityError) as error:
            log.error("event=not_reloaded error=%s", error)
            said = f"settings unchanged: {error}"
        else:
            log.info("event=reloaded restart_needed_for=%s", ",".join(waiting) or "nothing")
            said = f"settings reloaded; restart for: {', '.join(waiting) or 'nothing'}"
        self.notifier.say("READY=1", f"STATUS={said}")
