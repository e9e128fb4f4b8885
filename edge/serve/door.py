"""The door: who is let in, how many at a time, and who has to leave for not reading.

A refused client is told why in HTTP and the connection is closed, whatever it sends: that is
thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from functools import partial

import msgspec
from aiohttp import web

from edge import config
from edge.errors import AccessError, CapacityError, EdgeError
from edge.serve.access import Role, Roles, peer_of
from edge.serve.connection import Connection
from edge.serve.metrics import Metrics
from edge.serve.replies import RETRY_AFTER_S, error_body, status_of
from edge.serve.room import Room

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
        self._connections: dict[web.RequestHandler, Connection] = {}
        """Open ones, the oldest first."""
        self._unread: dict[web.RequestHandler, tuple[int, float]] = {}
        self._lingering: dict[asyncio.Task[None], type[EdgeError]] = {}

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
            is_local = connection.family == socket.AF_UNIX
            try:
                role: Role | None = None  # over TCP its requests have to show the token
                if is_local:
                    peer = peer_of(connection)
                    who, role = f"user {peer.uid}", self._roles.admit(peer)
                else:
                    who = host_of(address[0])
                self._make_place(who, role, is_local)
            except EdgeError as error:
                self._refuse(connection, error)
                continue
            client = self._server()
            guest = Connection(client, self._room, who, role, is_local=is_local)
            await loop.connect_accepted_socket(partial(_itself, guest), connection)
            self._connections[client] = guest
            self._metrics.connections.set(len(self._server.connections))

    def _make_place(self, who: str, role: Role | None, is_local: bool) -> None:
        """Let one more in, perhaps instead of another.

        Raises:
            CapacityError: there is no place for it.
        """
        alive = set(self._server.connections)
        self._connections = {c: one for c, one in self._connections.items() if c in alive}
        crowd = [one for one in self._connections.values() if one.is_local is is_local]
        own = [one for one in crowd if one.who == who]
        limit, own_limit = self._limits.max_connections, self._limits.max_connections_per_client
        if len(own) >= own_limit:
            if not self._make_go(own):
                raise CapacityError(
                    f"connections of {who}",
                    f"{own_limit} are open already",
                    "close some, or raise socket.max_connections_per_client",
                )
        elif len(crowd) >= limit - n_kept(limit, role) and not self._make_go(crowd):
            raise CapacityError("connections", f"{len(crowd)} are open already", "try again later")

    def _make_go(self, crowd: Iterable[Connection]) -> bool:
        """End an observer's idle connection, or one that has not shown a token: the oldest of
        whoever has most of them. False: there is none."""
        going = [
            one
            for one in crowd
            if one.role is None or (one.is_local and one.role == "observer" and one.is_idle)
        ]
        if not going:
            return False
        ((most, _),) = Counter(one.who for one in going).most_common(1)
        oldest = next(one for one in going if one.who == most)
        self._end(oldest, "idle observer" if oldest.is_local else "shows no token")
        return True

    def _end(self, one: Connection, why: str) -> None:
        """Count it, and write no line: there may be thousands a second."""
        self._connections.pop(one.client, None)
        if one.client.transport is not None:
            self._metrics.dropped(why)
            one.client.transport.abort()

    def _refuse(self, connection: socket.socket, error: EdgeError) -> None:
        self._metrics.refused("access" if isinstance(error, AccessError) else "capacity")
        log.info("socket event=refused error=%s", error)
        # Those without a role do not keep others from hearing that it is full.
        if [*self._lingering.values()].count(type(error)) >= MAX_LINGERING:
            connection.close()
            return
        task = asyncio.create_task(_tell(connection, error))
        self._lingering[task] = type(error)
        task.add_done_callback(self._lingering.pop)

    async def _look(self) -> None:
        """Drop those who have left something unread or unfinished for too long."""
        loop, idle_s = asyncio.get_running_loop(), self._limits.idle_s
        while True:
            await asyncio.sleep(LOOK_S)
            self._metrics.connections.set(len(self._server.connections))
            unread: dict[web.RequestHandler, tuple[int, float]] = {}
            for client, one in [*self._connections.items()]:
                if client.transport is None:
                    continue
                if one.is_late(idle_s):
                    self._end(one, "sends slowly")
                    continue
                n_bytes = client.transport.get_write_buffer_size()
                before, since_s = self._unread.get(client, (0, 0.0))
                if not n_bytes:
                    continue
                unread[client] = (n_bytes, since_s if n_bytes == before else loop.time())
                if loop.time() - unread[client][1] > idle_s:
                    drop(client.transport, "reads nothing", self._metrics)
            self._unread = unread


def _itself(one: Connection) -> Connection:
    return one


def n_kept(limit: int, role: Role | None) -> int:
    """How many of so many places are kept for others: one in 8 for operators, and one in 32 for
    admins. Over TCP none is."""
    for_operators, for_admins = limit // 8, limit // 32
    kept = {"observer": for_operators + for_admins, "operator": for_admins}
    return 0 if role is None else kept.get(role, 0)


def host_of(address: str) -> str:
    """Whose connections over TCP are counted together: one host has many addresses."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback:
        return "this machine"
    if isinstance(ip, ipaddress.IPv6Address):
        return f"network {ipaddress.ip_network((ip, 64), strict=False)}"
    return f"address {ip}"


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
