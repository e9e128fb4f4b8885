"""Our own client against the real application."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import replace

import pytest
from serve.scripted import (
    DONE,
    MODEL,
    REPORT,
    TIMEOUT_S,
    ScriptedSession,
    answer,
    served,
    speak_until_cancelled,
)

from edge.client import Client, Finished, Text
from edge.errors import CapacityError, EngineError, ProtocolError, SocketError
from edge.session.turn import Failed, TextDelta


def test_an_answer_streams(tmp_path):
    path = tmp_path / "edge.sock"
    session = ScriptedSession(answer("Eine Täs", "se ☕", "\n🤖", reasoning="Hm…"))
    with served(path, session):
        asked = {"thinking": True, "max_tokens": 7, "seed": 1, "recall_s": (30, 2)}
        asked["consistency"] = False
        events = list(Client(path, TIMEOUT_S).ask("Was?", **asked))
    assert events[:-1] == [
        Text("Hm…", reasoning=True),
        Text("Eine Täs"),
        Text("se ☕"),
        Text("\n🤖"),
    ]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert finished.finish_reason == "stop"
    assert finished.usage["total_tokens"] == 335
    assert finished.timeline["first_token_ms"] == 40.0
    assert finished.timeline == REPORT
    assert (finished.confidence, finished.sources) == (0.875, REPORT["sources"])
    assert finished.consistency == REPORT["consistency"]
    (question,) = session.questions
    assert (question.thinking, question.max_tokens, question.sampling.seed) == (True, 7, 1)
    assert question.recall_s == (30, 2)


def test_models_and_health(tmp_path):
    path = tmp_path / "edge.sock"
    with served(path, ScriptedSession(answer("x"), ready=False)):
        assert Client(path).models() == [MODEL]
        assert Client(path).health()["ready"] is False


def test_nobody_there(tmp_path):
    for path, said in ((tmp_path / "none.sock", "is not there"), (tmp_path, "nobody listens")):
        with pytest.raises(SocketError, match=said) as caught:
            Client(path).models()
        assert caught.value.remedy == "start `edge run`"
    with pytest.raises(SocketError, match="cannot be reached"):
        Client(tmp_path / ("x" * 200)).models()


@pytest.mark.parametrize(
    "error",
    [
        ProtocolError("temperature", "is 3: too hot", "lower it"),
        CapacityError("turn", "8 questions are waiting", "ask later"),
        EngineError("decode", "failed", "restart"),
    ],
)
def test_the_services_error_arrives_as_it_was_raised(tmp_path, error):
    path = tmp_path / "edge.sock"

    def early(turn):
        turn.deliver(Failed(error))

    def late(turn):
        turn.deliver(TextDelta("a"))
        turn.deliver(Failed(error))

    with (
        served(path, ScriptedSession(early)),
        pytest.raises(type(error)) as caught,
    ):
        list(Client(path).ask("?"))
    assert str(caught.value) == str(error)
    # A request cannot turn out wrong in mid-answer.
    if not isinstance(error, ProtocolError):
        with (
            served(path, ScriptedSession(late)),
            pytest.raises(type(error)) as caught,
        ):
            list(Client(path).ask("?"))
        assert str(caught.value) == str(error)


def test_a_bad_request_is_a_protocol_error(tmp_path):
    path = tmp_path / "edge.sock"
    with (
        served(path, ScriptedSession(answer("x"))),
        pytest.raises(ProtocolError, match="temperature: expected"),
    ):
        list(Client(path).ask("?", temperature=9.0))


def test_closing_the_iterator_cancels_the_turn(tmp_path):
    path = tmp_path / "edge.sock"
    started, seen = threading.Event(), threading.Event()
    with served(path, ScriptedSession(speak_until_cancelled(started, seen))):
        events = Client(path).ask("?")
        assert next(events) == Text("Well")
        events.close()
        assert seen.wait(TIMEOUT_S)


def test_a_service_that_stops_in_mid_answer(tmp_path):
    path = tmp_path / "edge.sock"
    started, seen = threading.Event(), threading.Event()
    with served(path, ScriptedSession(speak_until_cancelled(started, seen))) as stop:
        events = Client(path, TIMEOUT_S).ask("?")
        assert next(events) == Text("Well")
        stop()
        with pytest.raises(SocketError, match="ended before its answer did"):
            list(events)
        assert seen.wait(TIMEOUT_S)


@pytest.mark.parametrize(
    "spoken",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nTransf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\ndata: {",
        b"HTTP/1.1 200 OK\r\n\r\ndata: {",
        b"nonsense\r\n\r\n",
    ],
)
def test_a_service_killed_at_any_byte(tmp_path, spoken):
    path = tmp_path / "edge.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def die() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(spoken)

        thread = threading.Thread(target=die)
        thread.start()
        with pytest.raises(SocketError, match="ended before its answer did"):
            list(Client(path, TIMEOUT_S).ask("?"))
        thread.join(TIMEOUT_S)


def test_a_silent_service(tmp_path):
    path = tmp_path / "edge.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)
        with pytest.raises(SocketError, match=r"was silent for 0\.05 s"):
            Client(path, timeout_s=0.05).health()


def test_an_error_without_our_form_is_still_shown(tmp_path):
    path = tmp_path / "edge.sock"
    body = b"Bad gateway"
    spoken = b"HTTP/1.1 502 Bad\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def refuse() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                connection.sendall(spoken)

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(EngineError, match="HTTP 502"):
            Client(path, TIMEOUT_S).health()
        thread.join(TIMEOUT_S)


def test_a_length_limit_is_told(tmp_path):
    path = tmp_path / "edge.sock"
    with served(path, ScriptedSession(answer("a", done=replace(DONE, finish_reason="length")))):
        assert list(Client(path).ask("?"))[-1].finish_reason == "length"
