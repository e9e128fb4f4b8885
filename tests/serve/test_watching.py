"""Triggers and the stream of events, over HTTP."""

from __future__ import annotations

import json
import threading
import time

import httpx2
import pytest
from serve.scripted import DONE, TIMEOUT_S, ScriptedSession, answer, served

from edge.config import Config, Socket
from edge.senses.turn_events import SpeechStarted
from edge.session.budget import LADDER, Degraded
from edge.session.intake import Refused
from edge.session.notes import Noted
from edge.session.perception import Rebased
from edge.session.triggers import MAX_TRIGGERS, Trigger, TriggerBegan, TriggerEnded
from edge.session.turn import SpeechStopped, Spoken, TextDelta
from edge.types import Evidence, Stages

S = 1_000_000_000
SEEN = Evidence("camera", 1 * S, 2 * S, (3, 4))


@pytest.fixture
def session():
    return ScriptedSession(answer("x"))


@pytest.fixture
def client(tmp_path, session):
    path = tmp_path / "edge.sock"
    transport = httpx2.HTTPTransport(uds=str(path))
    with (
        served(path, session, Config(socket=Socket(max_outbox_events=64))),
        httpx2.Client(transport=transport, base_url="http://edge", timeout=TIMEOUT_S) as client,
    ):
        yield client


def payloads(response):
    for line in response.iter_lines():
        if line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            assert event.pop("event_id").startswith("event_")
            yield event


def test_a_head_of_the_events_has_no_body_and_the_connection_goes_on(client):
    assert client.head("/v1/edge/events").status_code == 405
    assert client.head("/v1/edge/triggers").status_code == 200
    assert client.get("/readyz").json() == {"ready": True}


def test_triggers_are_made_listed_and_deleted(client, session):
    wish = {"condition": "Is there a person?", "modality": "video", "cooldown_s": 2}
    made = client.post("/v1/edge/triggers", json=wish).json()
    assert made["id"] == "trigger_1"
    assert (made["debounce_s"], made["is_on"], made["confidence"]) == (0.0, False, None)
    assert client.get("/v1/edge/triggers").json() == {"data": [made]}
    expected = Trigger("Is there a person?", "video", cooldown_s=2.0)
    assert [status.trigger for status in session.triggers.entries()] == [expected]
    gone = client.delete("/v1/edge/triggers/trigger_1")
    assert gone.json() == {"id": "trigger_1", "deleted": True}
    again = client.delete("/v1/edge/triggers/trigger_1")
    assert (again.status_code, again.json()["error"]["code"]) == (404, "not_found")
    assert client.get("/v1/edge/triggers").json() == {"data": []}
    changes = session.triggers.changes()
    assert [change["trigger"] is None for change in changes] == [False, True]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"condition": ""}',
        b'{"condition": "x", "modality": "smell"}',
        b'{"condition": "x", "period_s": 0}',
        b'{"condition": "x", "cooldown_s": -1}',
        b'{"condition": "x", "unknown": 1}',
        b"[" * 100_000,
        json.dumps({"condition": "x" * 501}).encode(),
    ],
)
def test_what_is_no_trigger_is_refused(client, body):
    refused = client.post("/v1/edge/triggers", content=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "body")
    assert client.get("/v1/edge/triggers").json() == {"data": []}


