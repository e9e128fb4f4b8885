"""A network camera for a service without a network: its packets, as they are, over a Unix socket.

What reads the camera is a process of its own (`edge ingest`), which decodes nothing. It gives
MPEG-TS to whoever is connected, from a picture on that needs no other.
"""

from __future__ import annotations

import contextlib
import io
import logging
import socket
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av

from edge.errors import ConfigurationError, MediaError
from edge.senses.address import without_secrets
from edge.senses.camera import is_on_network, lost, open_stream
from edge.senses.live import again_and_again

if TYPE_CHECKING:
    from typing_extensions import Buffer

log = logging.getLogger(__name__)

CREDENTIAL = "address"
"""What systemd calls the file with the camera's address."""
MAX_ADDRESS_BYTES = 4096
SEND_TIMEOUT_S = 2.0
"""A reader that takes nothing for so long has gone."""


def given_address(environment: Mapping[str, str]) -> str:
    """The camera's address, from the folder that systemd shows to this service alone.

    An address may hold a password, so it comes neither by command line nor by environment.

    Raises:
        ConfigurationError: there is none, or it is no network camera's.
    """
    folder = environment.get("CREDENTIALS_DIRECTORY")
    if folder is None:
        raise ConfigurationError(
            "$CREDENTIALS_DIRECTORY",
            "is not set",
            f"start it as a unit with LoadCredential={CREDENTIAL}:",
        )
    with (Path(folder) / CREDENTIAL).open(encoding="utf-8", errors="replace") as file:
        address = file.read(MAX_ADDRESS_BYTES).strip()
    if not is_on_network(address):
        raise ConfigurationError(
            "the camera's address",
            f"is {without_secrets(address)!r}",
            "one line in /etc/edge/ingest/NAME: rtsp://user:password@address/path",
        )
    return address


def hand_on(address: str, name: str, listener: socket.socket, closed: threading.Event) -> None:
    """Hand a camera's pictures to one reader at a time, until `closed`; others wait.

    Args:
        address: rtsp://, rtsps:// or udp://.
        name: in the log.
        listener: a Unix socket that listens.
    """
    listener.setblocking(False)
    reader: _Reader | None = None
    with contextlib.ExitStack() as stack:
        for packet in again_and_again(name, partial(_packets, address), closed):
            if reader is not None and not reader.takes(packet):
                stack.pop_all().close()
                reader = None
            begins = reader is None and packet.is_keyframe
            if begins and (connection := _accepted(listener)) is not None:
                reader = stack.enter_context(contextlib.closing(_Reader(connection, packet.stream)))
                reader.takes(packet)


def _accepted(listener: socket.socket) -> socket.socket | None:
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        return None
    connection.settimeout(SEND_TIMEOUT_S)
    return connection


@contextlib.contextmanager
def _packets(address: str) -> Iterator[Iterator[av.Packet[Any]]]:
    with open_stream(address) as container:
        stream = next((s for s in container.streams.video if s.codec_context is not None), None)
        if stream is None:
            raise MediaError(without_secrets(address), "has no pictures", "check its address")
        yield _demuxed(address, container, stream)


def _demuxed(
    address: str, container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.Packet[Any]]:
    try:
        for packet in container.demux(stream):
            if packet.dts is not None:
                yield packet
    except (av.FFmpegError, OSError) as error:
        raise lost(address, error) from None


class _Sent(io.RawIOBase):
    """What is written goes to a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        self._connection.sendall(data)
        return len(memoryview(data))


class _Reader:
    """Who is connected, and the MPEG-TS that it is sent."""

    def __init__(self, connection: socket.socket, stream: Any) -> None:
        self._connection, self._stream = connection, stream
        # Each packet leaves at once, not when a buffer is full.
        file = _Sent(connection)
        self._container = av.open(file, "w", format="mpegts", options={"flush_packets": "1"})
        self._out = self._container.add_stream_from_template(stream)

    def takes(self, packet: av.Packet[Any]) -> bool:
        """Send a packet; False where the reader has gone, or the camera was opened again."""
        if packet.stream is not self._stream:
            return False
        packet.stream = self._out
        try:
            self._container.mux(packet)
        except (av.FFmpegError, OSError):
            return False
        return True

    def close(self) -> None:
        """The end of its stream."""
        with contextlib.suppress(av.FFmpegError, OSError):
            self._container.close()
        self._connection.close()
