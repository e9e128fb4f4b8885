"""A peer of a live source sends MPEG-TS, or is not listened to."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import media_bombs as bombs
import pytest

from edge.clock import MonotonicClock
from edge.errors import MediaError
from edge.senses import camera
from edge.senses.damage import Damage


@contextmanager
def peer(path: Path, data: bytes) -> Iterator[None]:
    """Somebody who sends this to whoever connects."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def send() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(data)

        thread = threading.Thread(target=send)
        thread.start()
        yield
        thread.join()


@contextmanager
def never_open(port: int) -> Iterator[None]:
    """Nothing listens there (UDP) while the block runs: what is sent there is refused each time."""
    ended, answers = threading.Event(), set()

    def knock() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.settimeout(0.05)
            sender.connect(("127.0.0.1", port))
            while not ended.is_set():
                try:
                    sender.send(b"?")
                    sender.recv(1)
                except OSError as error:
                    answers.add(type(error))
                time.sleep(0.005)

    thread = threading.Thread(target=knock)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert answers <= {ConnectionRefusedError}, f"port {port} was open"


def seen(path: Path, data: bytes) -> int:
    """Pictures that come of it."""
    with (
        peer(path, data),
        camera._opened(f"unix:{path}", MonotonicClock(), Damage("")) as captured,
    ):
        return sum(1 for _ in captured)


def test_mpeg_ts_is_seen(tmp_path: Path) -> None:
    film = bombs.film("mpegts", "mpeg2video", 200, (64, 48))  # a second finds out what it is
    assert seen(tmp_path / "a.sock", film) > 5


KINDS = {
    **{name: bombs.FILMS[name] for name in ("a playlist", "a list to join", "DASH")},
    "a session description": bombs.FILMS["a session description"],
    "QuickTime": lambda: bombs.movie(8000, 2),
    "Matroska": lambda: bombs.film("matroska", "mpeg4", 5, (64, 48)),
    "text": lambda: b"hello\n" * 2000,
}


@pytest.mark.parametrize("name", KINDS)
def test_nothing_else_is_opened(tmp_path: Path, name: str) -> None:
    """A session description would open a port, a list or a playlist files."""
    with never_open(4000), pytest.raises(MediaError, match="gives no pictures"):
        seen(tmp_path / "a.sock", KINDS[name]())


def test_an_open_port_is_seen() -> None:
    watched = never_open(4000)
    watched.__enter__()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 4000))
        time.sleep(0.3)
    with pytest.raises(AssertionError, match="was open"):
        watched.__exit__(None, None, None)


@pytest.mark.parametrize("scheme", ["unix", "udp", "rtsp", "rtsps"])
def test_every_network_source_names_its_format_and_its_protocols(scheme: str) -> None:
    options = camera._NETWORK[scheme]
    assert options["format_whitelist"] == ("rtsp" if scheme.startswith("rtsp") else "mpegts")
    assert scheme in options["protocol_whitelist"].split(",")
    assert not {"file", "http", "https", "concat", "data"} & {
        *options["protocol_whitelist"].split(",")
    }
