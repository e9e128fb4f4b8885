"""The asyncio client, and both clients' triggers and events, against the real application."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest
from serve.scripted import (
    MODEL,
    TIMEOUT_S,
    ScriptedSession,
    answer,
    served,
    speak_until_cancelled,
)

from edge.async_client import AsyncClient
from edge.client import Client
from edge.errors import CapacityError, EngineError, ProtocolError, SocketError
from edge.session.notes import Noted
from edge.session.triggers import TriggerBegan, TriggerEnded
from edge.session.turn import Failed, TextDelta
from edge.types import Evidence
from edge.wire import Ask, Finished, Text, Triggered, Watch

S = 1_000_000_000
SEEN = Evidence("camera", 1 * S, 2 * S, (3, 4))
BEGAN = TriggerBegan("trigger_1", "Is it?", 9 * S, 8 * S, 0.75, (SEEN,))
ENDED = TriggerEnded("trigger_1", "Is it?", 12 * S, 8 * S, 0.25, ())
EVIDENCE = [{"source": "camera", "start_s": 1.0, "end_s": 2.0, "frame_ids": [3, 4]}]
TOLD = [
    Triggered("trigger_1", "Is it?", True, 9.0, 8.0, 0.75, EVIDENCE),
    Triggered("trigger_1", "Is it?", False, 12.0, 8.0, 0.25, [], "judged"),
]


def run(path, use):
    """Use an asyncio client until it is done, in time."""

    async def main():
        async with AsyncClient(path, TIMEOUT_S) as client:
            return await asyncio.wait_for(use(client), TIMEOUT_S)

    return asyncio.run(main())


def tell_watchers(session, n=1):
    """Once somebody watches, tell what happens."""
    deadline = time.monotonic() + TIMEOUT_S
    while len(session.triggers.entries()) < n:
        assert time.monotonic() < deadline, "nobody watches"
        time.sleep(0.001)
    session.events.tell(BEGAN)
    session.events.tell(ENDED)


def unwatched(session):
    deadline = time.monotonic() + TIMEOUT_S
    while session.triggers.entries():
        assert time.monotonic() < deadline, "the trigger outlives its client"
        time.sleep(0.001)
    return True


def test_an_answer_streams(tmp_path):
    path, session = tmp_path / "edge.sock", ScriptedSession(answer("Ein", " ☕", reasoning="Hm"))

    async def use(client):
        assert await client.models() == [MODEL]
        assert (await client.health())["ready"] is True
        asked = Ask("Was?", thinking=True, max_tokens=7, recall_s=(30, 2), deadline_s=5)
        return [event async for event in client.ask(asked)]

    with served(path, session):
        events = run(path, use)
    assert events[:-1] == [Text("Hm", reasoning=True), Text("Ein"), Text(" ☕")]
    assert isinstance(events[-1], Finished)
    assert events[-1].usage["total_tokens"] == 335
    (question,) = session.questions
    assert (question.thinking, question.max_tokens) == (True, 7)
    assert (question.recall_s, question.deadline_s) == ((30, 2), 5)
    assert question.channel == "operator"


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "error",
    [CapacityError("turn", "8 wait", "ask later"), EngineError("decode", "failed", "restart")],
)
def test_the_services_error_arrives_as_it_was_raised(tmp_path, error, late):
    path = tmp_path / "edge.sock"

    def play(turn):
        if late:
            turn.deliver(TextDelta("a"))
        turn.deliver(Failed(error))

    async def use(client):
        return [event async for event in client.ask("?")]

    with served(path, ScriptedSession(play)), pytest.raises(type(error)) as caught:
        run(path, use)
    assert str(caught.value) == str(error)


def test_nobody_there_and_a_service_that_stops(tmp_path):
    path = tmp_path / "edge.sock"
    with pytest.raises(SocketError, match="is not there"):
        run(path, lambda client: client.health())
    started, seen = threading.Event(), threading.Event()

    async def use(client):
        events = client.ask("?")
        assert await anext(events) == Text("Well")
        await asyncio.to_thread(stop)
        return [event async for event in events]

    with served(path, ScriptedSession(speak_until_cancelled(started, seen))) as stop:
        with pytest.raises(SocketError, match="ended before its answer did"):
            run(path, use)
        assert seen.wait(TIMEOUT_S)


def test_closing_an_answer_cancels_its_turn(tmp_path):
    path = tmp_path / "edge.sock"
    started, seen = threading.Event(), threading.Event()

    async def use(client):
        async with contextlib.aclosing(client.ask("?")) as events:
            assert await anext(events) == Text("Well")

    with served(path, ScriptedSession(speak_until_cancelled(started, seen))):
        run(path, use)
        assert seen.wait(TIMEOUT_S)


def test_watching_with_either_client(tmp_path):
    path, session = tmp_path / "edge.sock", ScriptedSession(answer("x"))

    async def use(client):
        wish = Watch("Is it?", modality="video", period_s=0.5, priority="high")
        async with contextlib.aclosing(client.watch(wish)) as told:
            return [await anext(told), await anext(told)]

    with served(path, session):
        teller = threading.Thread(target=tell_watchers, args=(session,))
        teller.start()
        assert run(path, use) == TOLD
        teller.join(TIMEOUT_S)
        assert unwatched(session)

    session = ScriptedSession(answer("x"))
    with served(path, session):
        teller = threading.Thread(target=tell_watchers, args=(session,))
        teller.start()
        told = Client(path, TIMEOUT_S).watch("Is it?", debounce_s=1.5)
        assert [next(told), next(told)] == TOLD
        (status,) = session.triggers.entries()
        assert status.trigger.debounce_s == 1.5
        told.close()
        teller.join(TIMEOUT_S)
        assert unwatched(session)


def test_triggers_and_events_with_either_client(tmp_path):
    path, session = tmp_path / "edge.sock", ScriptedSession(answer("x"))

    async def use(client):
        name = await client.create_trigger(Watch("Is it?", cooldown_s=2))
        (status,) = await client.triggers()
        assert (status["id"], status["cooldown_s"]) == (name, 2.0)
        await client.delete_trigger(name)
        with pytest.raises(ProtocolError, match="does not exist"):
            await client.delete_trigger(name)
        events = client.events(["edge.noted"])
        first = asyncio.ensure_future(anext(events))
        while not first.done():
            session.events.tell(Noted(S, "it rains", 3))
            await asyncio.sleep(0.01)
        await events.aclose()
        return first.result()

    with served(path, session):
        noted = run(path, use)
        assert (noted["type"], noted["at_s"], noted["text"]) == ("edge.noted", 1.0, "it rains")
        client = Client(path, TIMEOUT_S)
        name = client.create_trigger("Is it?")
        assert [status["id"] for status in client.triggers()] == [name]
        client.delete_trigger(name)
        assert client.triggers() == []
        assert "edge_ready 1.0" in client.metrics()


def test_a_recording_is_sent_as_openai_has_it():
    body = Ask("Answer the question.", sound=b"RIFF....").body()
    assert b'{"type": "input_audio", "input_audio": {"data": "UklGRi4uLi4="' in body
    assert b'"format": "wav"}}, {"type": "text", "text": "Answer the question."}' in body
    assert b'"format": "mp3"' in Ask("", sound=b"ID3").body()
