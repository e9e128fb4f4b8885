"""One sense on its way into the context: a thread fills its ring, the loop empties it.

Sound is taken as it comes, also while the loop answers: somebody may speak. A frame is taken when
there is time to encode it, so that the newest wins. What clients want of the turn-taking is taken
in order with the sound, but it is no sound: a full ring never drops it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Generic, TypeVar

from edge.errors import CapacityError, EdgeError
from edge.model.spec import SAMPLE_RATE_HZ
from edge.senses.ring import Ring, oldest_of
from edge.senses.sound import end_ns
from edge.senses.source import AudioSource, FrameSource
from edge.senses.turn_events import Button, Choose, Control, Mode, Played, Silence, TurnEvent
from edge.session.budget import Rung
from edge.session.perceive import Listener, Perceiver, Seen, Watcher
from edge.types import AudioChunk, Frame

log = logging.getLogger(__name__)

T = TypeVar("T")
AUDIO_RING_SAMPLES = 30 * SAMPLE_RATE_HZ
"""30 s of sound may wait, however it is cut; and 30 s of what the robot plays."""
MAX_WISHES = 64
"""Of clients may wait, one more is refused: none is dropped."""
MAX_WAITING = 8
"""Clips that may wait to be encoded; then the ring is left to fill, and drops its oldest."""


COUNTED = {
    "received": "Frames or chunks that came from a camera or microphone.",
    "skipped": "Those that the budget left out.",
    "dropped": "Those that waited too long, and gave way to newer ones.",
    "failed": "Those that could not be used.",
    "lost": "How often a device lost something before it could be read.",
}
"""What is counted of each sense's items."""