def test_there_are_not_too_many(client):
    for i in range(MAX_TRIGGERS):
        made = client.post("/v1/edge/triggers", json={"condition": f"Is it {i}?"})
        assert made.status_code == 200
    refused = client.post("/v1/edge/triggers", json={"condition": "x"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "over_capacity")


def test_no_trigger_outlives_its_client_however_much_happens(client, session):
    """Before Python 3.12 `wait_for` loses a cancellation that comes together with an event."""
    stopped = threading.Event()

    def happen():
        while not stopped.wait(0.0002):
            session.events.tell(TriggerBegan("another", "?", 9 * S, 8 * S, 0.75, (SEEN,)))

    thread = threading.Thread(target=happen)
    thread.start()
    try:
        for _ in range(60):
            with client.stream(
                "POST", "/v1/edge/triggers", json={"condition": "?", "stream": True}
            ):
                pass
        end_s = time.monotonic() + TIMEOUT_S
        while session.triggers.entries() and time.monotonic() < end_s:
            time.sleep(0.05)
        assert session.triggers.entries() == ()
    finally:
        stopped.set()
        thread.join()


def test_a_watched_trigger_tells_its_own_events_and_goes_with_its_client(client, session):
    wish = {"condition": "Is there a person?", "stream": True}
    with client.stream("POST", "/v1/edge/triggers", json=wish) as response:
        events = payloads(response)
        created = next(events)
        assert (created["type"], created["trigger_id"]) == ("edge.trigger.created", "trigger_1")
        assert created["trigger"]["condition"] == "Is there a person?"
        for name in ("trigger_2", "trigger_1"):
            session.events.tell(TriggerBegan(name, "?", 9 * S, 8 * S, 0.75, (SEEN,)))
        session.events.tell(TriggerEnded("trigger_1", "?", 12 * S, 8 * S, 0.25, ()))
        assert next(events) == {
            "type": "edge.trigger.began",
            "id": "trigger_1",
            "condition": "?",
            "at_s": 9.0,
            "began_s": 8.0,
            "confidence": 0.75,
            "evidence": [{"source": "camera", "start_s": 1.0, "end_s": 2.0, "frame_ids": [3, 4]}],
        }
        assert next(events)["type"] == "edge.trigger.ended"
    deleted = threading.Event()
    for _ in range(1000):
        if not session.triggers.entries():
            deleted.set()
            break
        client.get("/readyz")
    assert deleted.is_set()


STAGES = Stages("video", S, 2 * S, 3 * S, 4 * S, 5 * S, n_tokens=30)
EVENTS = [
    STAGES,
    Degraded(S, LADDER[1], "hot"),
    Rebased(S, 100),
    Noted(S, "a red circle", 5),
    Refused(S, "camera", "has no room"),
    TriggerBegan("trigger_1", "?", S, S, 0.9, ()),
    TriggerEnded("trigger_1", "?", S, S, 0.1, (), "unseen"),
]
SPOKEN = [
    *(SpeechStarted(S, 2 * S), SpeechStopped(2 * S, is_asked=True)),
    *(Spoken(S, SEEN), TextDelta("green"), DONE),
]


def test_all_events_of_the_session_and_none_of_other_clients_answers(client, session):
    with client.stream("GET", "/v1/edge/events") as response:
        session.events.tell(TextDelta("somebody else's"))
        for event in EVENTS:
            session.events.tell(event)
        for event in SPOKEN:  # those who observe hear of them, too
            session.events.tell(event)
            session.spoken.tell(event)
        session.events.tell(EVENTS[0])
        events = payloads(response)
        found = [next(events) for _ in (*EVENTS, *SPOKEN, EVENTS[0])]
    assert [event["type"] for event in found] == [
        *("edge.perceived", "edge.degraded", "edge.rebased", "edge.noted", "edge.refused"),
        *("edge.trigger.began", "edge.trigger.ended", "edge.speech.started"),
        *("edge.speech.stopped", "edge.speech.asked"),
        *("edge.speech.delta", "edge.speech.done", "edge.perceived"),
    ]
    assert found[6]["cause"] == "unseen"
    assert (found[8]["end_s"], found[8]["is_asked"]) == (2.0, True)
    assert found[-3]["delta"] == "green"
    assert found[0]["segment"]["n_tokens"] == 30
    assert found[1] == {
        "type": "edge.degraded",
        "at_s": 1.0,
        "rung": "fewer tokens",
        "cause": "hot",
    }


def test_a_client_that_goes_is_told_no_more(client, session):
    before = session.events._all, session.spoken._all
    with client.stream("GET", "/v1/edge/events") as response:
        session.spoken.tell(SPOKEN[0])
        assert next(payloads(response))["type"] == "edge.speech.started"
    deadline_s = time.monotonic() + TIMEOUT_S
    while (session.events._all, session.spoken._all) != before and time.monotonic() < deadline_s:
        client.get("/readyz")
    assert (session.events._all, session.spoken._all) == before


def test_a_client_chooses_which_events(client, session):
    where = "/v1/edge/events?types=edge.trigger.,edge.rebased"
    with client.stream("GET", where) as response:
        for event in EVENTS:
            session.events.tell(event)
        events = payloads(response)
        assert [next(events)["type"] for _ in range(3)] == [
            *("edge.rebased", "edge.trigger.began", "edge.trigger.ended")
        ]


def test_a_client_that_reads_no_events_is_dropped(client, session):
    with client.stream("GET", "/v1/edge/events") as response:
        for _ in range(20_000):
            session.events.tell(Noted(0, "x" * 200, 1))
        received = sum(len(part) for part in drained(response))
        metrics = client.get("/metrics").text
    assert received < 20_000 * 200
    assert 'edge_clients_dropped_total{reason="outbox full"} 1.0' in metrics


def drained(response):
    try:
        yield from response.iter_bytes()
    except httpx2.RemoteProtocolError:  # cut in mid-stream
        return
