"""A session whose turns play a script, and the real application around it on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from edge.config import Config, for_model
from edge.errors import EdgeError
from edge.model.sampling import Sampling
from edge.senses.turn_events import Control
from edge.serve import unix_socket
from edge.serve.app import make_app, serving
from edge.session.triggers import TriggerBook
from edge.session.turn import (
    AnswerEvent,
    Audience,
    Consistency,
    Done,
    Freshness,
    Question,
    SpokenEvent,
    Status,
    TextDelta,
    Timeline,
    Turn,
)
from edge.types import Evidence

MODEL = "nemotron-tiny"
MS = 1_000_000
TIMEOUT_S = 20.0
"""Nothing in these tests takes a second; past this, something hangs."""

TIMELINE = Timeline(
    asked_ns=5000 * MS,
    started_ns=5002 * MS,
    captured_ns=4900 * MS,
    prefilled_ns=5030 * MS,
    first_token_ns=5040 * MS,
    finished_ns=5100 * MS,
    n_context_tokens=321,
    evidence=(Evidence("camera", 3000 * MS, 4900 * MS, (7, 8)),),
    freshness=(
        Freshness("camera", "video", 102 * MS, is_stale=False),
        Freshness("mast", "audio", None, is_stale=True),
    ),
)
DONE = Done(
    "stop",
    n_prompt_tokens=330,
    n_completion_tokens=5,
    timeline=TIMELINE,
    confidence=0.875,
    consistency=Consistency("seen", 0.9, None, 0.1),
)
REPORT = {
    "waited_ms": 2.0,
    "prefilled_ms": 30.0,
    "first_token_ms": 40.0,
    "finished_ms": 100.0,
    "newest_capture_age_ms": 100.0,
    "n_context_tokens": 321,
    "confidence": 0.875,
    "consistency": {"verdict": "seen", "seen": 0.9, "heard": None, "nothing": 0.1},
    "sources": [
        {"source": "camera", "modality": "video", "age_s": 0.102, "stale": False},
        {"source": "mast", "modality": "audio", "age_s": None, "stale": True},
    ],
    "evidence": [{"source": "camera", "start_s": -2.0, "end_s": -0.1, "frame_ids": [7, 8]}],
}
"""What clients are told of it."""

Play = Callable[[Turn], None]


def answer(*texts: str, reasoning: str = "", done: Done = DONE) -> Play:
    """A turn that thinks, speaks and ends."""

    def play(turn: Turn) -> None:
        events: list[AnswerEvent] = [TextDelta(reasoning, reasoning=True)] if reasoning else []
        for event in [*events, *(TextDelta(text) for text in texts), done]:
            turn.deliver(event)

    return play


class ScriptedSession:
    """Plays one script for every question, on a thread of its own as the loop does."""

    def __init__(self, play: Play, refusal: EdgeError | None = None, ready: bool = True) -> None:
        self.questions: list[Question] = []
        self.controls: list[Control] = []
        self._play, self._refusal, self._ready = play, refusal, ready
        self._threads: list[threading.Thread] = []
        self.triggers = TriggerBook()
        self.events = Audience[object]()
        self.observe = self.events.join
        self.spoken = Audience[SpokenEvent]()
        self.watch = self.spoken.join

    def ask(self, question: Question, deliver: Callable[[AnswerEvent], None]) -> Turn:
        if self._refusal is not None:
            raise self._refusal
        self.questions.append(question)
        turn = Turn(question, TIMELINE.asked_ns, deliver)
        self._threads.append(threading.Thread(target=self._play, args=(turn,)))
        self._threads[-1].start()
        return turn

    def control(self, control: Control) -> None:
        if self._refusal is not None:
            raise self._refusal
        self.controls.append(control)

    def status(self) -> Status:
        return Status(self._ready, MODEL, 321, 8192, {"n_frames": 12})

    def join(self) -> None:
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive(), "a script hangs"


def speak_until_cancelled(started: threading.Event, seen: threading.Event) -> Play:
    """A turn that says something and then works on until its client goes."""

    def play(turn: Turn) -> None:
        turn.deliver(TextDelta("Well"))
        started.set()
        if turn.cancelled.wait(TIMEOUT_S):
            seen.set()
        turn.deliver(replace(DONE, finish_reason="cancelled"))

    return play


@contextlib.contextmanager
def served(
    path: Path,
    session: ScriptedSession,
    config: Config | None = None,
    tcp_listener: socket.socket | None = None,
) -> Iterator[Callable[[], None]]:
    """The application on a Unix socket, in a thread with its own event loop.

    Yields:
        A function that stops the service early, as its death would.
    """
    loop = asyncio.new_event_loop()
    listener = unix_socket.bind(path)
    started, stop = threading.Event(), asyncio.Event()
    config = for_model(config or Config(), 131_072, 262_144)

    async def serve() -> None:
        async with serving(
            make_app(session, config, MODEL, Sampling(0.6, 0.95)),
            listener,
            tcp_listener,
        ):
            started.set()
            await stop.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()

    thread = threading.Thread(target=run)

    def end() -> None:
        if thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it has just ended by itself
                loop.call_soon_threadsafe(stop.set)
        thread.join(TIMEOUT_S)
        assert not thread.is_alive(), "the service does not stop"

    thread.start()
    try:
        assert started.wait(TIMEOUT_S), "the service does not start"
        yield end
    finally:
        end()
        session.join()
