"""Requests that bring pictures, sounds and films: read off the event loop, a few at a time.

Two processes decode, one of them films only: they take the longest. Where memory is short there is
one for all. Clients whose files wait for the same one take turns. Requests that are read are
bounded, for each client too, and those of films once more; so are the bytes that are decoded for
them and not yet held. So whatever some clients send, there is a place for the pictures of another.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from edge.child import places
from edge.errors import CapacityError
from edge.senses.decoder import MAX_BYTES, Decoder
from edge.senses.sent import MAX_MEDIA_BYTES, Decode, Job
from edge.serve.room import Room
from edge.types import Medium, n_media_bytes

T = TypeVar("T")

MAX_READING, MAX_READING_OF_CLIENT = 16, 4
"""Requests with media that are read at once: more are refused."""
MAX_FILMING, MAX_FILMING_OF_CLIENT = 8, 2
"""Of these, with films: pictures and sounds find a place beside them."""
MAX_DECODERS = 2
"""Processes; where memory is short one."""


class HasMediaError(Exception):
    """There is something to decode: read it where that can be done."""


def not_here(_: Job, __: bytes) -> Medium:
    """A `Decode` that finds out whether anything is to be decoded."""
    raise HasMediaError


class Decoding:
    """Of the event loop's thread."""

    def __init__(self, charge: Callable[[str, float], None]) -> None:
        """Nobody sends anything yet.

        Args:
            charge: is told whose file has had a decoder, and for how many seconds.
        """
        self._threads = ThreadPoolExecutor(MAX_READING, "media")
        # All begin now: where memory is short one may fail, or keep who begins it waiting for ever.
        begun = threading.Barrier(MAX_READING)
        try:
            for _ in range(MAX_READING):
                self._threads.submit(begun.wait)
        except RuntimeError:
            begun.abort()  # else those that have begun would wait for the rest
            raise
        self._films = self._others = _InTurn(charge)
        if places(MAX_BYTES, 1, MAX_DECODERS) > 1:
            self._films = _InTurn(charge)
        self._reading = _Places("media", MAX_READING, MAX_READING_OF_CLIENT)
        self._filming = _Places("films", MAX_FILMING, MAX_FILMING_OF_CLIENT)
        self._room = Room(2 * MAX_MEDIA_BYTES, "are being decoded", MAX_MEDIA_BYTES)

    async def read(self, client: str, read: Callable[[Decode], T]) -> T:
        """Read a request.

        Args:
            client: who sent it.
            read: reads it, in another thread, with what decodes.
        Raises:
            CapacityError: too many are read already.
        """
        self._reading.take(client)
        run = contextvars.copy_context().run  # a format is checked for the same user
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._threads, run, self._read, client, read)
        work.add_done_callback(lambda done: self._done(client, done))
        # Its thread goes on where the client has gone: it is counted until it ends.
        return await asyncio.shield(work)

    def _done(self, client: str, work: asyncio.Future[T]) -> None:
        if not work.cancelled():
            work.exception()  # nobody else looks where the client has gone
        self._reading.give(client)

    def _read(self, client: str, read: Callable[[Decode], T]) -> T:
        with contextlib.ExitStack() as held:
            has_film = False

            def decode(job: Job, data: bytes) -> Medium:
                nonlocal has_film
                if job.kind == "film" and not has_film:
                    self._filming.take(client)
                    held.callback(self._filming.give, client)
                    has_film = True
                medium = (self._films if job.kind == "film" else self._others)(client, job, data)
                n_bytes = n_media_bytes([medium])
                self._room.take("pictures and sounds", n_bytes, client)
                held.callback(self._room.give, n_bytes, client)
                return medium

            return read(decode)

    def close(self) -> None:
        """End what is being decoded."""
        self._films.close()
        self._others.close()
        self._threads.shutdown()


class _Places:
    """How many requests each client has somewhere. From any thread."""

    def __init__(self, media: str, n: int, n_of_client: int) -> None:
        """All are free.

        Args:
            media: what the requests bring, for the error.
            n_of_client: of one client, in the first half of them; the other half is for clients who
                have none.
        """
        self._media, self._n, self._n_of_client = media, n, n_of_client
        self._clients: Counter[str] = Counter()
        self._lock = threading.Lock()

    def take(self, client: str) -> None:
        """One more.

        Raises:
            CapacityError: there are too many already.
        """
        with self._lock:
            n_taken = self._clients.total()
            n_most = self._n_of_client if n_taken < self._n // 2 else 1
            if n_taken >= self._n or self._clients[client] >= n_most:
                problem = f"{n_taken} requests with {self._media} are being read"
                raise CapacityError("pictures and sounds", problem, "send it again later")
            self._clients[client] += 1

    def give(self, client: str) -> None:
        """One less."""
        with self._lock:
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]


class _InTurn:
    """A decoder for one client after the other, however many files one of them sends."""

    def __init__(self, charge: Callable[[str, float], None]) -> None:
        self._charge, self._decoder = charge, Decoder()
        self._changed = threading.Condition()
        self._is_busy = False
        self._waiting: list[tuple[str, object]] = []
        """Whose file, and which: in the order in which they came."""
        self._served: dict[str, None] = {}
        """Clients, the last one last, for as long as somebody waits."""

    def __call__(self, client: str, job: Job, data: bytes) -> Medium:
        """As `Decoder`, once it is this client's turn. From any thread."""
        with self._turn(client):
            return self._decoder(job, data)

    @contextlib.contextmanager
    def _turn(self, client: str) -> Iterator[None]:
        me = client, object()
        with self._changed:
            self._waiting.append(me)
            self._changed.wait_for(lambda: not self._is_busy and self._next() is me)
            self._waiting.remove(me)
            self._served.pop(client, None)
            self._served[client] = None
            self._is_busy = True
        began_s = time.monotonic()
        try:
            yield
        finally:
            self._charge(client, time.monotonic() - began_s)
            with self._changed:
                self._is_busy = False
                if not self._waiting:
                    self._served.clear()
                self._changed.notify_all()

    def _next(self) -> tuple[str, object]:
        """Of the client who was served longest ago."""
        turns = {client: turn for turn, client in enumerate(self._served)}
        return min(self._waiting, key=lambda one: turns.get(one[0], -1))

    def close(self) -> None:
        """End what is being decoded."""
        self._decoder.close()