class Sense(Generic[T]):
    """A source, the ring in which its items wait, and what makes segments of them."""

    def __init__(
        self,
        name: str,
        perceiver: Perceiver,
        capacity: int,
        items: Callable[[], Iterator[T]] | None = None,
        close: Callable[[], None] = lambda: None,
        *,
        hears: bool = False,
        size_of: Callable[[T], int] = lambda _item: 1,
    ) -> None:
        """Join the parts; nothing plays before `start`.

        Args:
            name: in counters and the log.
            capacity: items that may wait, by their sizes; more drops the oldest.
            items: of the source, each given when it has been captured; None where others `put`.
            close: lets them end.
            hears: its items are taken as they come.
            size_of: an item.
        """
        self.name, self.close, self.hears = name, close, hears
        self.woken: Callable[[], None] = lambda: None
        """Called from the source's thread when there is something to do."""
        self.taken: Callable[[str, object], None] = lambda _name, _item: None
        """Called with its name and each item that the loop takes; None is its end."""
        self.defect: Exception | None = None
        """An error in the source's code, which must end the service."""
        self.n_received = self.n_skipped = self.n_failed = 0
        self.n_taken = 0
        """Items of the source that the loop has taken."""
        self.n_lost: Callable[[], int] = lambda: 0
        """How often the source has lost something before it could be `put`."""
        self._perceiver, self._items = perceiver, items
        self.source = perceiver.name or name
        """What evidence calls it: what its items do, once there are any, if it has no name."""
        self.newest_ns: int | None = None
        """Capture time of the newest that the loop has taken."""
        rings = partial(Ring, on_put=lambda: self.woken(), order=itertools.count())
        self._ring: Ring[T] = rings(capacity, size_of=size_of)
        self._played: Ring[Played] = rings(AUDIO_RING_SAMPLES, size_of=_n_played)
        self._wishes: Ring[Choose | Button] = rings(MAX_WISHES)
        self._ended = False

    @property
    def counts(self) -> dict[str, int]:
        """What happened to its items, by the names in COUNTED."""
        n_dropped = self._ring.n_dropped + self._played.n_dropped
        counts = (self.n_received, self.n_skipped, n_dropped, self.n_failed, self.n_lost())
        return dict(zip(COUNTED, counts, strict=True))

    def start(self) -> threading.Thread | None:
        """Start the thread that moves items into the ring, at the source's pace."""
        if self._items is None:
            return None
        parts = (weakref.ref(self), self._items())
        thread = threading.Thread(target=_move, args=parts, name=self.name, daemon=True)
        thread.start()
        return thread

    def put(self, item: T) -> None:
        """Let an item wait for the loop, unless the budget leaves it out."""
        self.n_received += 1
        if self._perceiver.wants(self.n_received - 1):
            self._ring.put(item)
        else:
            self.n_skipped += 1
            self.woken()  # time passes for the budget

    def stand_on(self, rung: Rung) -> None:
        """Perceive as much as the budget allows from now on."""
        self._perceiver.rung = rung

    def control(self, control: Control) -> None:
        """Let a client's wish wait, in order with the sound.

        Raises:
            CapacityError: too many wait.
        """
        if isinstance(control, Played):
            self._played.put(control)
            return
        if len(self._wishes) >= MAX_WISHES:
            problem = f"{MAX_WISHES} others of clients are waiting already"
            raise CapacityError("wish", problem, "ask again later")
        self._wishes.put(control)

    def miss(self, gap_ns: int) -> list[TurnEvent]:
        """Say that no sound has come for so long; what that ends."""
        return self._perceiver.take(Silence(gap_ns))

    def put_again(self, item: T | Control) -> None:
        """Let a recorded item wait: it was taken, whatever the budget says."""
        if isinstance(item, Control):
            self.control(item)
        else:
            self._ring.put(item)

    @property
    def mode(self) -> Mode:
        """Whose speech takes the turn, as things stand: a wish that waits has changed nothing."""
        return self._perceiver.mode if isinstance(self._perceiver, Listener) else "typed"

    def end(self) -> None:
        """Say that no more items will come."""
        self._ended = True
        self.woken()

    def start_again(self) -> None:
        """The context was rebased."""
        self._perceiver.start_again()

    @property
    def n_waiting(self) -> int:
        """What is complete and not encoded."""
        return self._perceiver.n_waiting

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be encoded that nothing is taken."""
        return self._perceiver.n_waiting >= MAX_WAITING

    def encode(self) -> Seen:
        """What waits longest, as a segment.

        Raises:
            MediaError: it cannot be used.
        """
        return self._perceiver.encode()

    def hear(self, clip: AudioChunk, now_ns: int) -> None:
        """Let a clip wait to be encoded, behind the others."""
        assert isinstance(self._perceiver, Listener)
        self._perceiver.wait(clip, now_ns)

    def take(self) -> list[TurnEvent] | None:
        """Take one item; what it says about turns, None when there is none.

        Raises:
            MediaError: the item cannot be used.
            ProtocolError: a client's wish cannot be done now.
        """
        if self.is_full:
            return None
        ended = self._ended  # looked at first: what was put before the end is in the ring by now
        ring = oldest_of((self._ring, self._played, self._wishes))
        item = None if ring is None else ring.take()
        if item is not None:
            self.taken(self.name, item)
            self.n_taken += not isinstance(item, Control)
            if isinstance(item, Frame | AudioChunk):
                self.source = self._perceiver.name or item.source
                self.newest_ns = item.capture_ns if isinstance(item, Frame) else end_ns(item)
            return self._perceiver.take(item)
        if ended:
            self._ended = False
            self.taken(self.name, None)
            return self._perceiver.flush()
        return None

    def end_with(self, error: Exception | None) -> None:
        """Say that its source has ended, by an error or not."""
        if error is None:
            log.info("sense=%s event=ended", self.name)
        elif isinstance(error, EdgeError | MemoryError | OSError):  # the machine lacks something
            self.n_failed += 1
            log.error("sense=%s event=failed error=%s", self.name, error)
        else:
            self.defect = error
        self.end()


def _move(found: Callable[[], Sense[T] | None], items: Iterator[T]) -> None:
    """Put a source's items into its sense, as long as there is one.

    While it waits for the source it holds nothing else: a camera that is silent when the service
    ends keeps neither session nor engine.
    """
    ended_by: Exception | None = None
    try:
        for item in items:
            if (sense := found()) is None:
                return
            sense.put(item)
            del sense
    except Exception as error:  # noqa: BLE001  a thread's top: the loop raises it
        ended_by = error
    if (sense := found()) is not None:
        sense.end_with(ended_by)


def video_sense(
    watcher: Watcher, source: FrameSource | None = None, name: str = "video"
) -> Sense[Frame]:
    """Sight: the newest frames win.

    Args:
        source: None where others put the frames.
        name: in counters and the log.
    """
    parts = (name, watcher, watcher.n_frames_of_a_tubelet)
    return Sense(*parts) if source is None else Sense(*parts, source.frames, source.close)


def audio_sense(
    listener: Listener, source: AudioSource | None = None, name: str = "audio"
) -> Sense[AudioChunk]:
    """Hearing: sound waits for up to 30 s.

    Args:
        source: None where others put the chunks.
        name: in counters and the log.
    """
    parts = (name, listener, AUDIO_RING_SAMPLES)
    if source is None:
        return Sense(*parts, hears=True, size_of=_n_samples)
    return Sense(*parts, source.chunks, source.close, hears=True, size_of=_n_samples)


def _n_samples(chunk: AudioChunk) -> int:
    return len(chunk.samples)


def _n_played(played: Played) -> int:
    return len(played.chunk.samples)
