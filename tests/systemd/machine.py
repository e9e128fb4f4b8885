"""A machine whose process 1 is systemd: a file system of Debian, booted by systemd-nspawn.

It has this machine's network, and no other devices than a container has.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONWARNINGS": "error",
}
LOOK_S = 0.1
BOOT_S, OFF_S = 120.0, 60.0


class CommandError(AssertionError):
    """A command in the machine did not end as it should."""


def until(what: str, found: Callable[[], T], timeout_s: float = 30.0) -> T:
    """What is found, once it is true.

    Raises:
        AssertionError: it is not, after so long.
    """
    deadline_s = time.monotonic() + timeout_s
    while not (value := found()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(LOOK_S)
    return value


class Machine:
    """Its file system is `root`; it is on between `boot` and `off`."""

    def __init__(self, root: Path, log: Path) -> None:
        """Switch nothing on yet.

        Args:
            log: what its console says.
        """
        self.root, self._log = root, log
        self.pid = self._leader = 0
        """Of systemd-nspawn and of its systemd, while it is on."""

    def boot(self) -> float:
        """Switch it on; how long that takes, s."""
        began_s = time.monotonic()
        command = ["systemd-nspawn", "-q", "-D", str(self.root), "--boot", "--register=no"]
        command += ["--keep-unit", "-M", f"edge-{os.getpid()}", "--console=pipe"]
        with self._log.open("ab") as log:
            self.pid = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            ).pid
        until("systemd as process 1", self._found, BOOT_S)
        until(
            "the machine has started",
            lambda: (
                self.run("systemctl is-system-running", check=False).stdout.strip()
                in ("running", "degraded")
            ),
            BOOT_S,
        )
        return time.monotonic() - began_s

    def _found(self) -> bool:
        if not self._is_on():
            raise AssertionError(f"systemd-nspawn ended: {self._log.read_text()[-2000:]}")
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        for child in children.split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    self._leader = int(child)
                    return self.run("systemctl is-system-running", check=False).stdout != ""
        return False

    def _is_on(self) -> bool:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        return Path(f"/proc/{self.pid}").exists()

    def off(self) -> None:
        """Switch it off."""
        if not self.pid:
            return
        if self._leader:
            self.run("systemctl --no-block poweroff", check=False)
        try:
            until("it is off", lambda: not self._is_on(), OFF_S)
        except AssertionError:
            os.kill(self.pid, signal.SIGKILL)
            until("it is off", lambda: not self._is_on(), OFF_S)
        self.pid = self._leader = 0

    def pull_the_plug(self) -> None:
        """All its processes are gone at once."""
        os.kill(self._leader, signal.SIGKILL)
        until("it is off", lambda: not self._is_on(), OFF_S)
        self.pid = self._leader = 0

    def attach(self, pid: int) -> None:
        """Take over a machine that is on: nspawn's process id."""
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        self.pid, self._leader = pid, int(child)

    def command(self, command: str, user: str = "root") -> list[str]:
        """What runs a shell's command in it."""
        assert self._leader, "it is off"
        words = ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-p", "-C", "-n"]
        words += [f"--root=/proc/{self._leader}/root", f"--wd=/proc/{self._leader}/root"]
        words += ["env", "-i", *(f"{name}={value}" for name, value in ENVIRONMENT.items())]
        if user != "root":
            words += ["runuser", "-u", user, "--"]
        return [*words, "bash", "-c", command]

    def run(
        self, command: str, *, user: str = "root", check: bool = True, timeout_s: float = 120.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell's command in it.

        Raises:
            CommandError: `check`, and its exit code is not 0.
        """
        done = subprocess.run(
            self.command(command, user),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            said = f"{done.stdout[-1500:]}{done.stderr[-1500:]}".strip()
            raise CommandError(f"{command!r} ended with {done.returncode}: {said}")
        return done

    def start(self, command: str, user: str = "root") -> subprocess.Popen[str]:
        """Begin a shell's command in it."""
        return subprocess.Popen(
            self.command(command, user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def says(self, command: str, **how: object) -> str:
        """What a command prints."""
        return self.run(command, **how).stdout.strip()  # type: ignore[arg-type]

    def write(self, path: str, text: str) -> None:
        """Write a file in it."""
        self.run(f"cat > {shlex.quote(path)} <<'END_OF_FILE'\n{text}END_OF_FILE")

    def path(self, path: str) -> Path:
        """A path of its file system, from outside."""
        return self.root / path.lstrip("/")

    def property(self, unit: str, name: str) -> str:
        """One of a unit's properties."""
        return self.says(f"systemctl show -P {name} {unit}")
