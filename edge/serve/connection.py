"""One client's connection: whose it is, what of its bytes is no message yet, what it owes.

A WebSocket's message waits inside aiohttp until it is whole, where nothing else can see it. So its
bytes are counted on their way in.

A client that has sent all it will (`nc -N`, `socat`) still reads its answer. aiohttp would close
the connection then, and asyncio no longer notices when it goes: so it is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Callable, Iterator

from aiohttp import web

from edge.errors import CapacityError
from edge.serve.access import Role
from edge.serve.room import Room, beyond

PATIENCE_S = 5.0
"""A head takes at most so long from the connection or its first byte to its end, whatever comes in
between; a body or message so long, and more for what has arrived of it."""
MIN_BYTES_PER_S = 1 << 15
"""So much of a body or message has to arrive."""
CONTROL_BYTES = 6
"""A client's ping or pong, without what it says: always one frame with a mask."""
LOOK_S = 0.05
"""How often a connection is looked at whose client sends no more."""
PROBE_S = 1.0
"""Over TCP only what is sent finds out whether such a client has gone altogether: so it is told
after so long that its request is worked on, and again whenever it has waited twice as long."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
ALIVE = b": alive\n\n"
"""Server-sent events' comment."""


def patience_s(n_bytes: int, idle_s: float) -> float:
    """How long a body or message may have taken of which so much has arrived."""
    return min(PATIENCE_S, idle_s) + n_bytes / MIN_BYTES_PER_S


class Connection(asyncio.Protocol):
    """Passes everything on to aiohttp; once it is a WebSocket, counts what is no message yet."""

    def __init__(
        self, client: web.RequestHandler, room: Room, who: str, role: Role | None, *, is_local: bool
    ) -> None:
        """A connection of aiohttp's client, just opened.

        Args:
            room: for what arrives.
            who: whose connections are counted together: a user, or over TCP an address.
            role: over TCP None, until a request has shown that it may be made.
            is_local: a Unix socket's.
        """
        self.client, self._room, self.who, self.role = client, room, who, role
        self.is_local = is_local
        self.user = who if is_local else "tcp"
        """For whom something is kept, and bytes are counted: over TCP all know the same token."""
        self._n_bytes = 0
        self._refuse: Callable[[CapacityError], None] | None = None
        self.is_refused = self.is_cut = False
        """Refused: what its client sends is thrown away. Cut: its client ended within a body."""
        self._owed_since_s: float | None = self._now_s()
        """Since when the rest of a head or of a WebSocket's message is owed; None: it is not."""
        self._is_working = False

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()

    @property
    def is_idle(self) -> bool:
        """Nothing is being done for its client."""
        # As aiohttp asks itself before it closes an idle connection.
        waiter = self.client._waiter
        return waiter is not None and not waiter.done()

    def is_late(self, idle_s: float) -> bool:
        """Whether its client has taken too long for a head or a message that it began."""
        if self._owed_since_s is None or self._is_working:
            return False
        return self._now_s() - self._owed_since_s > patience_s(self._n_bytes, idle_s)

    @contextlib.contextmanager
    def counted(self, refuse: Callable[[CapacityError], None]) -> Iterator[None]:
        """Count for as long as the block runs: it is a WebSocket.

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
        n_bytes, self._is_working = self._n_bytes, True
        try:
            yield
        finally:
            self._is_working = False
            self._forget(n_bytes)
            self._owed_since_s = self._now_s() if self._n_bytes else None

    def answered(self, control: bytes) -> None:
        """A ping or pong was part of what has arrived, perhaps in the middle of a message."""
        self._forget(min(self._n_bytes, CONTROL_BYTES + len(control)))
        if not self._n_bytes:
            self._owed_since_s = None

    def data_received(self, data: bytes) -> None:
        """Count, then pass on."""
        if self.is_refused:
            return
        if self._refuse is not None:
            try:
                self._room.take("message", self._beyond(len(data)), self.user)
            except CapacityError as error:
                self.is_refused = True
                self._refuse(error)
                return
            self._n_bytes += len(data)
        self.client.data_received(data)
        if self._refuse is None and not self.is_idle:  # that was a whole head
            self._owed_since_s = None
        elif self._owed_since_s is None:
            self._owed_since_s = self._now_s()

    def _forget(self, n_bytes: int) -> None:
        self._room.give(-self._beyond(-n_bytes), self.user)
        self._n_bytes -= n_bytes

    def _beyond(self, n_more: int) -> int:
        """What so many more bytes add to what is counted."""
        return beyond(self._n_bytes + n_more) - beyond(self._n_bytes)

    def eof_received(self) -> bool:
        """It sends no more, and has its answers yet to come.

        Returns:
            Whether the connection stays open.
        """
        self.client.eof_received()
        loop = asyncio.get_running_loop()
        return self._is_waited_for(loop, loop.time(), PROBE_S)

    def _is_waited_for(
        self, loop: asyncio.AbstractEventLoop, ended_s: float, probe_s: float
    ) -> bool:
        """Whether its client still waits for answers; if so, look again soon.

        Args:
            ended_s: when it stopped sending, on the loop's clock.
            probe_s: so long after that it is probed next.
        """
        client, transport = self.client, self.client.transport
        if transport is None or self._refuse is not None:  # a WebSocket's end is a message
            return False
        # A request that waits in its queue, or whose answer is being written, has no public sign.
        if self.is_idle:
            return False
        connection = transport.get_extra_info("socket")
        looked = select.poll()
        looked.register(connection.fileno(), 0)
        if looked.poll(0):  # both ways are shut, or the connection was reset
            return False
        request = client._current_request
        if request is not None and not request.content.is_eof():
            self.is_cut = True
            request.content.feed_eof()
        is_tcp = connection.family != socket.AF_UNIX
        if is_tcp and request is not None and loop.time() - ended_s >= probe_s:
            probe_s *= 2
            transport.write(_probe(request))
        loop.call_later(LOOK_S, self._look, loop, ended_s, probe_s)
        return True

    def _look(self, loop: asyncio.AbstractEventLoop, ended_s: float, probe_s: float) -> None:
        transport = self.client.transport
        if not self._is_waited_for(loop, ended_s, probe_s) and transport is not None:
            transport.close()

    # As they are.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody is there."""
        self.client.connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Nobody is."""
        self.client.connection_lost(exc)

    def pause_writing(self) -> None:
        """It reads slowly."""
        self.client.pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        self.client.resume_writing()


def _probe(request: web.BaseRequest) -> bytes:
    """What tells a client, at this place of its answer, that its request is worked on."""
    is_new = request.version >= (1, 1)
    if not request.writer.output_size:
        return CONTINUE if is_new else b""
    # Only a stream of events begins before its handler ends; HTTP/1.1 sends it in chunks.
    return b"%x\r\n%b\r\n" % (len(ALIVE), ALIVE) if is_new else ALIVE


def connection_of(request: web.Request) -> Connection:
    """The connection of a request."""
    transport = request.transport
    if not isinstance(transport, asyncio.Transport):
        raise ConnectionResetError("the client has gone")
    connection = transport.get_protocol()
    assert isinstance(connection, Connection)  # the door lets nobody else in
    return connection
