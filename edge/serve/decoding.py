"""Requests that bring pictures, sounds and films: read off the event loop, a few at a time.

Two processes decode, one of them films only: they take the longest. Requests that wait for them are
bounded, for each client too, and so are the bytes that are decoded for them and not yet held.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from edge.errors import CapacityError
from edge.senses.decoder import Decoder
from edge.senses.sent import MAX_MEDIA_BYTES, Decode, Job
from edge.types import Medium, n_media_bytes

T = TypeVar("T")

MAX_READING, MAX_READING_OF_CLIENT = 16, 4
"""Requests with media that are read at once: more are refused."""


class HasMediaError(Exception):
    """There is something to decode: read it where that can be done."""


def not_here(_: Job, __: bytes) -> Medium:
    """A `Decode` that finds out whether anything is to be decoded."""
    raise HasMediaError


class Decoding:
    """Of the event loop's thread."""

    def __init__(self) -> None:
        """Nobody sends anything yet."""
        self._threads = ThreadPoolExecutor(MAX_READING, "media")
        # All begin now: where memory is short one may fail, or keep who begins it waiting for ever.
        begun = threading.Barrier(MAX_READING)
        try:
            for _ in range(MAX_READING):
                self._threads.submit(begun.wait)
        except RuntimeError:
            begun.abort()  # else those that have begun would wait for the rest
            raise
        self._films, self._others = Decoder(), Decoder()
        self._clients: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._n_bytes = 0

    async def read(self, client: str, read: Callable[[Decode], T]) -> T:
        """Read a request.

        Args:
            client: who sent it.
            read: reads it, in another thread, with what decodes.
        Raises:
            CapacityError: too many are read already.
        """
        if self._clients.total() >= MAX_READING or self._clients[client] >= MAX_READING_OF_CLIENT:
            problem = f"{self._clients.total()} requests with media are being read"
            raise CapacityError("pictures and sounds", problem, "send it again later")
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._read, read)
        self._clients[client] += 1
        work.add_done_callback(lambda done: self._done(client, done))
        # Its thread goes on where the client has gone: it is counted until it ends.
        return await asyncio.shield(work)

    def _done(self, client: str, work: asyncio.Future[T]) -> None:
        if not work.cancelled():
            work.exception()  # nobody else looks where the client has gone
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]

    def _read(self, read: Callable[[Decode], T]) -> T:
        n_bytes = 0

        def decode(job: Job, data: bytes) -> Medium:
            nonlocal n_bytes
            medium = (self._films if job.kind == "film" else self._others)(job, data)
            n_more = n_media_bytes([medium])
            with self._lock:
                if self._n_bytes + n_more > 2 * MAX_MEDIA_BYTES:
                    problem = f"of other clients take {self._n_bytes} bytes"
                    raise CapacityError("pictures and sounds", problem, "send them again later")
                self._n_bytes += n_more
            n_bytes += n_more
            return medium

        try:
            return read(decode)
        finally:
            with self._lock:
                self._n_bytes -= n_bytes

    def close(self) -> None:
        """End what is being decoded."""
        self._films.close()
        self._others.close()
        self._threads.shutdown()
