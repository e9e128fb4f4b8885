"""What all clients may hold together, and a connection that counts what its client is sending.

A WebSocket's message waits inside aiohttp until it is whole, where nothing else can see it. So its
bytes are counted on their way in.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from aiohttp import web

from edge.errors import CapacityError

FREE_BYTES = 1 << 16
"""Of each client's message, not counted: what is small is let in however much others send."""
CONTROL_BYTES = 6
"""A client's ping or pong, without what it says: always one frame with a mask."""


class Room:
    """Bytes that are held for clients, bounded together. Of the event loop's thread."""

    def __init__(self, max_bytes: int, state: str = "are arriving") -> None:
        """All of it is free.

        Args:
            state: what those do that are held, for errors.
        """
        self._max_bytes, self._n_bytes, self._state = max_bytes, 0, state

    def take(self, thing: str, n_bytes: int) -> None:
        """Hold some more.

        Args:
            thing: that arrives, for the error.
        Raises:
            CapacityError: there is no room for it now.
        """
        if n_bytes > 0 and self._n_bytes + n_bytes > self._max_bytes:
            problem = f"of {n_bytes} more bytes: {self._n_bytes} {self._state} already"
            raise CapacityError(thing, problem, "send it again later")
        self._n_bytes += n_bytes

    def give(self, n_bytes: int) -> None:
        """Hold so much less."""
        self._n_bytes -= n_bytes


class Connection(asyncio.Protocol):
    """Passes everything on to aiohttp; once it is a WebSocket, counts what is no message yet."""

    def __init__(self, client: web.RequestHandler, room: Room) -> None:
        """A connection of aiohttp's client."""
        self.client, self._room = client, room
        self._n_bytes = 0
        self._refuse: Callable[[CapacityError], None] | None = None
        self.is_refused = False

    @contextlib.contextmanager
    def counted(self, refuse: Callable[[CapacityError], None]) -> Iterator[None]:
        """Count for as long as the block runs.

        Args:
            refuse: tells the client that there was no room; what it sends then is thrown away.
        """
        self._refuse = refuse
        try:
            yield
        finally:
            self._refuse = None
            self._forget(self._n_bytes)

    @contextlib.contextmanager
    def worked_on(self) -> Iterator[None]:
        """What has arrived until now has become a message, and is needed until the block ends."""
        n_bytes = self._n_bytes
        try:
            yield
        finally:
            self._forget(n_bytes)

    def answered(self, control: bytes) -> None:
        """A ping or pong was part of what has arrived, perhaps in the middle of a message."""
        self._forget(min(self._n_bytes, CONTROL_BYTES + len(control)))

    def data_received(self, data: bytes) -> None:
        """Count, then pass on."""
        if self.is_refused:
            return
        if self._refuse is not None:
            try:
                self._room.take("message", self._beyond(len(data)))
            except CapacityError as error:
                self.is_refused = True
                self._refuse(error)
                return
            self._n_bytes += len(data)
        self.client.data_received(data)

    def _forget(self, n_bytes: int) -> None:
        self._room.give(-self._beyond(-n_bytes))
        self._n_bytes -= n_bytes

    def _beyond(self, n_more: int) -> int:
        """What so many more bytes add to what is counted."""
        after = max(0, self._n_bytes + n_more - FREE_BYTES)
        return after - max(0, self._n_bytes - FREE_BYTES)

    # As they are.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody is there."""
        self.client.connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Nobody is."""
        self.client.connection_lost(exc)

    def eof_received(self) -> None:
        """It sends no more."""
        self.client.eof_received()

    def pause_writing(self) -> None:
        """It reads slowly."""
        self.client.pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        self.client.resume_writing()


def connection_of(request: web.Request) -> Connection:
    """The connection of a request."""
    transport = request.transport
    if not isinstance(transport, asyncio.Transport):
        raise ConnectionResetError("the client has gone")
    connection = transport.get_protocol()
    assert isinstance(connection, Connection)  # the door lets nobody else in
    return connection
