"""What stock clients of /v1/realtime send: each field is honoured, without effect, or named."""

from __future__ import annotations

import base64
import contextlib
import threading
from typing import Any, get_type_hints

import av
import numpy as np
import pytest
import websockets.sync.client
from openai.types import realtime as sdk
from openai.types.realtime.realtime_audio_input_turn_detection_param import (
    SemanticVad,
    ServerVad,
)
from serve.scripted import DONE, ScriptedSession, answer, served, speak_until_cancelled
from serve.test_fields import policies
from serve.test_realtime import TEXT, connected, path, pcm, tone
from serve.traffic import Recorded

from edge.serve.client_sound import rate_of, samples_of
from edge.serve.protocol import ItemCreate, ResponseSettings, Session, SoundFormat
from edge.session.turn import ToolCall

__all__ = ["path"]
DRIVE = {"type": "function", "name": "drive", "parameters": {"type": "object", "properties": {}}}
STOP = {**DRIVE, "name": "stop"}
AGENTS_DEFAULTS = {  # what @openai/agents sends of itself
    "type": "realtime",
    "instructions": "Be short.",
    "output_modalities": ["audio"],
    "audio": {
        "input": {
            "format": {"type": "audio/pcm", "rate": 24000},
            "noise_reduction": None,
            "transcription": {"model": "gpt-4o-mini-transcribe"},
            "turn_detection": {"type": "semantic_vad"},
        },
        "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "ash", "speed": 1},
    },
    "tool_choice": "auto",
    "tools": [DRIVE],
}


