"""The door: who is let in, how many at a time, and who has to leave for not reading.

A refused client is told why in HTTP and the connection is closed, whatever it sends: that is
thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import msgspec
from aiohttp import web

from edge import config
from edge.errors import AccessError, CapacityError, EdgeError
from edge.serve.access import Roles, peer_of
from edge.serve.metrics import Metrics
from edge.serve.replies import RETRY_AFTER_S, error_body, status_of
from edge.serve.room import Connection, Room

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often it is looked whether clients read."""
LINGER_S = 1.0
"""A refused client has so long to read why: closing at once could cut its own request off."""
LISTEN_S = 0.2
"""Of that it may take so long to begin its request."""
MAX_LINGERING = 16
_RETRY_S = 0.1
_DISCARD_BYTES = 1 << 16


Client = web.RequestHandler


class Door:
    """Accepts connections for an aiohttp server."""

    def __init__(
        self,
        server: web.Server,
        limits: config.Socket,
        roles: Roles,
        metrics: Metrics,
        room: Room,
    ) -> None:
        self._server, self._limits = server, limits
        self._roles, self._metrics, self._room = roles, metrics, room
        self._clients: dict[Client, str] = {}
        self._unread: dict[Client, tuple[int, float]] = {}
        self._lingering: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def open(self, listeners: Sequence[socket.socket]) -> AsyncIterator[None]:
        """Accept for as long as the block runs; then the listeners are closed."""
        tasks = [asyncio.create_task(self._look())]
        for listener in listeners:
            listener.setblocking(False)
            tasks.append(asyncio.create_task(self._accept(listener)))
        try:
            yield
        finally:
            for task in [*tasks, *self._lingering]:
                task.cancel()
            await asyncio.gather(*tasks, *self._lingering, return_exceptions=True)
            for listener in listeners:
                listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:  # no descriptor is left, or the client has gone already
                self._metrics.refused("accept")
                log.warning("socket event=not_accepted error=%s", error)
                await asyncio.sleep(_RETRY_S)
                continue
            connection.setblocking(False)
            try:
                who = self._admitted(connection, address)
            except EdgeError as error:
                self._refuse(connection, error)
                continue
            client = self._server()
            await loop.connect_accepted_socket(partial(Connection, client, self._room), connection)
            self._clients[client] = who
            self._metrics.connections.set(len(self._server.connections))

    def _admitted(self, connection: socket.socket, address: Any) -> str:
        """Whose connection it is."""
        if connection.family == socket.AF_UNIX:
            peer = peer_of(connection)
            self._roles.admit(peer)
            who = f"process {peer.pid}"
        else:  # its requests have to show the token
            who = f"address {address[0]}"
        alive = set(self._server.connections)
        self._clients = {
            client: whose for client, whose in self._clients.items() if client in alive
        }
        limit, own_limit = self._limits.max_connections, self._limits.max_connections_per_client
        if len(alive) >= limit:
            raise CapacityError("connections", f"{limit} are open already", "try again later")
        if sum(whose == who for whose in self._clients.values()) >= own_limit:
            raise CapacityError(
                f"connections of {who}",
                f"{own_limit} are open already",
                "close some, or raise socket.max_connections_per_client",
            )
        return who

    def _refuse(self, connection: socket.socket, error: EdgeError) -> None:
        self._metrics.refused("access" if isinstance(error, AccessError) else "capacity")
        log.info("socket event=refused error=%s", error)
        if len(self._lingering) >= MAX_LINGERING:
            connection.close()
            return
        task = asyncio.create_task(_tell(connection, error))
        self._lingering.add(task)
        task.add_done_callback(self._lingering.discard)

    async def _look(self) -> None:
        """Drop those who have left something unread for too long."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_S)
            alive = self._server.connections
            self._metrics.connections.set(len(alive))
            unread: dict[Client, tuple[int, float]] = {}
            for client in alive:
                if client.transport is None:
                    continue
                n_bytes = client.transport.get_write_buffer_size()
                before, since_s = self._unread.get(client, (0, 0.0))
                if not n_bytes:
                    continue
                unread[client] = (n_bytes, since_s if n_bytes == before else loop.time())
                if loop.time() - unread[client][1] > self._limits.idle_s:
                    drop(client.transport, "reads nothing", self._metrics)
            self._unread = unread


def drop(transport: asyncio.BaseTransport | None, why: str, metrics: Metrics) -> None:
    """End a connection at once: its client does not keep up.

    Args:
        transport: None where it has gone already.
        why: for the log and the counter.
    """
    if isinstance(transport, asyncio.WriteTransport):
        metrics.dropped(why)
        log.warning("client=dropped reason=%s", why.replace(" ", "_"))
        transport.abort()


async def _tell(connection: socket.socket, error: EdgeError) -> None:
    body, status = msgspec.json.encode(error_body(error)), status_of(error)
    head = f"HTTP/1.1 {status} Refused\r\nContent-Type: application/json\r\n"
    head += f"Retry-After: {RETRY_AFTER_S}\r\n" if status == 503 else ""
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with contextlib.closing(connection), contextlib.suppress(OSError, asyncio.TimeoutError):
        await asyncio.wait_for(_say_and_wait(connection, head.encode() + body), LINGER_S)


async def _say_and_wait(connection: socket.socket, said: bytes) -> None:
    loop = asyncio.get_running_loop()
    # Some clients take an answer that is there before their request for a broken connection.
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(loop.sock_recv(connection, _DISCARD_BYTES), LISTEN_S)
    await loop.sock_sendall(connection, said)
    connection.shutdown(socket.SHUT_WR)
    while await loop.sock_recv(connection, _DISCARD_BYTES):
        pass
