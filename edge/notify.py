"""What a service and its supervisor tell each other: a socket handed over, readiness, progress.

Without a supervisor nothing is said.
Source: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path

from edge.clock import NS_PER_S
from edge.errors import SocketError

log = logging.getLogger(__name__)

FIRST_GIVEN = 3
"""The descriptor of the first socket that is handed over."""
STATUS_PERIOD_S = 5.0
SEND_TIMEOUT_S = 1.0
_US_PER_S = 1_000_000


class Notifier:
    """Tells the supervisor how the service is doing. Any thread may."""

    def __init__(self, address: str = "", watchdog_s: float = 0.0) -> None:
        """Connect to nobody yet.

        Args:
            address: of the supervisor's datagram socket, a path or @name; empty: there is none.
            watchdog_s: it restarts the service after so long a silence; 0: never.
        """
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._period_s = watchdog_s / 4 or STATUS_PERIOD_S
        self._max_owed_s = watchdog_s / 2 or math.inf
        self._next_s = self._next_complaint_s = 0.0

    @classmethod
    def of(cls, environment: MutableMapping[str, str]) -> Notifier:
        """The supervisor that the environment names; taken out of it, so that no child answers."""
        address = environment.pop("NOTIFY_SOCKET", "")
        watchdog_us = environment.pop("WATCHDOG_USEC", "0")
        is_ours = environment.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(address, int(watchdog_us) / _US_PER_S if is_ours else 0.0)

    def say(self, *lines: str) -> None:
        """Send assignments such as `READY=1`. A supervisor that does not listen is no reason to
        stop: it is said in the log."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(SEND_TIMEOUT_S)
                sock.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.warning("event=not_notified said=%s error=%s", lines[0], error)

    def alive(self, status: Callable[[], str], owed_s: float = 0.0) -> None:
        """There was progress: tell it, not more often than it wants to know.

        Args:
            status: makes the line that `systemctl status` shows.
            owed_s: so long the event loop has not answered; when it is half the watchdog's time,
                that is told, and nothing that would keep the supervisor from a restart.
        """
        now_s = time.monotonic()
        if owed_s > self._max_owed_s:
            if now_s >= self._next_complaint_s:
                self._next_complaint_s = now_s + self._period_s
                log.error("event=socket_hangs silent_s=%.1f", owed_s)
                self.say(f"STATUS=the socket has not answered for {owed_s:.0f} s")
        elif self._address and now_s >= self._next_s:
            self._next_s = now_s + self._period_s
            self.say("WATCHDOG=1", f"STATUS={status()}")

    def reloading(self) -> None:
        """A new configuration is being read; `READY=1` says that it is done."""
        self.say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() * _US_PER_S // NS_PER_S}")


def runtime_folder(environment: Mapping[str, str]) -> Path | None:
    """The folder that the supervisor made for what lasts until the machine is switched off."""
    given = environment.get("RUNTIME_DIRECTORY")
    return Path(given.split(":")[0]) if given else None


def given_socket(environment: MutableMapping[str, str]) -> socket.socket | None:
    """The listening socket that the supervisor made, None if it made none.

    It may have clients waiting: the path exists before the service does.

    Raises:
        SocketError: there are several, or it is no listening Unix stream socket.
    """
    pid, n_given = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "0")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or n_given == "0":
        return None
    if n_given != "1":
        raise SocketError(
            "edge.socket", f"hands over {n_given} sockets", "leave one ListenStream= in it"
        )
    sock = socket.socket(fileno=FIRST_GIVEN)
    sock.set_inheritable(False)
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if (sock.family, sock.type, listens) != (socket.AF_UNIX, socket.SOCK_STREAM, 1):
        sock.close()
        raise SocketError(
            "edge.socket", "hands over no listening Unix socket", "use ListenStream=/a/path in it"
        )
    return sock
