"""What is said to a supervisor, and what is taken from it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest

from edge import notify, pulse
from edge.errors import SocketError
from edge.notify import Notifier, given_socket


@pytest.fixture
def supervisor(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5.0)
        yield sock


def test_nothing_is_said_without_a_supervisor():
    Notifier().say("READY=1")
    Notifier().alive(lambda: pytest.fail("nobody wants to know"))


def test_lines_of_a_message(supervisor):
    environment = {"NOTIFY_SOCKET": supervisor.getsockname(), "WATCHDOG_USEC": "4000000"}
    notifier = Notifier.of(environment)
    assert environment == {}, "a child would answer in our place"
    notifier.say("READY=1", "STATUS=well")
    assert supervisor.recv(99) == b"READY=1\nSTATUS=well"


def test_an_abstract_address():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0edge-test-{os.getpid()}")
        Notifier(f"@edge-test-{os.getpid()}").say("READY=1")
        assert sock.recv(99) == b"READY=1"


def test_life_is_told_four_times_a_watchdog(supervisor, monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr(notify.time, "monotonic", lambda: now_s[0])
    notifier = Notifier(supervisor.getsockname(), watchdog_s=4.0)
    for now_s[0] in (100.0, 100.5, 100.99, 101.0, 101.9, 102.0):
        notifier.alive(lambda: f"at {now_s[0]}")
    said = [supervisor.recv(99).decode() for _ in range(3)]
    assert said == [f"WATCHDOG=1\nSTATUS=at {at}" for at in (100.0, 101.0, 102.0)]
    supervisor.setblocking(False)
    with pytest.raises(BlockingIOError):
        supervisor.recv(99)


def test_life_is_not_told_while_the_event_loop_owes_an_answer(supervisor, monkeypatch, caplog):
    now_s = [100.0]
    monkeypatch.setattr(notify.time, "monotonic", lambda: now_s[0])
    notifier = Notifier(supervisor.getsockname(), watchdog_s=4.0)
    for now_s[0], owed_s in ((100.0, 1.9), (101.0, 2.1), (101.5, 2.6), (102.0, 3.1), (102.1, 0.0)):
        notifier.alive(lambda: f"at {now_s[0]}", owed_s)
    assert [supervisor.recv(99).decode() for _ in range(4)] == [
        "WATCHDOG=1\nSTATUS=at 100.0",
        "STATUS=the socket has not answered for 2 s",
        "STATUS=the socket has not answered for 3 s",
        "WATCHDOG=1\nSTATUS=at 102.1",  # at once
    ]
    assert caplog.text.count("event=socket_hangs") == 2


def test_without_a_watchdog_a_socket_that_hangs_is_no_news(supervisor):
    Notifier(supervisor.getsockname()).alive(lambda: "well", 100.0)
    assert supervisor.recv(99) == b"WATCHDOG=1\nSTATUS=well"


def test_the_pulse_of_both_threads(monkeypatch):
    now_s = [100.0]
    monkeypatch.setattr(pulse.time, "monotonic", lambda: now_s[0])
    both = pulse.Pulse()
    both.beat()  # nobody is asked
    assert both.owed_s == 0.0
    with contextlib.closing(asyncio.new_event_loop()) as events:
        both.watch(events)

        def turn() -> None:
            events.run_until_complete(asyncio.sleep(0))

        for now_s[0] in (101.0, 102.0):
            both.beat()
            turn()
            assert both.owed_s == 0.0
        for now_s[0] in (103.0, 104.0, 107.0):
            both.beat()  # it does not come on
        assert both.owed_s == 4.0
        assert both.silent_s() == {"loop": 0.0, "socket": 5.0}
        now_s[0] = 109.0
        turn()
        assert both.owed_s == 0.0
        assert both.silent_s() == {"loop": 2.0, "socket": 0.0}


def test_a_supervisor_that_has_gone_is_only_logged(tmp_path, caplog):
    Notifier(str(tmp_path / "gone")).say("READY=1")
    assert "event=not_notified said=READY=1" in caplog.text


def test_sockets_for_another_process_are_not_ours():
    assert given_socket({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) is None
    assert given_socket({}) is None


def test_several_sockets_are_refused():
    with pytest.raises(SocketError, match="hands over 2 sockets"):
        given_socket({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2"})


def test_a_socket_of_another_kind_is_refused(monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        monkeypatch.setattr(notify, "FIRST_GIVEN", os.dup(sock.fileno()))
        with pytest.raises(SocketError, match="no listening Unix socket"):
            given_socket({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
