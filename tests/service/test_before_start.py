"""What is done before each start, on boards whose devices are links to /dev/null."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from boards import laid_out

from jetson.before_start import is_listening, prepare

CSI = '[[camera]]\nname = "front"\nsource = "nvarguscamerasrc sensor-id=0 ! nvvidconv"\n'
ORIN = [f"/dev/nvgpu/igpu0/{name}" for name in ("as", "channel", "ctrl")]
THOR = ["/dev/nvgpu/igpu-0000:01:00.0/ctrl", "/dev/nvgpu/igpu-0000:01:00.0/tsg", "/dev/nvidia0"]


@pytest.fixture
def root() -> Iterator[Path]:
    """Of a file system, with a path that a socket may have."""
    with tempfile.TemporaryDirectory(prefix="edge-") as folder:
        yield Path(folder)


def add_devices(root: Path, names: list[str]) -> None:
    for name in names:
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to("/dev/null")


class Board:
    """What was asked of systemd, and waited for; `appears` comes while one waits."""

    def __init__(self, root: Path, appears: Callable[[], object] = lambda: None) -> None:
        self.said: list[tuple[str, ...]] = []
        self.waits: list[str] = []
        self.appears = appears
        prepare(root, lambda *words: self.said.append(words), self._wait)

    def _wait(self, what: str, timeout_s: float, is_there: Callable[[], object]) -> None:
        self.waits.append(what)
        assert timeout_s > 0
        if not is_there():
            self.appears()


def allowed(nodes: list[str]) -> tuple[str, ...]:
    words = ("set-property", "--runtime", "edge.service")
    return (*words, *(f"DeviceAllow={node} rw" for node in nodes))


@pytest.mark.parametrize("nodes", [ORIN, THOR])
def test_the_service_may_use_the_gpu_by_its_name_on_this_board(root, nodes):
    add_devices(root, nodes)
    laid_out(root, {"dev/nvgpu/note": "no device"})
    board = Board(root)
    assert board.said == [allowed(nodes)]
    assert board.waits == []  # a bundle for the CPU


def test_a_gpu_that_comes_late_is_waited_for_if_the_bundle_needs_it(root):
    laid_out(root, {"var/lib/edge/bundle/decode.plan": "x"})
    board = Board(root, lambda: add_devices(root, THOR))
    assert board.waits == ["the GPU"]
    assert board.said == [allowed(THOR)]


def test_a_gpu_that_never_comes_is_left_to_the_service(root):
    laid_out(root, {"var/lib/edge/bundle/decode.plan": "x"})
    assert Board(root).said == []


def test_a_machine_without_any_of_it(root):
    board = Board(root)
    assert (board.said, board.waits) == ([], [])


def test_whoever_uses_csi_cameras_is_restarted_with_their_daemon(root):
    drop_in = root / "run/systemd/system/edge.service.d/nvargus.conf"
    laid_out(root, {"etc/edge/edge.toml": f"# nvarguscamerasrc is not used\n{CSI}"})
    board = Board(root)
    assert board.waits == ["the CSI cameras' daemon"]
    assert board.said == [("daemon-reload",)]
    assert drop_in.read_text() == "[Unit]\nPartOf=nvargus-daemon.service\n"
    assert Board(root).said == []  # once
    laid_out(root, {"etc/edge/edge.toml": f"# {CSI.splitlines()[-1]}\n"})
    board = Board(root)
    assert (board.said, board.waits) == ([("daemon-reload",)], [])
    assert not drop_in.exists()


def test_a_daemon_listens_when_it_answers(root):
    """A file that a killed daemon has left is no daemon."""
    path = root / "argus_socket"
    assert not is_listening(path)
    with socket.socket(socket.AF_UNIX) as daemon:
        daemon.bind(str(path))
        assert not is_listening(path)
        daemon.listen()
        assert is_listening(path)
    assert path.is_socket()
    assert not is_listening(path)
