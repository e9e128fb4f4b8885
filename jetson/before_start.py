"""Runs as root before each start of the service: waits for what appears late, and opens it to it.

The GPU's nodes have another name on each board (/dev/nvgpu/igpu0 on Orin, igpu-0000:01:00.0 on
Thor), systemd has no patterns for paths, and where the GPU's modules are loaded while the machine
starts they may not be there yet. The CSI cameras' daemon makes its socket some time after it was
started, and another one when it is started again; a service sees the one of its own start.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

SYSTEM = Path("/")
UNIT = "edge.service"
BUNDLE, SETTINGS = "var/lib/edge/bundle", "etc/edge/edge.toml"
ARGUS_SOCKET, ARGUS_UNIT = "tmp/argus_socket", "nvargus-daemon.service"
FOLLOW_ARGUS = f"run/systemd/system/{UNIT}.d/nvargus.conf"
GPU_TIMEOUT_S = 65
"""Ten starts in ten minutes would leave the service down: so it is tried for ever."""
ARGUS_TIMEOUT_S, LOOK_S = 10, 0.5

Systemctl: TypeAlias = Callable[..., object]
Wait: TypeAlias = Callable[[str, float, Callable[[], object]], None]


def gpu_nodes(root: Path) -> list[str]:
    """The GPU's character devices, as the service will call them."""
    found = (*(root / "dev/nvgpu").rglob("*"), *(root / "dev").glob("nvidia[0-9]*"))
    return sorted(f"/{path.relative_to(root)}" for path in found if path.is_char_device())


def has_plans(root: Path) -> bool:
    """Whether the service's bundle is for a GPU."""
    return any((root / BUNDLE).glob("*.plan"))


def has_csi_camera(root: Path) -> bool:
    """Whether the settings name a camera of the CSI cameras' daemon."""
    settings = root / SETTINGS
    return settings.exists() and bool(
        re.search(r"^[^#\n]*nvarguscamerasrc", settings.read_text(), re.MULTILINE)
    )


def is_listening(path: Path) -> bool:
    """Whether somebody accepts connections on a socket, which may lie there from before."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True  # of another type
    return True


def prepare(root: Path, systemctl: Systemctl, wait: Wait) -> None:
    """All that has to be done.

    Args:
        root: of the file system.
        systemctl: runs it with these words.
        wait: for what, at most how many seconds, until what is true.
    """
    if has_plans(root):
        wait("the GPU", GPU_TIMEOUT_S, lambda: gpu_nodes(root))
    if nodes := gpu_nodes(root):
        # Takes effect at once, also for this start, whose list of devices was made before.
        systemctl("set-property", "--runtime", UNIT, *(f"DeviceAllow={n} rw" for n in nodes))
    is_csi, follow = has_csi_camera(root), root / FOLLOW_ARGUS
    if is_csi:
        wait("the CSI cameras' daemon", ARGUS_TIMEOUT_S, lambda: is_listening(root / ARGUS_SOCKET))
    if is_csi != follow.exists():
        if is_csi:
            follow.parent.mkdir(parents=True, exist_ok=True)
            follow.write_text(f"[Unit]\nPartOf={ARGUS_UNIT}\n")
        else:
            follow.unlink()
        systemctl("daemon-reload")


def _systemctl(*words: str) -> None:
    subprocess.run(["systemctl", *words], check=False)  # its message is in the journal


def _wait(what: str, timeout_s: float, is_there: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + timeout_s
    if not is_there():
        sys.stderr.write(f"event=waiting for={what!r} at_most_s={timeout_s}\n")
    while not is_there() and time.monotonic() < deadline_s:
        time.sleep(LOOK_S)


if __name__ == "__main__":
    prepare(SYSTEM, _systemctl, _wait)
