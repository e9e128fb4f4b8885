"""The socket's file: who may have it, and who may take it away."""

from __future__ import annotations

import os
import re
import socket
import stat
from pathlib import Path

import pytest

from edge.errors import SocketError
from edge.serve.unix_socket import MAX_PATH_BYTES, bind, release


def refusal(path) -> SocketError:
    with pytest.raises(SocketError) as caught:
        bind(path)
    return caught.value


def connects(path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        return client.connect_ex(str(path)) == 0


def test_everybody_may_connect_as_with_the_shipped_unit(tmp_path):
    """Roles say who is let in; see tests/service/test_roles.py."""
    path = tmp_path / "edge.sock"
    unit = (Path(__file__).parents[2] / "jetson" / "edge.socket").read_text()
    (shipped,) = re.findall("^SocketMode=(.*)", unit, re.MULTILINE)
    with bind(path) as sock:
        assert stat.S_IMODE(path.stat().st_mode) == int(shipped, 8) == 0o666
        assert connects(path)
        release(path, sock)
        assert not path.exists()


def test_a_stale_socket_is_replaced(tmp_path, caplog):
    path = tmp_path / "edge.sock"
    bind(path).close()
    assert path.is_socket()
    with bind(path):
        assert connects(path)
    assert "event=removed reason=stale" in caplog.text


def test_a_live_socket_is_left_alone(tmp_path):
    path = tmp_path / "edge.sock"
    with bind(path):
        error = refusal(path)
        assert "another edge run is serving there" in str(error)
        assert "stop it" in error.remedy
        assert connects(path)


def test_a_socket_too_busy_to_answer_is_live(tmp_path):
    path = tmp_path / "edge.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy:
        busy.bind(str(path))
        busy.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as waiting:
            waiting.connect(str(path))  # fills the backlog
            assert "another edge run" in str(refusal(path))


def test_a_socket_of_another_kind_is_left_alone(tmp_path):
    path = tmp_path / "edge.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        assert "cannot be probed" in str(refusal(path))
        assert path.is_socket()


def test_other_files_are_left_alone(tmp_path):
    path = tmp_path / "edge.sock"
    path.write_text("mine")
    assert "is a regular file" in str(refusal(path))
    assert path.read_text() == "mine"
    assert "is a folder" in str(refusal(tmp_path))
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    assert "is a symbolic link" in str(refusal(link))
    os.mkfifo(tmp_path / "pipe")
    assert "is a named pipe" in str(refusal(tmp_path / "pipe"))


def test_paths_that_cannot_be(tmp_path):
    missing = refusal(tmp_path / "none" / "edge.sock")
    assert missing.thing == str(tmp_path / "none")
    assert "create the folder" in missing.remedy
    (tmp_path / "file").touch()
    assert "Not a directory" in str(refusal(tmp_path / "file" / "edge.sock"))


def test_the_longest_path(tmp_path):
    fill = MAX_PATH_BYTES - len(os.fsencode(tmp_path)) - 1
    with bind(tmp_path / ("x" * fill)):
        pass
    assert "108 bytes long" in str(refusal(tmp_path / ("x" * (fill + 1))))
    # Bytes count, not characters.
    assert f"{fill * 2 + MAX_PATH_BYTES - fill} bytes" in str(refusal(tmp_path / ("é" * fill)))


def test_release_keeps_what_another_process_made(tmp_path, caplog):
    path = tmp_path / "edge.sock"
    with bind(path) as first:
        path.unlink()
        with bind(path) as second:
            release(path, first)
            assert connects(path)
            release(path, second)
        assert not path.exists()
        release(path, first)
    assert "reason=not_ours" in caplog.text
    assert "event=gone_before_release" in caplog.text
