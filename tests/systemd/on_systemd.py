"""`make test-systemd`: what the service does where systemd is process 1, as a table.

Rows are in rows.py. `--rows 'boot|reload'` runs those whose names match, and the first
two; `--keep` leaves the machine on and says how to go in; `--on FOLDER` is that machine, with this
tree's sources.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import prepare
import rows
from machine import Machine, until

FIRST = ("boots", "make install")


@contextlib.contextmanager
def machine(kept: Path | None, keep: bool) -> Iterator[tuple[Machine, Path]]:
    """A new one, with what an owner has unpacked, or one that was kept, with that again."""
    work = kept or Path(tempfile.mkdtemp(prefix="edge-systemd-"))
    root = work / "root"
    made = Machine(root, work / "console.log")
    try:
        if kept is None:
            prepare.file_system(root)
            prepare.bundles(root)
            prepare.wheels(root / "src/wheels")
        prepare.sources(root / "src")
        prepare.own_wheel(root / "src/wheels")
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        if kept is None:
            made.boot()
        else:
            made.attach(int((work / "pid").read_text()))
        yield made, work
    finally:
        if keep:
            (work / "pid").write_text(str(made.pid))
            print(f"kept: --on {work}, or: {' '.join(made.command('bash')[:-2])}")
        else:
            made.off()
            shutil.rmtree(work, ignore_errors=True)


class Rtsp:
    """A network camera that wants a password, on this machine's loopback network."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._server: subprocess.Popen[bytes] | None = None

    def __call__(self, on: bool) -> None:
        """Switch it on or off."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None
        if on:
            script = prepare.REPOSITORY / "tests/live/rtsp_server.py"
            words = ["/usr/bin/python3", str(script), str(self.port), "robot", rows.PASSWORD]
            self._server = subprocess.Popen(words)
            until("the camera listens", self._listens)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def package(work: Path) -> Path:
    """The package of this tree, from the same wheels."""
    wheels, bundle = work / "root/src/wheels", work / "root/bundle"
    subprocess.run(
        [
            *("make", "--no-print-directory", "deb", f"WHEELS={wheels}", f"BUNDLE={bundle}"),
            *(f"OUT={work}", "EXTRAS=runtime", "PYTHON=/usr/bin/python3"),
        ],
        cwd=prepare.REPOSITORY,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (deb,) = work.glob("*.deb")
    return deb


def main() -> int:
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("--rows", default="", metavar="REGEX")
    command.add_argument("--keep", action="store_true")
    command.add_argument("--on", type=Path, metavar="FOLDER")
    arguments = command.parse_args()
    if lacking := prepare.lacking():
        print(f"test-systemd: {lacking}", file=sys.stderr)
        return int(os.environ.get("CI") == "true")
    prepare.cache_folder().mkdir(parents=True, exist_ok=True)
    lock = (prepare.cache_folder() / "lock").open("w")
    try:  # two machines would share this one's control groups, and end each other's services
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("test-systemd: another one runs on this machine", file=sys.stderr)
        return 1
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(1)
    )  # the machine is switched off all the same
    began_s = time.monotonic()
    rtsp = Rtsp()
    atexit.register(rtsp, False)
    failed = []
    with machine(arguments.on, arguments.keep) as (made, work):
        print(f"test-systemd: a machine after {time.monotonic() - began_s:.0f} s", flush=True)
        url = f"rtsp://robot:{rows.PASSWORD}@127.0.0.1:{rtsp.port}/test"
        world = rows.World(made, rtsp, url, lambda: package(work))
        for name, check in rows.ROWS.items():
            is_first = name in FIRST and arguments.on is None
            if not is_first and not re.search(arguments.rows, name):
                continue
            row_s = time.monotonic()
            try:
                seen, verdict = check(world), "ok"
            except Exception as error:  # noqa: BLE001  the table has it, and the other rows go on
                seen, verdict = f"{type(error).__name__}: {error}", "FAILED"
                failed.append(name)
            seen = " ".join(seen.split())
            print(f"{verdict:6} {time.monotonic() - row_s:5.1f} s  {name}: {seen}", flush=True)
    print(f"test-systemd: {len(failed)} failed, in {time.monotonic() - began_s:.0f} s")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