def updated(path: Any, **session: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The session after an update, and the errors that came with it."""
    with served(path, ScriptedSession(answer("x"))), connected(path) as client:
        client.send("session.update", session=session, event_id="u")
        last = client.until("session.updated")
    return last["session"], [e["error"] for e in client.heard if e["type"] == "error"]


def names(errors: list[dict[str, Any]]) -> list[tuple[str | None, str | None]]:
    return [(error["param"], error["code"]) for error in errors]


def test_defaults_of_a_voice_agent_keep_their_instructions_and_tools(path):
    session, errors = updated(path, **AGENTS_DEFAULTS)
    assert names(errors) == [
        ("session.audio.input.transcription", "unsupported_parameter"),
        ("session.output_modalities", "unsupported_value"),
    ]
    assert {error["event_id"] for error in errors} == {"u"}
    assert (session["instructions"], session["output_modalities"]) == ("Be short.", ["text"])
    assert [tool["name"] for tool in session["tools"]] == ["drive"]
    turns = session["audio"]["input"]["turn_detection"]
    assert (turns["type"], turns["create_response"]) == ("server_vad", True)
    assert turns["silence_duration_ms"] == 640


def test_each_field_that_cannot_be_had_is_told_by_itself(path):
    session, errors = updated(
        path,
        type="realtime",
        model="gpt-realtime",
        instructions="Look.",
        max_output_tokens=-1,
        tools=[DRIVE, {"name": 3}],
        tool_choice={"type": "function", "name": "fly"},
        truncation="disabled",
        audio={"input": {"format": {"type": "audio/opus"}, "turn_detection": None}},
        edge={"events": ["health"], "recall_s": [1, 2], "thinks": True},
    )
    assert [param for param, _ in names(errors)] == [
        "session.max_output_tokens",
        "session.tools[1].name",
        "session.audio.input.format.type",
        "session.edge.thinks",
        "session.truncation",
        "session.model",
        "session.tool_choice",
        "session.edge.recall_s",
    ]
    assert session["instructions"] == "Look."
    assert session["edge"]["events"] == ["health"]
    assert session["audio"]["input"] == {
        "format": {"type": "audio/pcm", "rate": 24000},
        "turn_detection": None,
    }


@pytest.mark.parametrize(
    "asked",
    [
        {"turn_detection": {"type": "none"}},
        {"audio": {"input": {"turn_detection": {"type": "none"}}}},
    ],
)
def test_no_turns_may_be_asked_for_as_azures_clients_do(path, asked):
    session, errors = updated(path, **asked)
    assert errors == []
    assert session["audio"]["input"]["turn_detection"] is None


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        ({"format": {"type": "audio/opus"}}, "format.type"),
        ({"format": {"type": "audio/pcm", "rate": "fast"}}, "format.rate"),
        ({"turn_detection": {"type": "by_hand"}}, "turn_detection.type"),
    ],
)
def test_what_cannot_be_had_leaves_what_was(path, asked, refused):
    before = {"format": {"type": "audio/pcm", "rate": 16000}, "turn_detection": None}
    with served(path, ScriptedSession(answer("x"))), connected(path) as client:
        for sound in (before, asked):
            client.send("session.update", session={"audio": {"input": sound}})
            last = client.until("session.updated")
    errors = [event["error"]["param"] for event in client.heard if event["type"] == "error"]
    assert errors == [f"session.audio.input.{refused}"]
    assert last["session"]["audio"]["input"] == before


@pytest.mark.parametrize(
    ("wanted", "called"),
    [
        ({"type": "function", "name": "stop"}, ["stop"]),
        ({"type": "function", "function": {"name": "stop"}}, ["stop"]),
        ("required", ["drive", "stop"]),
        ("none", []),
    ],
)
def test_a_choice_among_the_tools(path, wanted, called):
    session = ScriptedSession(answer("x"))
    with served(path, session), connected(path) as client:
        client.send("session.update", session={"tools": [DRIVE, STOP], "tool_choice": wanted})
        client.send("response.create")
        client.until("response.done")
        assert not [e for e in client.heard if e["type"] == "error"]
    (question,) = session.questions
    assert [tool["function"]["name"] for tool in question.tools] == called
    assert bool(question.grammar) == (wanted not in ("none", "auto"))


@pytest.mark.parametrize("parallel", [None, False, True])
def test_parallel_tool_calls(path, parallel):
    def play(turn):
        turn.deliver(ToolCall("drive", {}))
        turn.deliver(ToolCall("stop", {}))
        turn.deliver(DONE)

    session = ScriptedSession(play)
    wanted = {} if parallel is None else {"parallel_tool_calls": parallel}
    with served(path, session), connected(path) as client:
        client.send("session.update", session={"tools": [DRIVE, STOP], **wanted})
        client.send("response.create")
        output = client.until("response.done")["response"]["output"]
    n_calls = sum(item["type"] == "function_call" for item in output)
    assert n_calls == (1 if parallel is False else 2)


def test_settings_by_their_names_of_the_beta(path):
    session, errors = updated(
        path,
        modalities=["text", "audio"],
        voice="alloy",
        input_audio_format="g711_ulaw",
        output_audio_format="pcm16",
        turn_detection=None,
        max_response_output_tokens=7,
        temperature=0.6,
    )
    assert errors == []
    assert session["output_modalities"] == ["text"]
    assert session["audio"]["input"] == {"format": {"type": "audio/pcmu"}, "turn_detection": None}
    assert (session["max_output_tokens"], session["edge"]["temperature"]) == (7, 0.6)


def test_a_response_of_sound_is_told_and_answered_in_text(path):
    with served(path, ScriptedSession(answer("Hi"))), connected(path) as client:
        client.send("response.create", response={"output_modalities": ["audio"], "voice": "ash"})
        done = client.until("response.done")
    assert [e["error"]["param"] for e in client.heard if e["type"] == "error"] == [
        "response.output_modalities"
    ]
    assert done["response"]["output"][0]["content"] == [{"type": "output_text", "text": "Hi"}]


@pytest.mark.parametrize(
    ("effort", "thinking"), [("none", False), ("minimal", False), ("low", True), ("high", True)]
)
def test_effort_of_reasoning(path, effort, thinking):
    session = ScriptedSession(answer("x"))
    with served(path, session), connected(path) as client:
        client.send("response.create", response={"reasoning": {"effort": effort}})
        client.until("response.done")
    assert session.questions[0].thinking is thinking


def sound_in(form: dict[str, Any], samples: Any) -> bytes:
    """Samples as a client's microphone encodes them, by FFmpeg."""
    kinds = {"audio/pcm": "pcm_s16le", "audio/pcmu": "pcm_mulaw", "audio/pcma": "pcm_alaw"}
    encoder = av.CodecContext.create(kinds[form["type"]], "w")
    assert isinstance(encoder, av.AudioCodecContext)
    encoder.sample_rate, encoder.format, encoder.layout = form.get("rate", 8000), "s16", "mono"
    whole = np.clip(np.round(samples * (1 << 15)), -(1 << 15), (1 << 15) - 1).astype("<i2")
    frame = av.AudioFrame.from_ndarray(whole[None], format="s16", layout="mono")
    frame.sample_rate = encoder.sample_rate
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


@pytest.mark.parametrize(
    "form",
    [
        {"type": "audio/pcm", "rate": 16000},
        {"type": "audio/pcm", "rate": 8000},
        {"type": "audio/pcm", "rate": 48000},
        {"type": "audio/pcmu"},
        {"type": "audio/pcma"},
    ],
)
def test_formats_of_sound(path, form):
    rate_hz = form.get("rate", 8000)
    data = sound_in(form, tone(1.0, rate_hz))
    heard = {"format": form, "turn_detection": None}
    session = ScriptedSession(answer("x"))
    encoded = base64.b64encode(data).decode()
    with served(path, session), connected(path) as client:
        client.send("session.update", session={"audio": {"input": heard}})
        assert client.until("session.updated")["session"]["audio"]["input"]["format"] == form
        client.send("input_audio_buffer.append", audio=encoded[: len(encoded) // 16 * 8])
        client.send("input_audio_buffer.append", audio=encoded[len(encoded) // 16 * 8 :])
        client.send("input_audio_buffer.commit")
        content = [{"type": "input_audio", "audio": encoded}]
        client.send("conversation.item.create", item={**TEXT, "content": content})
        client.send("response.create")
        client.until("response.done")
        assert not [e for e in client.heard if e["type"] == "error"]
    (message,) = session.questions[0].messages
    for sound in message.media:
        samples = np.frombuffer(sound.samples, np.float32)
        assert abs(len(samples) - 16_000) <= 2
        spectrum = np.abs(np.fft.rfft(samples))
        assert abs(int(spectrum.argmax()) * 16_000 / len(samples) - 440) <= 1
        assert 0.45 < np.abs(samples[4000:12_000]).max() < 0.55


@pytest.mark.parametrize(("kind", "codec"), [("pcmu", "pcm_mulaw"), ("pcma", "pcm_alaw")])
def test_every_code_of_g711_is_what_ffmpeg_makes_of_it(kind, codec):
    decoder = av.CodecContext.create(codec, "r")
    decoder.sample_rate, decoder.layout = 8000, "mono"
    codes = bytes(range(256))
    (frame,) = decoder.decode(av.Packet(codes))
    theirs = frame.to_ndarray().reshape(-1).astype(np.float32) / (1 << 15)
    ours = samples_of(codes, SoundFormat(type=f"audio/{kind}"))[:, 0]
    np.testing.assert_array_equal(ours, theirs)
    assert rate_of(SoundFormat(type=f"audio/{kind}")) == 8000


def test_g711_has_one_rate(path):
    _, errors = updated(path, audio={"input": {"format": {"type": "audio/pcmu", "rate": 16000}}})
    assert names(errors) == [("session.audio.input.format.rate", "invalid_value")]


def test_the_format_may_change_in_mid_session(path):
    session = ScriptedSession(answer("x"))
    with served(path, session), connected(path) as client:
        for rate_hz in (24_000, 16_000):
            heard = {"format": {"type": "audio/pcm", "rate": rate_hz}, "turn_detection": None}
            client.send("session.update", session={"audio": {"input": heard}})
            client.send("input_audio_buffer.append", audio=pcm(tone(0.5, rate_hz)))
        client.send("input_audio_buffer.commit")
        client.send("response.create")
        client.until("response.done")
    (sound,) = session.questions[0].messages[0].media
    assert abs(len(sound.samples) // 4 - 16_000) <= 4


def text(said: str, **fields: Any) -> dict[str, Any]:
    return {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": said}],
    } | fields


def added_items(client: Recorded) -> list[dict[str, Any]]:
    return [event for event in client.heard if event["type"] == "conversation.item.added"]


def test_items_go_where_they_are_put(path):
    session = ScriptedSession(answer("x"))
    with served(path, session), connected(path) as client:
        client.send("conversation.item.create", item=text("b", id="b"))
        client.send("conversation.item.create", item=text("d", id="d"))
        client.send("conversation.item.create", item=text("a", id="a"), previous_item_id="root")
        client.send("conversation.item.create", item=text("c", id="c"), previous_item_id="b")
        client.send("conversation.item.create", item=text("e", id="e"), previous_item_id="d")
        client.send("conversation.item.create", item=text("f", id="f"), previous_item_id="z")
        error = client.until("error")["error"]
        assert (error["param"], error["code"]) == ("previous_item_id", "item_not_found")
        client.send("response.create", response={"conversation": "none"})
        client.until("response.done")
        refer = [{"type": "item_reference", "id": "c"}, text("and?")]
        client.send("response.create", response={"input": refer, "conversation": "none"})
        client.until("response.done")
        client.send("response.create", response={"input": [{"type": "item_reference", "id": "y"}]})
        assert client.until("error")["error"]["code"] == "item_not_found"
    added = [
        (e["item"]["id"], e["previous_item_id"])
        for e in client.heard
        if "item.added" in e["type"] and "conversation" in e["type"]
    ]
    assert added == [("b", None), ("d", "b"), ("a", None), ("c", "b"), ("e", "d")]
    whole, referred = session.questions
    assert whole.messages[0].content == "a\nb\nc\nd\ne"
    assert referred.messages[0].content == "c\nand?"


def test_what_a_model_has_said_aloud_comes_back_as_its_transcript(path):
    session = ScriptedSession(answer("x"))
    said = [
        {"type": "output_audio", "transcript": "On the left."},
        {"type": "audio", "transcript": "A cup."},
        {"type": "text", "text": "Red."},
        {"type": "output_text", "text": "Yes."},
    ]
    with served(path, session), connected(path) as client:
        client.send("conversation.item.create", item=text("Where?"))
        item = {"type": "message", "role": "assistant", "content": said}
        client.send("conversation.item.create", item=item)
        client.send("conversation.item.create", item=text("Sure?"))
        client.send("response.create")
        client.until("response.done")
    assert session.questions[0].messages[1].content == "On the left.\nA cup.\nRed.\nYes."


def test_an_answer_stands_where_it_was_begun(path):
    """Its item is told with its first word; what a client adds meanwhile comes behind it."""
    started, seen = threading.Event(), threading.Event()
    session = ScriptedSession(speak_until_cancelled(started, seen))
    with served(path, session), connected(path) as client:
        client.send("conversation.item.create", item=text("first", id="q"))
        client.send("response.create")
        client.until("response.output_text.delta")
        client.send("conversation.item.create", item=text("later", id="r"))
        client.send("response.cancel")
        client.until("response.done")
        client.send("response.create")
        client.until("response.output_text.delta")
        client.send("response.cancel")
        client.until("response.done")
    roles = [message.role for message in session.questions[1].messages]
    assert roles == ["user", "assistant", "user"]
    first = next(
        e
        for e in client.heard
        if e["type"] == "conversation.item.added" and e["item"]["role"] == "assistant"
    )
    assert (first["previous_item_id"], first["item"]["status"]) == ("q", "in_progress")


def test_errors_have_the_codes_that_clients_tell_them_apart_by(path):
    started, seen = threading.Event(), threading.Event()
    session = ScriptedSession(speak_until_cancelled(started, seen))
    with served(path, session), connected(path) as client:

        def code(kind: str, **fields: Any) -> str:
            client.send(kind, **fields)
            error = client.until("error")["error"]
            assert error["type"] == "invalid_request_error"
            return error["code"]

        assert code("response.cancel") == "response_cancel_not_active"
        assert code("input_audio_buffer.commit") == "input_audio_buffer_commit_empty"
        assert code("conversation.item.delete", item_id="x") == "item_not_found"
        assert code("conversation.item.retrieve", item_id="x") == "item_not_found"
        assert code("conversation.item.truncate", item_id="x") == "item_not_found"
        assert code("conversation.item.create") == "missing_required_parameter"
        assert code("input_audio_buffer.append", audio=3) == "invalid_type"
        assert code("nonsense") == "invalid_value"
        client.send("conversation.item.create", item=text("a", id="a"))
        assert code("conversation.item.create", item=text("b", id="a")) == "invalid_value"
        client.send("response.create")
        client.until("response.output_text.delta")
        assert code("response.create") == "conversation_already_has_active_response"
        client.send("response.cancel")
        done = client.until("response.done")["response"]
        cut = {"item_id": done["output"][0]["id"], "content_index": 0, "audio_end_ms": 9}
        assert code("conversation.item.truncate", **cut) == "unsupported_content_type"


@contextlib.contextmanager
def speaking(path: Any, *protocols: str) -> Any:
    with websockets.sync.client.unix_connect(
        str(path), "ws://edge/v1/realtime", subprotocols=[*protocols]
    ) as ws:
        yield ws


def test_the_subprotocol_of_browsers_is_chosen_and_no_key_is_sent_back(path):
    with served(path, ScriptedSession(answer("x"))):
        with speaking(path, "realtime", "openai-insecure-api-key.secret") as ws:
            assert ws.subprotocol == "realtime"
        with speaking(path, "openai-insecure-api-key.secret", "realtime") as ws:
            assert ws.subprotocol == "realtime"


def test_nothing_is_compressed(path):
    """A stock client offers to; a message of a few bytes could become megabytes."""
    with served(path, ScriptedSession(answer("x"))), speaking(path) as ws:
        assert "permessage-deflate" in ws.request.headers["Sec-WebSocket-Extensions"]
        assert "Sec-WebSocket-Extensions" not in ws.response.headers


def test_what_an_event_has_besides_is_ignored_and_logged(path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr("edge.serve.fields._logged", set())
    with served(path, ScriptedSession(answer("x"))), connected(path) as client:
        client.send("input_audio_buffer.clear", later=True)
        client.until("input_audio_buffer.cleared")
    assert "request=field_ignored field=later" in caplog.messages


def test_clients_are_told_that_the_service_ends(path):
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(contextlib.ExitStack())
        server.enter_context(served(path, ScriptedSession(answer("x"))))
        clients = [stack.enter_context(connected(path)) for _ in range(3)]
        for client in clients:
            client.until("session.created")
        server.close()
        for client in clients:
            with pytest.raises(websockets.exceptions.ConnectionClosedOK) as told:
                client.until("response.done")
            assert told.value.rcvd.code == 1001


def test_a_new_run_says_that_it_is_one(path):
    runs = []
    for _ in range(2):
        with served(path, ScriptedSession(answer("x"))):
            for _ in range(2):
                with connected(path) as client:
                    client.send("session.update", session={"edge": {"events": ["session"]}})
                    runs.append(client.until("edge.session.started")["run_id"])
                    client.send("session.update", session={"instructions": "again"})
                    client.send("response.create")
                    client.until("response.done")
                    kinds = [event["type"] for event in client.heard]
                    assert kinds.count("edge.session.started") == 1
    assert runs[0] == runs[1] != runs[2] == runs[3]


# Every field that OpenAI's own package knows is known here.


def fields_of(kind: Any) -> set[str]:
    return set(get_type_hints(kind))


def test_no_field_of_a_session_is_unknown():
    ours = policies(Session).keys()
    assert fields_of(sdk.RealtimeSessionCreateRequestParam) <= ours
    heard = {f"audio.input.{name}" for name in fields_of(sdk.RealtimeAudioConfigInputParam)}
    turns = fields_of(ServerVad) | fields_of(SemanticVad)
    assert heard | {f"audio.input.turn_detection.{name}" for name in turns} <= ours
    tools = {f"tools[].{name}" for name in fields_of(sdk.RealtimeFunctionToolParam)}
    assert tools <= ours


def test_no_field_of_a_response_is_unknown():
    ours = policies(ResponseSettings).keys()
    assert fields_of(sdk.RealtimeResponseCreateParamsParam) <= ours


@pytest.mark.parametrize(
    ("tag", "kind"),
    [
        ("message", sdk.RealtimeConversationItemUserMessageParam),
        ("message", sdk.RealtimeConversationItemAssistantMessageParam),
        ("message", sdk.RealtimeConversationItemSystemMessageParam),
        ("function_call", sdk.RealtimeConversationItemFunctionCallParam),
        ("function_call_output", sdk.RealtimeConversationItemFunctionCallOutputParam),
    ],
)
def test_no_field_of_an_item_is_unknown(tag, kind):
    ours = policies(ItemCreate).keys()
    assert {f"item<{tag}>.{name}" for name in fields_of(kind) - {"type"}} <= ours
