"""What all clients of the Realtime socket may be sending together."""

from __future__ import annotations

import contextlib
import json
import socket

import pytest
from serve.scripted import TIMEOUT_S, ScriptedSession, answer, served
from serve.test_limits import HANDSHAKE, connected, until_closed
from serve.test_realtime import data_url, png
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import unix_connect

from edge.errors import CapacityError
from edge.serve.limits import MAX_SHARE_BYTES
from edge.serve.realtime import MAX_MESSAGE_BYTES
from edge.serve.room import FREE_BYTES, Room, Share


@pytest.fixture
def path(tmp_path):
    return tmp_path / "edge.sock"


def talking(path) -> socket.socket:
    """A client that writes its frames itself, after the first event."""
    client = connected(path)
    client.sendall(HANDSHAKE)
    received = b""
    while b"session.created" not in received:
        received += client.recv(1 << 16)
    return client


def test_messages_that_arrive_together_are_bounded_together(path):
    """Each sends all of a large message but its end; a neighbour's small ones pass all the time."""
    n_bytes = MAX_MESSAGE_BYTES - 1
    n = MAX_SHARE_BYTES // (n_bytes - FREE_BYTES)
    head = b"\x81\xff" + n_bytes.to_bytes(8, "big") + bytes(4)
    clear = '{"type": "input_audio_buffer.clear"}'
    with served(path, ScriptedSession(answer("x"))), contextlib.ExitStack() as stack:
        neighbour = stack.enter_context(unix_connect(str(path), "ws://edge/v1/realtime"))
        assert json.loads(neighbour.recv(TIMEOUT_S))["type"] == "session.created"
        arriving = [stack.enter_context(talking(path)) for _ in range(n + 1)]
        for client in arriving[:n]:
            client.sendall(head + bytes(n_bytes - 1))
        neighbour.send(clear)  # by then all of that has arrived
        assert json.loads(neighbour.recv(TIMEOUT_S))["type"] == "input_audio_buffer.cleared"
        last = arriving[n]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            last.sendall(head + bytes(n_bytes - 1))
        refused = until_closed(last)
        assert b"are arriving already" in refused
        assert b'"code":"over_capacity"' in refused
        assert refused.endswith(b"\x88\x02" + (1013).to_bytes(2, "big"))
        neighbour.send(clear)
        assert json.loads(neighbour.recv(TIMEOUT_S))["type"] == "input_audio_buffer.cleared"
        arriving[0].sendall(b"\0")  # its message is whole: no JSON, but it has its room back
        assert b"event: is not JSON" in arriving[0].recv(1 << 16)
        with talking(path) as next_one:
            next_one.sendall(head + bytes(n_bytes))
            assert b"event: is not JSON" in next_one.recv(1 << 16)
        for client in arriving[1:n]:  # they go in mid-message
            client.shutdown(socket.SHUT_WR)
            until_closed(client)
        for _ in range(n):
            client = stack.enter_context(talking(path))
            client.sendall(head + bytes(n_bytes - 1))
        neighbour.send(clear)
        assert json.loads(neighbour.recv(TIMEOUT_S))["type"] == "input_audio_buffer.cleared"
        client.sendall(b"\0")
        assert b"event: is not JSON" in client.recv(1 << 16)


def test_pings_take_no_room(path, monkeypatch):
    """More of them than there is room for, in the middle of a message."""
    monkeypatch.setattr("edge.serve.app.MAX_READING_BYTES", 1000)
    ping = b"\x89\xfd" + bytes(4 + 125)
    with served(path, ScriptedSession(answer("x"))), talking(path) as client:
        client.sendall(b"\x01\x81" + bytes(4) + b" ")
        for _ in range(2 * FREE_BYTES // len(ping)):
            client.sendall(ping)
            assert client.recv(2 + 125, socket.MSG_WAITALL) == b"\x8a\x7d" + bytes(125)
        client.sendall(b"\x80\x81" + bytes(4) + b" ")
        assert b"event: is not JSON" in client.recv(1 << 16)


def test_a_stock_client_reads_why_its_message_was_refused(path, monkeypatch):
    monkeypatch.setattr("edge.serve.app.MAX_READING_BYTES", 1000)
    with (
        served(path, ScriptedSession(answer("x"))),
        unix_connect(str(path), "ws://edge/v1/realtime") as client,
    ):
        assert json.loads(client.recv(TIMEOUT_S))["type"] == "session.created"
        client.send('{"type": "input_audio_buffer.clear"}' + " " * 60_000)  # small enough
        assert json.loads(client.recv(TIMEOUT_S))["type"] == "input_audio_buffer.cleared"
        with contextlib.suppress(ConnectionClosedError):
            client.send(" " * (1 << 20))
        assert json.loads(client.recv(TIMEOUT_S))["error"]["code"] == "over_capacity"
        with pytest.raises(ConnectionClosedError) as caught:
            client.recv(TIMEOUT_S)
        assert caught.value.rcvd.code == 1013


def test_pictures_of_all_conversations_are_bounded_together(path, monkeypatch):
    monkeypatch.setattr("edge.serve.app.MAX_ALL_MEDIA_BYTES", 9000)
    picture = [{"type": "input_image", "image_url": data_url(png(40, 30))}]  # 3600 bytes of RGB
    item = {"type": "message", "role": "user", "content": picture, "id": "picture"}

    def shows(client) -> bool:
        """Whether there is room for one more picture."""
        client.send(json.dumps({"type": "conversation.item.create", "item": item}))
        told = json.loads(client.recv(TIMEOUT_S))
        if told["type"] == "conversation.item.added":
            assert json.loads(client.recv(TIMEOUT_S))["type"] == "conversation.item.done"
            return True
        assert "conversation: of 3600 more bytes: 3600 of user " in told["error"]["message"]
        return False

    with (
        served(path, ScriptedSession(answer("x"))),
        unix_connect(str(path), "ws://edge/v1/realtime") as first,
    ):
        first.recv(TIMEOUT_S)
        with unix_connect(str(path), "ws://edge/v1/realtime") as second:
            second.recv(TIMEOUT_S)
            assert shows(first)
            assert not shows(second)
            first.send('{"type": "conversation.item.delete", "item_id": "picture"}')
            assert json.loads(first.recv(TIMEOUT_S))["type"] == "conversation.item.deleted"
            assert shows(second)
            assert not shows(first)
        # The second goes, and its room comes back once the service has noticed.
        assert any(shows(first) for _ in range(1000))


def test_a_user_has_a_share_of_the_room():
    room = Room(10, max_share_bytes=6)
    room.take("message", 6, "a")
    with pytest.raises(CapacityError, match="of 1 more bytes: 6 of a are arriving already"):
        room.check("message", 1, "a")
    room.take("message", 4, "b")
    with pytest.raises(CapacityError, match="of 1 more bytes: 10 are arriving already"):
        room.take("message", 1, "b")
    room.give(6, "a")
    room.take("message", 2, "b")
    room.check("message", 4, "a")


def test_room_that_is_given_back_can_be_taken_again():
    room = Room(10)
    room.take("message", 10)
    with pytest.raises(CapacityError, match="message: of 1 more bytes: 10 are arriving already"):
        room.take("message", 1)
    room.give(1)
    room.take("message", 1)


def test_one_user_leaves_room_for_another():
    room = Room(100, "are held", 50)
    first, second = Share(room, "user 1"), Share(room, "user 2")
    first.take("conversation", 50)
    with pytest.raises(CapacityError, match="50 of user 1 are held already"):
        first.take("pictures and sounds", 1)
    second.take("pictures and sounds", 50)
    first.give(50)
    first.take("pictures and sounds", 50)
