"""Chat completions with pictures, sounds, tools and formats: the stock SDK, and TCP clients."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import wave
from dataclasses import replace

import httpx2
import jsonschema
import numpy as np
import openai
import pytest
from serve.scripted import DONE, MODEL, ScriptedSession, answer, served
from serve.test_app import ASK, http, sdk
from serve.test_chat import USER, parsed, refused
from serve.test_realtime import data_url, png, tone

from edge.config import Answer, Config, Socket, load_config
from edge.errors import ConfigurationError, MediaError
from edge.senses.still import decode_sound
from edge.serve import tcp
from edge.session.turn import Message, TextDelta, ToolCall
from edge.types import Picture, Sound

MOVE = {"type": "function", "function": {"name": "move", "parameters": {"type": "object"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "boolean"}}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "edge.sock"


def wav(samples, rate_hz: int = 8000, n_channels: int = 1) -> str:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(n_channels)
        out.setsampwidth(2)
        out.setframerate(rate_hz)
        out.writeframes((np.repeat(samples, n_channels) * 32767).astype("<i2").tobytes())
    return base64.b64encode(file.getvalue()).decode()


def test_the_stock_sdk_sends_a_picture_and_a_sound(path):
    session = ScriptedSession(answer("Red."))
    sound = wav(tone(0.5, 8000), 8000, 2)
    content = [
        {"type": "text", "text": "Which colour?"},
        {"type": "image_url", "image_url": {"url": data_url(png()), "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
    ]
    with served(path, session), sdk(path) as client:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])
    (message,) = session.questions[0].messages
    picture, heard = message.media
    assert (message.content, type(picture), type(heard)) == ("Which colour?", Picture, Sound)
    samples = np.frombuffer(heard.samples, np.float32)
    assert abs(len(samples) - 8000) <= 2
    spectrum = np.abs(np.fft.rfft(samples))
    assert abs(int(spectrum.argmax()) * 16_000 / len(samples) - 440) <= 4
    assert abs(samples[2000:-2000].max() - 0.5) < 0.02


def call(turn):
    turn.deliver(TextDelta("I go."))
    turn.deliver(ToolCall("move", {"to": "Tür"}))
    turn.deliver(ToolCall("move", {}))
    turn.deliver(DONE)


def test_the_stock_sdk_gets_proposed_calls_and_sends_their_results_back(path):
    session = ScriptedSession(call)
    with served(path, session), sdk(path) as client:
        settings = {"model": MODEL, "tools": [MOVE], "tool_choice": "auto"}
        completion = client.chat.completions.create(messages=ASK["messages"], **settings)
        message = completion.choices[0].message
        first = message.tool_calls[0]
        result = {"role": "tool", "tool_call_id": first.id, "content": "blocked"}
        client.chat.completions.create(messages=[*ASK["messages"], message, result], **settings)
        stream = client.chat.completions.create(messages=ASK["messages"], stream=True, **settings)
        chunks = [chunk.choices[0] for chunk in stream]
    assert completion.choices[0].finish_reason == chunks[-1].finish_reason == "tool_calls"
    assert message.content == "I go."
    assert (first.function.name, json.loads(first.function.arguments)) == ("move", {"to": "Tür"})
    deltas = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert [delta.index for delta in deltas] == [0, 1]
    assert session.questions[0].tools == (MOVE,)
    _, assistant, tool = session.questions[1].messages
    assert assistant.calls == (ToolCall("move", {"to": "Tür"}), ToolCall("move", {}))
    assert tool == Message("tool", "blocked")


def cut_call(turn):
    turn.deliver(ToolCall("move", {"to": "Tür"}, is_whole=False))
    turn.deliver(replace(DONE, finish_reason="length"))


def test_a_call_that_was_cut_is_unfinished_and_may_be_sent_back(path):
    session = ScriptedSession(cut_call)
    with served(path, session), sdk(path) as client:
        settings = {"model": MODEL, "tools": [MOVE]}
        completion = client.chat.completions.create(messages=ASK["messages"], **settings)
        message = completion.choices[0].message
        stream = client.chat.completions.create(messages=ASK["messages"], stream=True, **settings)
        chunks = [chunk.choices[0] for chunk in stream]
        history = [*ASK["messages"], message, ASK["messages"][0]]
        client.chat.completions.create(messages=history, **settings)
    assert completion.choices[0].finish_reason == chunks[-1].finish_reason == "length"
    assert not message.content
    (whole,) = message.tool_calls
    (delta,) = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    for call in (whole, delta):
        with pytest.raises(ValueError, match="delimiter"):
            json.loads(call.function.arguments)
    assert session.questions[-1].messages[1].calls == (ToolCall("move", {"to": "Tür"}),)


def test_the_stock_sdks_own_schema_becomes_a_grammar(path):
    from pydantic import BaseModel

    class Seen(BaseModel):
        colour: str
        count: int

    session = ScriptedSession(answer('{"colour": "red", "count": 2}'))
    with served(path, session), sdk(path) as client:
        completion = client.chat.completions.parse(
            model=MODEL, messages=ASK["messages"], response_format=Seen
        )
    assert completion.choices[0].message.parsed == Seen(colour="red", count=2)
    assert '"colour"' in session.questions[0].grammar


def test_which_tools_may_or_must_be_called():
    other = {"type": "function", "function": {"name": "stop"}}
    tools = [MOVE, other]
    named = {"type": "function", "function": {"name": "stop"}}
    assert parsed(tools=tools).question.tools == (MOVE, other)
    assert parsed(tools=tools, tool_choice="none").question.tools == ()
    assert parsed(tools=tools).question.grammar == ""
    assert "<function=move>" in parsed(tools=tools, tool_choice="required").question.grammar
    only = parsed(tools=tools, tool_choice=named).question
    assert only.tools == (other,)
    assert "<function=move>" not in only.grammar
    assert refused(tool_choice="required").thing == "tool_choice"
    assert refused(tools=tools, response_format=SCHEMA).thing == "response_format"
    assert refused(tools=[{"type": "function", "function": {"name": "a>b"}}]).thing == (
        "tools[0].function.name"
    )


def test_an_answer_that_thinks_comes_from_its_thinking():
    assert parsed(edge={"consistency": True}).question.consistency
    assert not parsed().question.consistency
    thinks = {"chat_template_kwargs": {"enable_thinking": True}}
    assert refused(edge={"consistency": True}, **thinks).thing == "edge.consistency"
    config = Config(answer=Answer(thinking=True))
    assert not parsed(config, edge={"consistency": False}).question.consistency


def test_the_abstention_is_the_requests_or_the_configured_one():
    config = Config(answer=Answer(abstain="unknown"))
    assert "unknown" in parsed(config, response_format=SCHEMA).question.grammar
    assert "unknown" not in parsed(response_format=SCHEMA).question.grammar
    own = parsed(config, response_format=SCHEMA, edge={"abstain": "?"}).question.grammar
    assert "unknown" not in own
    off = parsed(config, response_format=SCHEMA, edge={"abstain": ""}).question.grammar
    assert "unknown" not in off
    assert parsed(config, response_format={"type": "text"}).question.grammar == ""


@pytest.mark.parametrize(
    ("fields", "thing"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "regex", "regex": "("}}, "regex"),
        ({"response_format": {"type": "choice", "choice": []}}, "choice"),
        (
            {
                "messages": [
                    USER,
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "1", "function": {"name": "x", "arguments": "[]"}}],
                    },
                    USER,
                ]
            },
            "messages[1].tool_calls[0].function.arguments",
        ),
    ],
)
def test_what_cannot_be_served_is_named(fields, thing):
    assert refused(**fields).thing == thing


def test_a_sound_that_cannot_be_used_is_refused():
    with pytest.raises(MediaError, match="more than 30 s"):
        decode_sound(base64.b64decode(wav(np.zeros(31 * 8000))))
    with pytest.raises(MediaError, match="is not a media file"):
        decode_sound(b"#EXTM3U\nfile:///etc/passwd\n")
    whole = base64.b64decode(wav(tone(0.5, 8000)))
    for n_bytes in (12, 40, 44, 45, 300):
        with contextlib.suppress(MediaError):
            decode_sound(whole[:n_bytes])


def test_answers_of_the_trained_model_follow_their_schemas(tmp_path):
    """A quick part of scripts/bench_constrained.py."""
    import random
    from pathlib import Path

    from bench_constrained import Model, random_schema

    from build_engine.bundle import build_bundle
    from edge.model.constrain import grammar_of_schema
    from edge.model.sampling import Sampling

    assets = Path(__file__).resolve().parent.parent / "assets/tiny_omni"
    build_bundle(assets, tmp_path / "bundle", "cpu", lambda *_: None)
    rng, model = random.Random(11), Model(tmp_path / "bundle")
    for n in range(25):
        schema = random_schema(rng)
        text, reason = model.ask(grammar_of_schema(schema), Sampling(temperature=1.0, seed=n))
        assert reason == "stop"
        jsonschema.validate(json.loads(text), schema)


@contextlib.contextmanager
def served_over_tcp(path, token_file=None):
    """The application with a TCP listener; its address."""
    listener = tcp.bind("127.0.0.1:0")
    limits = Socket(tcp="127.0.0.1:1", token_file=token_file and str(token_file))
    with served(path, ScriptedSession(answer("x")), Config(socket=limits), listener):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_tcp_without_a_token_is_for_programs_of_this_machine(path):
    with served_over_tcp(path) as url, httpx2.Client(base_url=url) as client:
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200
        for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example:80"}):
            refused = client.post("/v1/chat/completions", json=ASK, headers=headers)
            assert refused.status_code == 403
            assert "web page" in refused.json()["error"]["message"]
        assert client.get("/v1/realtime", headers={"Origin": "null"}).status_code == 403
        mode = client.post("/v1/edge/turns", json={"mode": "open"})
        assert mode.status_code == 403  # an operator, no admin


def test_a_tcp_client_shows_its_token(path, tmp_path):
    token = "0123456789abcdef"
    file = tmp_path / "token"
    file.write_text(f"{token}\n")
    file.chmod(0o600)
    with served_over_tcp(path, file) as url:
        with openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0) as client:
            assert client.models.list().data[0].id == MODEL
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="0123456789abcdeF") as client,
            pytest.raises(openai.PermissionDeniedError),
        ):
            client.models.list()
        with http(path) as client:  # who is known needs none
            assert client.get("/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),  # another port of this machine
        ({"Sec-Fetch-Site": "none"}, 200),  # a person has typed the address
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "[::1]"}, 200),
        ({"Host": "[::1]:8321"}, 200),
        ({"Host": "LocalHost:8321"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "[::1].evil.example"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "evil.example:127.0.0.1"}, 403),
        ({"Host": "[::2]"}, 403),
        ({"Host": ""}, 403),
    ],
    ids=str,
)
def test_who_is_a_page_and_who_is_not(path, headers, status):
    with served_over_tcp(path) as url, httpx2.Client(base_url=url) as client:
        assert client.get("/healthz", headers=headers).status_code == status


def test_a_client_that_names_no_host_is_not_looked_up(path, monkeypatch):
    """Without one, aiohttp's request.host asks the machine's resolver, in the event loop."""
    monkeypatch.setattr("socket.getfqdn", lambda *_: pytest.fail("was looked up"))
    with served_over_tcp(path) as url, socket.create_connection(url[7:].split(":")) as client:
        client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.0 403")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666])
def test_a_token_that_others_know_is_none(tmp_path, mode):
    file = tmp_path / "token"
    file.write_text("0123456789abcdef")
    file.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"is open to more.*chmod 600 {file}"):
        tcp.read_token(Socket(token_file=str(file)))
    for mode_of_owner in (0o600, 0o400):
        file.chmod(mode_of_owner)
        assert tcp.read_token(Socket(token_file=str(file))) == "0123456789abcdef"


@pytest.mark.parametrize(("address", "n_warnings"), [("0.0.0.0:0", 1), ("127.0.0.1:0", 0)])
def test_a_token_that_travels_in_clear_is_warned_of(caplog, address, n_warnings):
    tcp.bind(address).close()
    assert caplog.text.count("event=not_encrypted") == n_warnings


def test_a_token_must_be_one(tmp_path):
    file = tmp_path / "token"
    file.touch(mode=0o600)
    for content in (None, "short", "ä" * 20):
        if content is not None:
            file.write_text(content, encoding="latin-1")
        with pytest.raises(ConfigurationError):
            tcp.read_token(Socket(token_file=str(file)))


def test_beyond_this_machine_a_token_is_needed(tmp_path):
    file = tmp_path / "edge.toml"
    file.write_text('[socket]\ntcp = "0.0.0.0:8321"\n')
    with pytest.raises(ConfigurationError, match="needs token_file"):
        load_config(file)
    file.write_text('[socket]\ntcp = "0.0.0.0:8321"\ntoken_file = "/etc/edge/token"\n')
    assert load_config(file).socket.tcp == "0.0.0.0:8321"
