"""WebSocket /v1/realtime: OpenAI's Realtime events over the live context.

A client's outbox is bounded: one that does not read is dropped. So is what all clients are sending:
one whose message finds no room any more is told so, and its connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections import deque
from functools import partial

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from edge.config import Config
from edge.errors import CapacityError, ProtocolError
from edge.model.sampling import Sampling
from edge.serve.connection import connection_of
from edge.serve.decoding import Decoding
from edge.serve.door import LINGER_S, drop
from edge.serve.fairness import LoopTime
from edge.serve.limits import ROLE
from edge.serve.metrics import Metrics
from edge.serve.outbox import Outbox
from edge.serve.realtime_client import Client
from edge.serve.request import ModelNotFoundError
from edge.serve.room import Room, Share
from edge.serve.server_events import new_id
from edge.session.turn import Asked

MAX_MESSAGE_BYTES = 16 << 20
OBSERVER_MESSAGE_BYTES = 1 << 12
"""What chooses events is small."""
PING_S = 20.0
CLOSE_S = 0.5
"""All clients together may take to answer that the service ends."""


class _Full:
    """In an outbox: nothing follows, for want of room."""


class Realtime:
    """The route."""

    def __init__(
        self,
        session: Asked,
        config: Config,
        model_name: str,
        thinking_sampling: Sampling,
        metrics: Metrics,
        decoding: Decoding,
        media: Room,
        loop_time: LoopTime,
    ) -> None:
        self._session, self._config, self._model_name = session, config, model_name
        self._thinking_sampling, self._metrics = thinking_sampling, metrics
        self._decoding, self._media, self._loop_time = decoding, media, loop_time
        self._run_id = new_id("run")
        self._sockets: set[web.WebSocketResponse] = set()

    def change(self, config: Config) -> None:
        """Take what the next clients leave open from other settings."""
        self._config = config

    async def close(self, _: web.Application) -> None:
        """Tell all clients that the service ends: one that comes again meets another run."""
        closing = [
            asyncio.create_task(socket.close(code=WSCloseCode.GOING_AWAY, message=b"service ends"))
            for socket in self._sockets
        ]
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_S)

    async def connect(self, request: web.Request) -> web.StreamResponse:
        """Talk with one client until it goes."""
        model = request.query.get("model") or self._model_name
        if model != self._model_name:
            remedy = f"ask for {self._model_name!r}"
            raise ModelNotFoundError("model", f"{model!r} is not served here", remedy)
        is_observer = request[ROLE] == "observer"
        socket = web.WebSocketResponse(
            max_msg_size=OBSERVER_MESSAGE_BYTES if is_observer else MAX_MESSAGE_BYTES,
            compress=False,
            heartbeat=PING_S,
            autoping=False,  # counted here
            protocols=("realtime",),
        )
        await socket.prepare(request)
        self._sockets.add(socket)

        outbox: Outbox[object] = Outbox(
            self._config.socket.max_outbox_events,
            lambda: drop(request.transport, "outbox full", self._metrics),
        )
        connection = connection_of(request)
        client = Client(
            self._session,
            self._config,
            model,
            self._thinking_sampling,
            outbox,
            request[ROLE],
            Share(self._media, connection.user),
            self._run_id,
            partial(self._decoding.read, connection.user),
            partial(self._loop_time.in_thread, connection.user),
        )

        def refuse(error: CapacityError) -> None:
            client.refuse(error)
            outbox.deliver(_Full())

        outbox.at_once = partial(_write_at_once, socket, request.transport, client)
        writer = asyncio.create_task(_write(socket, outbox, client))
        looker = asyncio.create_task(client.look())
        try:
            with client.listening(), connection.counted(refuse):
                async for message in socket:
                    await asyncio.sleep(0)  # a message that is there already waits for nobody else
                    await self._loop_time.turn(connection.user)
                    if message.type in (WSMsgType.PING, WSMsgType.PONG):
                        connection.answered(message.data)
                        if message.type == WSMsgType.PING:
                            await socket.pong(message.data)
                        continue
                    with connection.worked_on():
                        if message.type == WSMsgType.TEXT:
                            await client.take(message.data)
                        elif message.type == WSMsgType.BINARY:
                            client.refuse(
                                ProtocolError("message", "is binary", "send JSON as text")
                            )
        finally:
            self._sockets.discard(socket)
            for task in (writer, looker):
                task.cancel()
            await asyncio.gather(writer, looker, return_exceptions=True)
        return socket


def _write_at_once(
    socket: web.WebSocketResponse,
    transport: asyncio.Transport | None,
    client: Client,
    waiting: deque[object],
) -> None:
    """Send what waits in one piece, if the client has taken all that was sent before."""
    if transport is None or socket.closed or transport.get_write_buffer_size():
        return
    frames: list[bytes] = []
    while waiting and not isinstance(waiting[0], _Full):
        frames += [_text_frame(msgspec.json.encode(e)) for e in client.told(waiting.popleft())]
    transport.write(b"".join(frames))


def _text_frame(message: bytes) -> bytes:
    """A whole message of a server (RFC 6455, section 5.2)."""
    n_bytes = len(message)
    if n_bytes < 126:
        head = struct.pack("!BB", 0x81, n_bytes)
    elif n_bytes < 1 << 16:
        head = struct.pack("!BBH", 0x81, 126, n_bytes)
    else:
        head = struct.pack("!BBQ", 0x81, 127, n_bytes)
    return head + message


async def _write(socket: web.WebSocketResponse, outbox: Outbox[object], client: Client) -> None:
    with contextlib.suppress(ConnectionError):  # it has gone: its reader ends too
        while not isinstance(waiting := await outbox.next(), _Full):
            for event in client.told(waiting):
                await socket.send_frame(msgspec.json.encode(event), WSMsgType.TEXT)
        await asyncio.sleep(LINGER_S)  # closing at once could cut it off in mid-message
        await socket.close(code=WSCloseCode.TRY_AGAIN_LATER)
