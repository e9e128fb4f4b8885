"""A supervisor as small as it can be: hands over a socket, hears what the service says, watches."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

TIMEOUT_S = 60.0
_HAND_OVER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid()); "
    "os.environ['WATCHDOG_PID'] = str(os.getpid()); os.execv(sys.argv[2], sys.argv[2:])"
)


class Supervisor:
    """Runs one service as systemd would with edge.socket and edge.service."""

    def __init__(self, folder: Path, command: list[str], watchdog_s: float = 0.0) -> None:
        """Make the service's socket and the one for its messages; start nothing yet."""
        self.path = folder / "edge.sock"
        self._command, self.watchdog_s = command, watchdog_s
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen(16)
        self._address = folder / "notify"
        self._messages = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._messages.bind(str(self._address))
        self._log_path = folder / "log"
        self.heard: list[tuple[float, list[str]]] = []
        """Monotonic time and lines of each message."""

    def start(self) -> None:
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(self._address),
            "LISTEN_FDS": "1",
            "RUNTIME_DIRECTORY": str(self.path.parent),
        }
        if self.watchdog_s:
            environment["WATCHDOG_USEC"] = str(int(self.watchdog_s * 1e6))
        number = self._listener.fileno()
        self.started_s = time.monotonic()
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _HAND_OVER, str(number), *self._command],
                env=environment,
                pass_fds=[number],
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def hear(self, timeout_s: float) -> list[str] | None:
        """The next message's lines, None after so long a silence."""
        self._messages.settimeout(timeout_s)
        try:
            lines = self._messages.recv(4096).decode().splitlines()
        except TimeoutError:
            return None
        self.heard.append((time.monotonic(), lines))
        return lines

    def wait_for(self, line: str, timeout_s: float = TIMEOUT_S) -> float:
        """Listen until a message has a line that begins so; when that was."""
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            lines = self.hear(1.0)
            if lines and any(said.startswith(line) for said in lines):
                return self.heard[-1][0]
            assert self.process.poll() is None or lines, f"ended: {self.log}"
        raise AssertionError(f"never said {line}: {self.log}")

    def watch(self) -> float:
        """Listen until the service has been silent for its watchdog's time, then abort it.

        Returns:
            When its last sign of life came.
        """
        last_s = time.monotonic()
        while True:
            left_s = last_s + self.watchdog_s - time.monotonic()
            lines = self.hear(left_s) if left_s > 0 else None
            if lines is None:
                self.process.send_signal(signal.SIGABRT)
                self.process.wait(TIMEOUT_S)
                return last_s
            if "WATCHDOG=1" in lines:
                last_s = self.heard[-1][0]

    def stop(self) -> tuple[int, float]:
        """SIGTERM; the exit code and how long it took."""
        at_s = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(TIMEOUT_S)
        return code, time.monotonic() - at_s

    def close(self) -> None:
        if hasattr(self, "process"):
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait(TIMEOUT_S)
        self._listener.close()
        self._messages.close()
