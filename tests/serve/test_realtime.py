"""WebSocket /v1/realtime on a real Unix socket, with the clients that robots already have."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import threading
import time
import wave
from dataclasses import replace

import numpy as np
import openai
import pytest
import websockets.sync.client
from PIL import Image
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
from serve.test_app import http
from serve.traffic import Recorded
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from edge.config import Answer, Config
from edge.errors import CapacityError
from edge.model.grammars import problem_of
from edge.senses.sent import decode
from edge.senses.turn_events import SpeechStarted
from edge.serve.realtime import _text_frame
from edge.session.budget import LADDER, Degraded
from edge.session.triggers import TriggerBegan, TriggerEnded
from edge.session.turn import Failed, Message, SpeechStopped, Spoken, TextDelta, ToolCall
from edge.types import Evidence, Picture, Sound, Stages

pytest_plugins = ["media"]
MS = 1_000_000
URLS = {"base_url": "http://edge/v1", "websocket_base_url": "ws://edge/v1", "api_key": "none"}
TEXT = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Where?"}]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "edge.sock"


@contextlib.contextmanager
def connected(path):
    """A plain WebSocket client that keeps what it hears, checked against the schemas."""
    with websockets.sync.client.unix_connect(
        str(path), "ws://edge/v1/realtime", max_size=None
    ) as ws:
        yield Recorded(ws, TIMEOUT_S)


def options(path):
    return {"unix": True, "path": str(path)}


def png(width: int = 40, height: int = 30) -> bytes:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = (250, 10, 20)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def pcm(samples) -> str:
    whole = np.clip(np.asarray(samples) * (1 << 15), -(1 << 15), (1 << 15) - 1)
    return base64.b64encode(whole.astype("<i2").tobytes()).decode()


def tone(seconds: float, rate_hz: int = 24_000, hz: float = 440.0):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * rate_hz)) / rate_hz)


def test_the_stock_sdk_talks_text(path):
    session = ScriptedSession(answer("On the", " left ☕", reasoning="Hm"))
    with (
        served(path, session),
        openai.OpenAI(**URLS) as client,
        client.realtime.connect(
            model=MODEL, websocket_connection_options=options(path)
        ) as connection,
    ):
        connection.session.update(
            session={"type": "realtime", "instructions": "Be brief.", "max_output_tokens": 9}
        )
        connection.conversation.item.create(item=TEXT)
        connection.response.create()
        seen = []
        for event in connection:
            seen.append(event)
            if event.type == "response.done":
                break
    assert [event.type for event in seen] == [
        "session.created",
        "session.updated",
        "conversation.item.added",
        "conversation.item.done",
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
        "edge.reasoning.delta",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]
    assert seen[0].session.audio.input.turn_detection.type == "server_vad"
    assert seen[1].session.instructions == "Be brief."
    assert "".join(e.delta for e in seen if e.type == "response.output_text.delta") == (
        "On the left ☕"
    )
    response = seen[-1].response
    assert response.status == "completed"
    assert response.output[0].content[0].text == "On the left ☕"
    assert response.usage.input_tokens == 330
    assert response.usage.input_token_details.cached_tokens == 321
    assert len({event.event_id for event in seen}) == len(seen)
    (question,) = session.questions
    assert [(m.role, m.content) for m in question.messages] == [
        ("system", "Be brief."),
        ("user", "Where?"),
    ]
    assert (question.max_tokens, question.channel) == (9, "operator")


def test_the_stock_async_sdk_talks_text(path):
    async def talk():
        client = openai.AsyncOpenAI(**URLS)
        async with client.realtime.connect(
            model=MODEL, websocket_connection_options=options(path)
        ) as connection:
            await connection.conversation.item.create(item=TEXT)
            await connection.response.create(response={"instructions": "One word."})
            texts = []
            async for event in connection:
                if event.type == "response.output_text.delta":
                    texts.append(event.delta)
                if event.type == "response.done":
                    return texts, event.response.status
            return texts, None

    session = ScriptedSession(answer("Left", "."))
    with served(path, session):
        assert asyncio.run(talk()) == (["Left", "."], "completed")
    assert session.questions[0].user == f"user {os.getuid()}"
    assert session.questions[0].messages[0].content == "One word."


def test_what_was_said_before_belongs_to_the_next_question(path):
    session = ScriptedSession(answer("A cup."))
    with served(path, session), connected(path) as client:
        for text in ("What is it?", "Whose?"):
            item = {**TEXT, "content": [{"type": "input_text", "text": text}]}
            client.send("conversation.item.create", item=item)
            client.send("response.create")
            client.until("response.done")
        last = client.until("response.done", and_send="response.create")
        assert last["response"]["status"] == "completed"
    second, third = session.questions[1:]
    said = [("user", "What is it?"), ("assistant", "A cup."), ("user", "Whose?")]
    assert [(m.role, m.content) for m in second.messages] == said
    assert [m.content for m in third.messages[3:]] == ["A cup.", ""]


def test_a_remembered_conversation_is_in_the_live_context_only(path):
    session = ScriptedSession(answer("A cup."))
    with served(path, session), connected(path) as client:
        client.send("session.update", session={"type": "realtime", "edge": {"remember": True}})
        for _ in range(2):
            client.send("conversation.item.create", item=TEXT)
            client.send("response.create")
            client.until("response.done")
    assert [len(question.messages) for question in session.questions] == [1, 1]
    assert all(question.remember for question in session.questions)


def test_a_picture_and_a_sound_are_part_of_the_question(path):
    session = ScriptedSession(answer("Red."))
    content = [
        {"type": "input_image", "image_url": data_url(png())},
        {"type": "input_audio", "audio": pcm(tone(0.5))},
        {"type": "input_text", "text": "Which colour?"},
    ]
    with served(path, session), connected(path) as client:
        client.send("conversation.item.create", item={**TEXT, "content": content})
        added = client.until("conversation.item.added")
        client.send("response.create")
        client.until("response.done")
    assert added["item"]["content"][0]["image_url"] is None
    (message,) = session.questions[0].messages
    assert message.content == "Which colour?"
    picture, sound = message.media
    assert isinstance(picture, Picture)
    assert (picture.width, picture.height) == (40, 30)
    assert np.frombuffer(picture.rgb, np.uint8).reshape(30, 40, 3)[5, 5].tolist() == [250, 10, 20]
    assert isinstance(sound, Sound)
    samples = np.frombuffer(sound.samples, np.float32)
    assert abs(len(samples) - 8000) <= 1
    spectrum = np.abs(np.fft.rfft(samples))
    assert abs(int(spectrum.argmax()) * 16_000 / len(samples) - 440) <= 4


def test_sound_is_committed_by_hand(path):
    session = ScriptedSession(answer("Yes."))
    off = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
    with served(path, session), connected(path) as client:
        client.send("session.update", session=off)
        updated = client.until("session.updated")
        assert updated["session"]["audio"]["input"]["turn_detection"] is None
        client.send("input_audio_buffer.commit")
        assert "no speech" in client.until("error")["error"]["message"]
        samples = tone(1.0)
        for start in range(0, len(samples), 2400):
            client.send("input_audio_buffer.append", audio=pcm(samples[start : start + 2400]))
        client.send("input_audio_buffer.commit")
        committed = client.until("input_audio_buffer.committed")
        assert client.until("conversation.item.done")["item"]["id"] == committed["item_id"]
        client.send("input_audio_buffer.append", audio=pcm(samples))
        client.send("input_audio_buffer.clear")
        client.until("input_audio_buffer.cleared")
        client.send("response.create")
        client.until("response.done")
    (sound,) = session.questions[0].messages[0].media
    assert abs(len(sound.samples) // 4 - 16_000) <= 2


def test_too_much_sound_is_refused(path):
    off = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
    with served(path, ScriptedSession(answer("x"))), connected(path) as client:
        client.send("session.update", session=off)
        for _ in range(4):
            client.send("input_audio_buffer.append", audio=pcm(np.zeros(240_000)))
        assert "30 s" in client.until("error")["error"]["message"]


def test_the_service_hears_where_speech_begins_and_ends(path, speech):
    """A spoken word in silence makes a turn, which is answered without being asked."""
    words, silence = words_of(speech), np.zeros(24_000)
    sound = np.concatenate([silence, words, silence])
    session = ScriptedSession(answer("Front."))
    with served(path, session), connected(path) as client:
        for start in range(0, len(sound), 2400):
            client.send("input_audio_buffer.append", audio=pcm(sound[start : start + 2400]))
        client.until("response.done")
    kinds = [event["type"] for event in client.heard]
    started, stopped = (
        kinds.index("input_audio_buffer.speech_started"),
        kinds.index("input_audio_buffer.speech_stopped"),
    )
    assert started < stopped < kinds.index("input_audio_buffer.committed")
    heard = client.heard
    spoken_ms = len(words) / 24
    assert abs(heard[started]["audio_start_ms"] - 1000) < 300
    assert abs(heard[stopped]["audio_end_ms"] - 1000 - spoken_ms) < 400
    item = heard[kinds.index("input_audio_buffer.committed")]["item_id"]
    assert heard[started]["item_id"] == heard[stopped]["item_id"] == item
    (sound,) = session.questions[0].messages[0].media
    assert isinstance(sound, Sound)
    assert len(sound.samples) / 4 / 16 > 0.6 * spoken_ms


def words_of(speech):
    """A spoken word at 24 kHz."""
    with wave.open(str(speech / "Front_Center.wav")) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")[::2] / (1 << 15)


STARTED, STOPPED = "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped"


def speech_events(client):
    """Kinds and items of those that tell of speech, in order."""
    return [(e["type"], e["item_id"]) for e in client.heard if e["type"] in (STARTED, STOPPED)]


@pytest.mark.parametrize("how", ["clear", "no turn detection"])
def test_speech_that_is_forgotten_has_an_end(path, speech, how):
    off = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
    with served(path, ScriptedSession(answer("x"))), connected(path) as client:
        client.send("input_audio_buffer.append", audio=pcm(words_of(speech)))
        client.until(STARTED)
        if how == "clear":
            client.send("input_audio_buffer.clear")
            client.until("input_audio_buffer.cleared")
            client.send("input_audio_buffer.clear")  # nothing is on any more
            client.until("input_audio_buffer.cleared")
        else:
            client.send("session.update", session=off)
            client.until("session.updated")
            client.send("input_audio_buffer.append", audio=pcm(words_of(speech)))
            client.send("input_audio_buffer.commit")
            client.until("input_audio_buffer.committed")
        (started, item), (stopped, same) = speech_events(client)
    assert (started, stopped, item) == (STARTED, STOPPED, same)


def test_a_turn_that_is_refused_hides_none_of_those_after_it(path, speech):
    """Several turns in one piece of sound: every start has its end, of the same item."""
    piece = np.concatenate([words_of(speech), np.zeros(24_000)])
    refusal = CapacityError("question", "8 others wait", "ask later")
    session = ScriptedSession(answer("x"), refusal=refusal)
    with served(path, session), connected(path) as client:
        client.send("input_audio_buffer.append", audio=pcm(np.tile(piece, 3)), event_id="e1")
        for _ in range(3):
            assert client.until("error")["error"]["event_id"] == "e1"
    found = speech_events(client)
    assert [kind for kind, _ in found] == [STARTED, STOPPED] * 3
    assert [item for _, item in found[::2]] == [item for _, item in found[1::2]]
    assert len({item for _, item in found}) == 3


def test_what_a_trigger_tells_at_once_comes_behind_its_name(path):
    """The session's thread may judge it before the client's own thread goes on."""
    session = ScriptedSession(answer("x"))
    create, told = session.triggers.create, threading.Event()

    def judged_at_once(trigger):
        name = create(trigger)

        def tell():
            told.set()
            session.events.tell(TriggerBegan(name, "?", 2, 1, 0.9, ()))
            session.events.tell(TriggerEnded(name, "?", 3, 1, 0.9, (), "deleted"))

        threading.Thread(target=tell).start()
        assert told.wait(TIMEOUT_S)
        return name

    session.triggers.create = judged_at_once
    with served(path, session), connected(path) as client:
        client.send("edge.trigger.create", trigger={"condition": "a person"})
        client.until("edge.trigger.ended")
    kinds = [event["type"].removeprefix("edge.trigger.") for event in client.heard[1:]]
    assert kinds == ["created", "began", "ended"]


def test_speech_interrupts_the_answer(path, speech):
    words = words_of(speech)
    started, seen = threading.Event(), threading.Event()
    session = ScriptedSession(speak_until_cancelled(started, seen))
    with served(path, session), connected(path) as client:
        client.send("response.create")
        client.until("response.output_text.delta")
        client.send(
            "input_audio_buffer.append", audio=pcm(np.concatenate([words, np.zeros(24_000)]))
        )
        first = client.until("response.done")["response"]
        assert (first["status"], first["status_details"]["reason"]) == (
            "cancelled",
            "turn_detected",
        )
        client.until("response.created")  # the turn is answered when the old answer has ended
        client.until("response.output_text.delta")
        client.send("response.cancel")
        client.until("response.done")
    assert len(session.questions) == 2


def test_speech_that_may_not_interrupt_is_answered_next(path, speech):
    vad = {"type": "server_vad", "interrupt_response": False}
    go = threading.Event()

    def play(turn):
        turn.deliver(TextDelta("Well"))
        assert go.wait(TIMEOUT_S)
        turn.deliver(DONE)

    session = ScriptedSession(play)
    with served(path, session), connected(path) as client:
        client.send(
            "session.update",
            session={"type": "realtime", "audio": {"input": {"turn_detection": vad}}},
        )
        client.send("response.create")
        sound = np.concatenate([words_of(speech), np.zeros(24_000)])
        client.send("input_audio_buffer.append", audio=pcm(sound))
        client.until("input_audio_buffer.committed")
        go.set()
        assert client.until("response.done")["response"]["status"] == "completed"
        assert client.until("response.done")["response"]["status"] == "completed"
    assert "error" not in [event["type"] for event in client.heard]
    first, second = session.questions
    assert [len(one.messages[-1].media) for one in (first, second)] == [0, 1]


def test_cancel(path):
    started, seen = threading.Event(), threading.Event()
    session = ScriptedSession(speak_until_cancelled(started, seen))
    with served(path, session), connected(path) as client:
        client.send("response.cancel")
        assert "not being answered" in client.until("error")["error"]["message"]
        client.send("response.create")
        client.until("response.output_text.delta")
        client.send("response.create", event_id="mine")
        error = client.until("error")["error"]
        assert (error["event_id"], error["param"]) == ("mine", "response")
        client.send("response.cancel")
        client.send("response.create")  # waits for the end of the cancelled one
        first = client.until("response.done")["response"]
        assert first["status_details"]["reason"] == "client_cancelled"
        assert first["output"][0]["status"] == "incomplete"
        client.until("response.created")
        client.send("response.cancel")
        client.until("response.done")


def test_a_client_that_goes_cancels_its_turn(path):
    started, seen = threading.Event(), threading.Event()
    session = ScriptedSession(speak_until_cancelled(started, seen))
    with served(path, session):
        with connected(path) as client:
            client.send("edge.trigger.create", trigger={"condition": "a person"})
            client.until("edge.trigger.created")
            client.send("response.create")
            client.until("response.output_text.delta")
        assert seen.wait(TIMEOUT_S)
        session.join()
    assert not session.triggers.entries()


def test_a_failed_turn_is_a_failed_response(path):
    def play(turn):
        turn.deliver(Failed(CapacityError("question", "is too long", "ask less")))

    with served(path, ScriptedSession(play)), connected(path) as client:
        client.send("response.create")
        response = client.until("response.done")["response"]
        assert response["status"] == "failed"
        assert response["status_details"]["error"]["code"] == "over_capacity"
    refusal = CapacityError("question", "8 others wait", "ask later")
    with (
        served(path, ScriptedSession(answer("x"), refusal=refusal)),
        connected(path) as client,
    ):
        client.send("response.create", event_id="e1")
        assert client.until("error")["error"]["event_id"] == "e1"


@pytest.mark.parametrize(
    ("reason", "status", "told"),
    [("length", "incomplete", "max_output_tokens"), ("deadline", "incomplete", "deadline")],
)
def test_an_answer_that_is_cut_says_why(path, reason, status, told):
    done = replace(DONE, finish_reason=reason)
    with served(path, ScriptedSession(answer("x", done=done))), connected(path) as client:
        client.send("response.create")
        response = client.until("response.done")["response"]
    assert (response["status"], response["status_details"]["reason"]) == (status, told)


def test_a_proposed_call_is_an_item_and_its_result_goes_back(path):
    def play(turn):
        if turn.question.messages[-1].role == "tool":
            return answer("Done.")(turn)
        turn.deliver(TextDelta("I go."))
        turn.deliver(ToolCall("move", {"to": "door"}))
        turn.deliver(DONE)
        return None

    session = ScriptedSession(play)
    tool = {"type": "function", "name": "move", "parameters": {"type": "object", "properties": {}}}
    with served(path, session), connected(path) as client:
        client.send("session.update", session={"type": "realtime", "tools": [tool]})
        client.send("conversation.item.create", item=TEXT)
        client.send("response.create")
        call = client.until("response.function_call_arguments.done")
        assert (call["name"], json.loads(call["arguments"])) == ("move", {"to": "door"})
        output = client.until("response.done")["response"]["output"]
        assert [item["type"] for item in output] == ["message", "function_call"]
        added = [e["item"] for e in client.heard if e["type"] == "response.output_item.added"][-1]
        assert (added["arguments"], added["status"]) == ("", "in_progress")
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "there"}
        client.send("conversation.item.create", item=result)
        client.send("response.create")
        client.until("response.done")
    first, second = session.questions
    assert first.tools[0]["function"]["name"] == "move"
    _, assistant, told = second.messages
    assert (assistant.content, assistant.calls) == ("I go.", (ToolCall("move", {"to": "door"}),))
    assert (told.role, told.content) == ("tool", "there")


def test_a_call_that_was_cut_is_an_incomplete_item(path):
    def play(turn):
        turn.deliver(ToolCall("move", {"to": "door"}, is_whole=False))
        turn.deliver(replace(DONE, finish_reason="length"))

    tool = {"type": "function", "name": "move", "parameters": {"type": "object", "properties": {}}}
    session = ScriptedSession(play)
    with served(path, session), connected(path) as client:
        client.send("session.update", session={"type": "realtime", "tools": [tool]})
        for _ in range(2):  # it is in the conversation then, and hinders nothing
            client.send("response.create")
            item = client.until("response.output_item.done")["item"]
            response = client.until("response.done")["response"]
    assert (item["type"], item["status"], item["arguments"]) == (
        "function_call",
        "incomplete",
        '{"to": "door"',
    )
    assert response["status"] == "incomplete"
    assert session.questions[1].messages[-2].calls == (ToolCall("move", {"to": "door"}),)


def test_the_thought_before_a_call_is_kept_for_what_the_tool_says(path):
    def play(turn):
        turn.deliver(TextDelta("It is far.", reasoning=True))
        turn.deliver(ToolCall("move", {}))
        turn.deliver(DONE)

    tool = {"type": "function", "name": "move", "parameters": {"type": "object", "properties": {}}}
    session = ScriptedSession(play)
    with served(path, session), connected(path) as client:
        client.send("session.update", session={"type": "realtime", "tools": [tool]})
        client.send("conversation.item.create", item=TEXT)
        client.send("response.create")
        (call,) = client.until("response.done")["response"]["output"]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "no"}
        client.send("conversation.item.create", item=result)
        client.send("response.create")
        client.until("response.done")
    _, assistant, _ = session.questions[1].messages
    assert assistant == Message(
        "assistant", "", calls=(ToolCall("move", {}),), reasoning="It is far."
    )


def test_our_own_events_for_those_who_want_them(path):
    session = ScriptedSession(answer("x"))
    stages = Stages("video", 1000 * MS, 1001 * MS, 1002 * MS, 1003 * MS, 1004 * MS, 60)
    topics = ["perceived", "degraded", "speech"]
    with served(path, session), connected(path) as client, connected(path) as other:
        client.send("session.update", session={"type": "realtime", "edge": {"events": topics}})
        client.until("session.updated")
        session.events.tell(stages)
        session.events.tell(Degraded(2000 * MS, LADDER[1], "heat"))
        session.events.tell(TextDelta("somebody else's answer"))
        evidence = Evidence("microphone", 1, 2)
        spoken = SpeechStarted(3, 4), SpeechStopped(5, is_asked=True), Spoken(5, evidence)
        for event in (*spoken, TextDelta("Hi"), DONE):
            session.spoken.tell(event)
        assert client.until("edge.speech.done")["edge"] == REPORT
        other.send("response.create")
        assert other.until("response.done")["response"]["edge"] == REPORT
    assert [event["type"] for event in client.heard[2:]] == [
        "edge.perceived",
        "edge.degraded",
        "edge.speech.started",
        "edge.speech.stopped",
        "edge.speech.asked",
        "edge.speech.delta",
        "edge.speech.done",
    ]
    assert client.heard[2]["segment"]["prefill_ms"] == 1.0
    assert not any(event["type"].startswith("edge.") for event in other.heard)


def test_health_once_a_second(path):
    with served(path, ScriptedSession(answer("x"))), connected(path) as client:
        client.send("session.update", session={"type": "realtime", "edge": {"events": ["health"]}})
        assert client.until("edge.health")["health"]["max_context_tokens"] == 8192


@pytest.mark.parametrize(
    ("session", "param", "said"),
    [
        ({"output_modalities": ["audio"]}, "session.output_modalities", "does not speak"),
        ({"model": "gpt-realtime"}, "session.model", "'gpt-realtime'"),
        ({"edge": {"thinks": True}}, "session.edge.thinks", "not a known field"),
        ({"edge": {"recall_s": [1, 2]}}, "session.edge.recall_s", "[1.0, 2.0]"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "session.tools", "wrong one"),
        ({"tool_choice": "required"}, "session.tool_choice", "not given"),
        ({"max_output_tokens": 9000}, "session.max_output_tokens", "above"),
        (
            {"edge": {"response_format": {"type": "regex", "regex": "("}}},
            "session.edge.response_format",
            "cannot be followed",
        ),
    ],
)
def test_settings_that_cannot_be_had_are_named(path, session, param, said):
    with served(path, ScriptedSession(answer("x"))), connected(path) as client:
        client.send("session.update", session={"type": "realtime", **session}, event_id="u")
        error = client.until("error")["error"]
        assert (error["param"], error["event_id"]) == (param, "u")
        assert said in error["message"]
        client.send("session.update", session={"type": "realtime"})  # and nothing has changed
        assert client.until("session.updated")["session"] == client.heard[0]["session"]


@pytest.mark.parametrize(
    "message",
    ["", "{", "[]", '{"type": "nonsense"}', '{"type": 3}', "[" * 5000, b"\x00\xff", '"\\ud800"'],
)
def test_nonsense_is_refused_and_the_session_goes_on(path, message):
    with served(path, ScriptedSession(answer("x"))), connected(path) as client:
        client.socket.send(message)
        client.until("error")
        client.send("response.create")
        client.until("response.done")


def test_a_defect_met_by_one_event_is_told_and_the_session_goes_on(path, monkeypatch):
    def fail(*_, **__):
        raise LookupError("nobody expects it")

    with served(path, ScriptedSession(answer("x"))), connected(path) as client:
        with monkeypatch.context() as patched:
            patched.setattr("edge.serve.realtime_client.question_of", fail)
            client.send("response.create", event_id="r")
            error = client.until("error")["error"]
        assert (error["type"], error["event_id"]) == ("server_error", "r")
        assert "LookupError: nobody expects it" in error["message"]
        client.send("response.create")
        client.until("response.done")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"type": "input_image", "image_url": "https://x/y.png"}, "fetches nothing"),
        ({"type": "input_image", "image_url": data_url(b"%PDF-1.7")}, "send JPEG, PNG, WEBP"),
        ({"type": "input_image", "image_url": data_url(png()[:60])}, "cannot be decoded"),
        ({"type": "input_image", "image_url": data_url(png(4, 4))}, "at least 8 pixels"),
        ({"type": "input_audio", "audio": "AAA"}, "not base64"),
        ({"type": "input_audio", "audio": "AAAA"}, "whole samples"),
        ({"type": "input_audio", "audio": pcm(tone(0.01))}, "at least 100 ms"),
    ],
)
def test_media_that_cannot_be_used_are_refused(path, content, said):
    with served(path, ScriptedSession(answer("x"))), connected(path) as client:
        client.send("conversation.item.create", item={**TEXT, "content": [content]})
        assert said in client.until("error")["error"]["message"]


def test_items_can_be_looked_at_and_deleted(path):
    session = ScriptedSession(answer("x"))
    with served(path, session), connected(path) as client:
        client.send("conversation.item.create", item={**TEXT, "id": "mine"})
        client.send("conversation.item.create", item={**TEXT, "id": "mine"})
        assert "is taken" in client.until("error")["error"]["message"]
        client.send("conversation.item.retrieve", item_id="mine")
        assert client.until("conversation.item.retrieved")["item"]["role"] == "user"
        client.send("conversation.item.delete", item_id="mine")
        client.until("conversation.item.deleted")
        client.send("conversation.item.delete", item_id="mine")
        assert "not in the conversation" in client.until("error")["error"]["message"]


@pytest.mark.parametrize("n_bytes", [0, 125, 126, 65_535, 65_536])
def test_frames_of_every_length_are_read_by_the_stock_parser(n_bytes):
    reader = StreamReader()
    reader.feed_data(_text_frame(b"x" * n_bytes))
    with pytest.raises(StopIteration) as parsed:
        next(Frame.parse(reader.read_exact, mask=False))
    frame = parsed.value.value
    assert (frame.opcode, frame.fin, frame.data) == (Opcode.TEXT, True, b"x" * n_bytes)


@pytest.mark.parametrize("n_bytes", [1, 200, 70_000])
def test_whoever_reads_late_gets_everything_in_its_order(path, n_bytes):
    """More than a socket holds, so that some of it is sent at once and some when there is room."""
    content = [{"type": "input_text", "text": "x" * n_bytes}]
    with served(path, ScriptedSession(answer("x"))), connected(path) as client:
        client.send("conversation.item.create", item={**TEXT, "id": "a", "content": content})
        client.until("conversation.item.done")
        for number in range(40):
            client.send("conversation.item.retrieve", item_id="a")
            client.send("conversation.item.retrieve", item_id=f"item {number}")
        time.sleep(0.2)
        for number in range(40):
            found = client.until("conversation.item.retrieved")
            assert found["item"]["content"][0]["text"] == "x" * n_bytes
            assert f"item {number}'" in client.until("error")["error"]["message"]
    kinds = [event["type"] for event in client.heard[-80:]]
    assert kinds == ["conversation.item.retrieved", "error"] * 40


def test_a_response_aside_leaves_nothing(path):
    session = ScriptedSession(answer("x"))
    aside = {"conversation": "none", "input": [TEXT], "metadata": {"why": "test"}}
    with served(path, session), connected(path) as client:
        client.send("response.create", response=aside)
        response = client.until("response.done")["response"]
        assert (response["conversation_id"], response["metadata"]) == (None, {"why": "test"})
        client.send("response.create")
        client.until("response.done")
    assert [[m.content for m in q.messages] for q in session.questions] == [["Where?"], [""]]


SHOWN = {**TEXT, "content": [{"type": "input_image", "image_url": data_url(png())}]}
"""A picture of 3600 bytes."""


def test_text_takes_no_place_of_media(path, monkeypatch):
    monkeypatch.setattr("edge.serve.decoding.MAX_READING_OF_CLIENT", 0)
    with served(path, ScriptedSession(answer("x"))), connected(path) as client:
        client.send("response.create", response={"input": [TEXT]})
        client.until("response.done")
        client.send("response.create", response={"input": [TEXT, SHOWN]})
        assert "requests with media are being read" in client.until("error")["error"]["message"]


def test_others_are_served_while_the_input_of_a_response_is_decoded(path, monkeypatch):
    decoding, served_meanwhile = threading.Event(), threading.Event()

    def slowly(_, job, data):
        decoding.set()
        assert served_meanwhile.wait(TIMEOUT_S)
        return decode(job, data)

    monkeypatch.setattr("edge.senses.decoder.Decoder.__call__", slowly)
    session = ScriptedSession(answer("x"))
    with served(path, session), connected(path) as client, http(path) as other:
        client.send("response.create", response={"input": [SHOWN]})
        assert decoding.wait(TIMEOUT_S)
        assert other.get("/healthz").status_code == 200
        served_meanwhile.set()
        client.until("response.done")
    assert len(session.questions[0].messages[-1].media) == 1


@pytest.mark.parametrize("where", ["session", "response", "tools", "choice", "a spoken turn"])
def test_others_are_served_while_a_format_is_checked(path, monkeypatch, speech, where):
    """For half a second of a core: never in the event loop's thread, not even once more."""
    checking, served_meanwhile, in_the_loop = threading.Event(), threading.Event(), []

    def slowly(grammar):
        in_the_loop.append(asyncio._get_running_loop() is not None)
        checking.set()
        assert in_the_loop[-1] or served_meanwhile.wait(TIMEOUT_S)
        return problem_of(grammar)

    monkeypatch.setattr("edge.model.constrain.problem_of", slowly)
    schema = {"type": "object", "properties": {where: {}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    wanted = {"edge": {"response_format": form}}
    if where == "tools":
        tool = {"type": "function", "name": "move", "parameters": schema}
        wanted = {"tools": [tool], "tool_choice": "required"}
    if where == "choice":
        wanted = {"tool_choice": "required"}
        tools = [{"type": "function", "name": "move", "parameters": schema}]
    with wave.open(str(speech / "Front_Center.wav")) as file:
        words = np.frombuffer(file.readframes(file.getnframes()), "<i2")[::2] / (1 << 15)
    session = ScriptedSession(answer("x"))
    with served(path, session), connected(path) as client, http(path) as other:
        if where == "choice":
            client.send("session.update", session={"type": "realtime", "tools": tools})
            client.until("session.updated")
            client.send("response.create", response=wanted)
        elif where in ("response", "tools"):
            client.send("response.create", response=wanted)
        else:
            client.send("session.update", session={"type": "realtime", **wanted})
        assert checking.wait(TIMEOUT_S)
        assert other.get("/healthz").status_code == 200
        served_meanwhile.set()
        if where == "session":
            client.send("response.create")
        if where == "a spoken turn":
            sound = np.concatenate([words, np.zeros(24_000)])
            client.send("input_audio_buffer.append", audio=pcm(sound))
        client.until("response.done")
    assert session.questions[0].grammar
    assert in_the_loop == [False]


def test_a_format_that_cannot_be_followed_is_told_with_its_event(path):
    form = {"type": "regex", "regex": "(?=a)b"}
    with served(path, ScriptedSession(answer("x"))), connected(path) as client:
        wanted = {"edge": {"response_format": form}}
        client.send("response.create", event_id="mine", response=wanted)
        error = client.until("error")["error"]
        assert error["event_id"] == "mine"
        assert "regex: cannot be followed" in error["message"]
        client.send("response.create")
        client.until("response.done")


def test_the_input_of_a_response_is_bounded(path, monkeypatch):
    monkeypatch.setattr("edge.serve.conversation.MAX_MEDIA_BYTES", 8000)
    session = ScriptedSession(answer("x"))
    with served(path, session), connected(path) as client:
        client.send("response.create", response={"input": [SHOWN] * 3})
        error = client.until("error")["error"]
        assert "response.input: would hold more than 8000 bytes" in error["message"]
        client.send("response.create", response={"input": [SHOWN] * 2})
        client.until("response.done")
    assert len(session.questions) == 1


def test_the_input_of_a_response_takes_room_until_it_is_answered(path, monkeypatch):
    monkeypatch.setattr("edge.serve.app.MAX_ALL_MEDIA_BYTES", 10_000)
    started, seen = threading.Event(), threading.Event()
    session = ScriptedSession(speak_until_cancelled(started, seen))
    shows = {"input": [SHOWN]}
    with served(path, session), connected(path) as client, connected(path) as other:

        def refused():
            other.send("response.create", response=shows)
            return "3600 of user " in other.until("error")["error"]["message"]

        client.send("response.create", response={"input": [SHOWN, SHOWN]})
        assert "of 7200 more bytes: 0 of user " in client.until("error")["error"]["message"]
        client.send("response.create", response=shows)
        client.until("response.created")
        assert refused()
        client.send("response.create", response=shows)  # its own is not done yet
        assert client.until("error")
        assert refused()
        client.send("response.cancel")
        client.until("response.done")
        other.send("response.create", response=shows)
        other.until("response.created")
        client.send("conversation.item.create", item={**SHOWN, "id": "a"})
        assert "3600 of user " in client.until("error")["error"]["message"]
        other.send("response.cancel")
        other.until("response.done")
        client.send("conversation.item.create", item={**SHOWN, "id": "a"})
        client.until("conversation.item.added")


def test_own_settings_of_an_answer(path):
    session = ScriptedSession(answer("x"))
    config = Config(answer=Answer(abstain="unknown"))
    wanted = {"response_format": {"type": "choice", "choice": ["left"]}, "seed": 3}
    with served(path, session, config), connected(path) as client:
        client.send("session.update", session={"type": "realtime", "edge": {"temperature": 0.5}})
        client.send("response.create", response={"edge": wanted})
        client.until("response.done")
    (question,) = session.questions
    assert question.grammar == 'start: "left" | "unknown"'
    assert (question.sampling.temperature, question.sampling.seed) == (0.5, 3)


def test_another_model_is_refused_before_the_socket_opens(path):
    with (
        served(path, ScriptedSession(answer("x"))),
        pytest.raises(websockets.exceptions.InvalidStatus) as caught,
    ):
        websockets.sync.client.unix_connect(str(path), "ws://edge/v1/realtime?model=gpt")
    assert caught.value.response.status_code == 404
