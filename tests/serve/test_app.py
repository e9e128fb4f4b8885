"""The real application on a real Unix socket, asked by the clients that robots already have."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from dataclasses import replace

import httpx2
import openai
import pytest
from serve.scripted import (
    DONE,
    MODEL,
    TIMEOUT_S,
    ScriptedSession,
    answer,
    served,
    speak_until_cancelled,
)

from edge.errors import CapacityError, EngineError
from edge.senses.turn_events import Button, Choose
from edge.serve.app import LARGE_BODY_BYTES
from edge.serve.limits import MAX_BODY_BYTES
from edge.serve.metrics import N_ANSWERS
from edge.session.turn import Chance, ChoiceDone, Failed, Likely, TextDelta, ToolCall

ASK = {"messages": [{"role": "user", "content": "What is there?"}]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "edge.sock"


def http(path) -> httpx2.Client:
    return httpx2.Client(
        transport=httpx2.HTTPTransport(uds=str(path)), base_url="http://edge", timeout=TIMEOUT_S
    )


def sdk(path) -> openai.OpenAI:
    return openai.OpenAI(
        base_url="http://edge/v1", api_key="none", http_client=http(path), max_retries=0
    )


def curl(path, *arguments: str, data: bytes | None = None) -> tuple[int, bytes]:
    command = ["curl", "--silent", "--show-error", "--unix-socket", str(path)]
    command += ["--max-time", str(TIMEOUT_S), "--write-out", "\n%{http_code}", *arguments]
    if data is not None:
        command += ["--data-binary", "@-"]
    output = subprocess.run(command, input=data, capture_output=True, check=True).stdout
    body, _, status = output.rpartition(b"\n")
    return int(status), body


def test_the_stock_sdk_gets_an_answer(path):
    play = answer("Eine Täs", "se ☕", reasoning="Hm…")
    session = ScriptedSession(play)
    with served(path, session), sdk(path) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        completion = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Was steht da? 🤖"}],
            max_completion_tokens=9,
            extra_body={"top_k": 4, "chat_template_kwargs": {"enable_thinking": True}},
        )
        again = client.chat.completions.create(
            model=MODEL,
            messages=[
                {"role": "user", "content": "Was?"},
                completion.choices[0].message,
                {"role": "user", "content": "Und?"},
            ],
        )
    choice = completion.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Eine Tässe ☕", "stop")
    assert choice.message.reasoning_content == "Hm…"
    assert completion.usage.total_tokens == 335
    assert completion.edge["first_token_ms"] == 40.0
    assert again.id != completion.id
    first, second = session.questions
    assert first.user == second.user == f"user {os.getuid()}"
    assert first.messages[0].content == "Was steht da? 🤖"
    assert (first.max_tokens, first.sampling.top_k, first.thinking) == (9, 4, True)
    assert [message.role for message in second.messages] == ["user", "assistant", "user"]


def test_the_stock_sdk_streams(path):
    play = answer("Eine Täs", "se ☕\u2028", reasoning="Hm…", done=replace(DONE))
    with served(path, ScriptedSession(play)), sdk(path) as client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=ASK["messages"],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "Eine Tässe ☕\u2028"
    assert deltas[1].reasoning_content == "Hm…"
    closing, usage = chunks[-2:]
    assert closing.choices[0].finish_reason == "stop"
    assert closing.edge["evidence"][0]["frame_ids"] == [7, 8]
    assert (usage.choices, usage.usage.prompt_tokens) == ([], 330)


def test_a_model_is_retrieved_by_its_name(path):
    with served(path, ScriptedSession(answer("x"))), sdk(path) as client:
        model = client.models.retrieve(MODEL)
        assert model == client.models.list().data[0]
        assert (model.object, model.max_model_len) == ("model", 8192)
        for other in ("gpt-4o", "nvidia/NVIDIA-Nemotron", f"{MODEL}/x"):
            with pytest.raises(openai.NotFoundError) as caught:
                client.models.retrieve(other)
            assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
            assert caught.value.type == "invalid_request_error"


TEA = Chance(Likely("Té".encode()[:2], -0.5), (Likely(b"T", -0.25), Likely(b"\xc3", -2.0)))
REST = Chance(Likely("Té".encode()[2:], -0.125), ())


def several(turn):
    """Two answers, the second with a call."""
    for event in (TEA, REST, TextDelta("Té"), ChoiceDone("stop", 0.5)):
        turn.deliver(event)
    for event in (TextDelta("Well"), ToolCall("go", {"a": 1}), ToolCall("stop", {}), DONE):
        turn.deliver(event)


LOGPROBS = [
    {
        "token": "T\ufffd",
        "bytes": [84, 195],
        "logprob": -0.5,
        "top_logprobs": [
            {"token": "T", "bytes": [84], "logprob": -0.25},
            {"token": "\ufffd", "bytes": [195], "logprob": -2.0},
        ],
    },
    {"token": "\ufffd", "bytes": [169], "logprob": -0.125, "top_logprobs": []},
]


def test_several_answers_with_their_probabilities(path):
    asked = {"model": MODEL, "messages": ASK["messages"], "n": 2, "logprobs": True}
    with served(path, ScriptedSession(several)), sdk(path) as client:
        whole = client.chat.completions.create(**asked, top_logprobs=2)
        with client.chat.completions.stream(**asked, top_logprobs=2) as stream:
            for _ in stream:
                pass
            streamed = stream.get_final_completion()
        one_call = client.chat.completions.create(**asked, parallel_tool_calls=False)
    for completion in (whole, streamed):
        first, second = completion.choices
        assert (first.index, first.finish_reason, first.message.content) == (0, "stop", "Té")
        logprobs = first.logprobs.model_dump(exclude_unset=True)
        assert logprobs["content"] == LOGPROBS
        assert (second.index, second.finish_reason) == (1, "tool_calls")
        assert second.message.content == "Well"
        calls = [
            (call.function.name, call.function.arguments) for call in second.message.tool_calls
        ]
        assert calls == [("go", '{"a": 1}'), ("stop", "{}")]
        assert second.logprobs is None
    assert whole.usage.completion_tokens == DONE.n_completion_tokens
    assert [call.function.name for call in one_call.choices[1].message.tool_calls] == ["go"]


def test_a_call_in_the_form_of_old(path):
    asked = {
        "model": MODEL,
        "messages": ASK["messages"],
        "functions": [{"name": "go", "parameters": {}}],
    }
    with served(path, ScriptedSession(several)), sdk(path) as client:
        whole = client.chat.completions.create(**asked).choices[1]
        chunks = [
            chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)
        ]
    assert whole.message.function_call.name == "go"
    assert whole.message.tool_calls is None
    assert whole.finish_reason == chunks[-1].finish_reason == "function_call"
    calls = [one.delta.function_call for one in chunks if one.delta.function_call]
    assert [(call.name, call.arguments) for call in calls] == [("go", '{"a": 1}')]


def test_thinking_is_hidden_from_who_does_not_want_it(path):
    play = answer("A cup.", reasoning="Hm.")
    with served(path, ScriptedSession(play)), http(path) as client:
        for stream in (False, True):
            body = {**ASK, "include_reasoning": False, "stream": stream}
            text = client.post("/v1/chat/completions", json=body).text
            assert "A cup." in text
            assert "Hm." not in text


@pytest.mark.parametrize("stream", [False, True])
def test_what_was_ignored_is_told(path, stream):
    with served(path, ScriptedSession(answer("x"))), http(path) as client:
        body = {**ASK, "stream": stream, "store": True, "of_tomorrow": 1}
        reply = client.post("/v1/chat/completions", json=body)
        plain = client.post("/v1/chat/completions", json={**ASK, "stream": stream})
    assert reply.headers["X-Edge-Ignored"] == "store, of_tomorrow"
    assert "X-Edge-Ignored" not in plain.headers


def test_text_arrives_while_the_answer_is_still_made(path):
    heard = threading.Event()

    def play(turn):
        turn.deliver(TextDelta("one"))
        assert heard.wait(TIMEOUT_S)
        turn.deliver(TextDelta("two"))
        turn.deliver(DONE)

    with served(path, ScriptedSession(play)), sdk(path) as client:
        texts = []
        for chunk in client.chat.completions.create(
            model=MODEL, messages=ASK["messages"], stream=True
        ):
            texts.append(chunk.choices[0].delta.content)
            if "one" in texts:
                heard.set()
    assert texts == ["", "one", "two", None]


def test_curl_sees_the_events_as_they_are(path):
    with served(path, ScriptedSession(answer("☕"))):
        data = json.dumps({**ASK, "stream": True}).encode()
        status, body = curl(path, "http://edge/v1/chat/completions", data=data)
    assert status == 200
    events = body.decode().split("\n\n")
    assert all(event.startswith("data: ") for event in events[:-1])
    assert events[-2:] == ["data: [DONE]", ""]
    assert '"content":"☕"' in events[1]
    assert "usage" not in body.decode()


def test_health_and_readiness(path):
    with served(path, ScriptedSession(answer("x"), ready=False)):
        status, body = curl(path, "http://edge/healthz")
        assert (status, json.loads(body)["counters"]) == (200, {"n_frames": 12})
        assert curl(path, "http://edge/readyz") == (503, b'{"ready":false}')
    with served(path, ScriptedSession(answer("x"))):
        assert curl(path, "http://edge/readyz") == (200, b'{"ready":true}')


def test_health_tells_of_clients_and_of_answers_but_not_what_they_say(path):
    session = ScriptedSession(answer("secret"))
    with served(path, session):
        for _ in range(N_ANSWERS + 1):
            session.events.tell(DONE)
        body = curl(path, "http://edge/healthz")[1]
        health = json.loads(body)
        metrics = curl(path, "http://edge/metrics")[1].decode()
    assert health["clients"] == {"connected": 1, "refused": 0, "dropped": 0}
    assert len(health["answers"]) == N_ANSWERS
    assert health["answers"][0] == {
        "asked_s": 5.0,
        "finish_reason": "stop",
        "n_prompt_tokens": DONE.n_prompt_tokens,
        "n_completion_tokens": DONE.n_completion_tokens,
        "first_token_ms": 40.0,
        "finished_ms": 100.0,
    }
    assert f"edge_first_token_seconds_count {N_ANSWERS + 1}.0" in metrics


def test_the_mode_of_turns_and_the_button(path):
    session = ScriptedSession(answer("x"))
    where = "http://edge/v1/edge/turns"
    with served(path, session):
        assert curl(path, where, data=b'{"mode":"push_to_talk"}')[0] == 200
        assert curl(path, where, data=b'{"button":"begin"}')[0] == 200
        for wrong in (
            b'{"mode":"loud"}',
            b'{"button":"push"}',
            b"{}",
            b"[1",
            b'{"mode":"open","x":1}',
        ):
            status, body = curl(path, where, data=wrong)
            assert (status, b"is not understood" in body) == (400, True)
    assert session.controls == [Choose("push_to_talk"), Button("begin")]


def test_an_answer_cut_at_its_deadline_ends_by_length_for_openais_clients(path):
    with served(path, ScriptedSession(answer("x", done=replace(DONE, finish_reason="deadline")))):
        body = {**ASK, "edge": {"deadline_s": 0.5}}
        status, found = curl(
            path, "http://edge/v1/chat/completions", data=json.dumps(body).encode()
        )
    assert (status, json.loads(found)["choices"][0]["finish_reason"]) == (200, "length")


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({**ASK, "min_tokens": 3}, 400, "min_tokens", "unsupported_value"),
        ({**ASK, "model": "gpt-4o"}, 404, "model", "model_not_found"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            "messages[0].content[0].image_url.url",
            "missing_required_parameter",
        ),
        (b"{not json", 400, "body", "invalid_json"),
        (b"\xff", 400, "body", "invalid_json"),
        (b"", 400, "body", "invalid_json"),
        (b'"' + b"x" * MAX_BODY_BYTES, 413, "body", "body_too_large"),
    ],
)
def test_a_wrong_request_is_refused_with_its_reason(path, body, status, param, code):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    session = ScriptedSession(answer("x"))
    with served(path, session), http(path) as client:
        refused = client.post("/v1/chat/completions", content=data)
        # The connection and the service live on.
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200
    assert refused.status_code == status
    error = refused.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert error["message"].startswith(f"{param}: ")
    assert len(session.questions) == 1


def test_the_sdk_raises_its_own_errors(path):
    with served(path, ScriptedSession(answer("x"))), sdk(path) as client:
        with pytest.raises(openai.NotFoundError, match=f"ask for '{MODEL}'"):
            client.chat.completions.create(model="other", messages=ASK["messages"])
        with pytest.raises(openai.BadRequestError, match="min_tokens"):
            client.chat.completions.create(
                model=MODEL, messages=ASK["messages"], extra_body={"min_tokens": 3}
            )


def test_wrong_paths_and_methods_are_told_in_json(path):
    with served(path, ScriptedSession(answer("x"))), http(path) as client:
        missing = client.get("/v1/embeddings")
        wrong = client.get("/v1/chat/completions")
    assert (missing.status_code, wrong.status_code) == (404, 405)
    assert "GET /v1/embeddings: Not Found" in missing.json()["error"]["message"]
    assert "POST /v1/chat/completions" in missing.json()["error"]["message"]
    assert wrong.headers["Allow"] == "POST"
    codes = [reply.json()["error"]["code"] for reply in (missing, wrong)]
    assert codes == ["unknown_url", "method_not_supported"]
    for reply in (missing, wrong):
        assert reply.json()["error"]["type"] == "invalid_request_error"
        assert reply.json()["error"]["param"] is None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
def test_no_room_is_503_with_retry_after(path, stream, at_once):
    full = CapacityError("turn", "8 questions are waiting", "ask later")
    session = (
        ScriptedSession(answer("x"), refusal=full)
        if at_once
        else ScriptedSession(lambda turn: turn.deliver(Failed(full)))
    )
    with served(path, session), http(path) as client:
        refused = client.post("/v1/chat/completions", json={**ASK, "stream": stream})
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert refused.json()["error"] == {
        "message": str(full),
        "type": "server_error",
        "param": None,
        "code": "over_capacity",
    }


def test_an_engine_failure_is_500_or_an_event(path):
    def play(turn):
        if turn.question.max_tokens == 2:
            turn.deliver(TextDelta("a"))
        turn.deliver(Failed(EngineError("decode", "failed", "restart")))

    with served(path, ScriptedSession(play)), http(path) as client:
        assert client.post("/v1/chat/completions", json=ASK).status_code == 500
        streamed = client.post(
            "/v1/chat/completions", json={**ASK, "max_tokens": 2, "stream": True}
        )
        with sdk(path) as stock, pytest.raises(openai.APIError, match="decode: failed"):
            list(
                stock.chat.completions.create(
                    model=MODEL, messages=ASK["messages"], max_tokens=2, stream=True
                )
            )
    assert streamed.status_code == 200
    assert "decode: failed; restart" in streamed.text
    assert "[DONE]" not in streamed.text


def test_a_defect_in_reading_a_request_is_told_and_logged(path, monkeypatch, caplog):
    def fail(*_, **__):
        raise LookupError("nobody expects it")

    monkeypatch.setattr("edge.serve.chat.to_messages", fail)
    with served(path, ScriptedSession(answer("x"))), http(path) as client:
        for more in ("", "x" * LARGE_BODY_BYTES):
            reply = client.post("/v1/chat/completions", json={**ASK, "user": more})
            assert reply.status_code == 500
            error = reply.json()["error"]
            assert error["type"] == "server_error"
            assert "LookupError: nobody expects it" in error["message"]
        assert client.get("/healthz").status_code == 200
    assert "Traceback" in caplog.text


def test_a_turn_that_the_service_cancels_is_503(path):
    play = answer("x", done=replace(DONE, finish_reason="cancelled"))
    with served(path, ScriptedSession(play)), http(path) as client:
        assert client.post("/v1/chat/completions", json=ASK).status_code == 503


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("spoken", [False, True])
def test_a_client_that_goes_cancels_its_turn(path, stream, spoken):
    started, seen = threading.Event(), threading.Event()

    def silent(turn):
        started.set()
        if turn.cancelled.wait(TIMEOUT_S):
            seen.set()

    play = speak_until_cancelled(started, seen) if spoken else silent
    with served(path, ScriptedSession(play)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(path))
            send_question(client, {**ASK, "stream": stream})
            assert started.wait(TIMEOUT_S)
        assert seen.wait(TIMEOUT_S)
        with http(path) as other:
            assert other.get("/healthz").status_code == 200


def send_question(client: socket.socket, body: dict[str, object]) -> None:
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: edge\r\nContent-Length: {len(data)}\r\n"
    client.sendall(head.encode() + b"\r\n" + data)


def test_a_slow_reader_is_dropped_and_holds_up_neither_the_engine_nor_others(path):
    n_events, text = 4000, "x" * 500  # 2 MB and its frames: far more than socket buffers hold
    delivered, cancelled = threading.Event(), threading.Event()

    def play(turn):
        for _ in range(n_events):
            turn.deliver(TextDelta(text))
        delivered.set()
        if turn.cancelled.wait(TIMEOUT_S):
            cancelled.set()
        turn.deliver(DONE)

    with (
        served(path, ScriptedSession(play)),
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as slow,
    ):
        slow.settimeout(TIMEOUT_S)
        slow.connect(str(path))
        send_question(slow, {**ASK, "stream": True})
        assert delivered.wait(TIMEOUT_S)  # without a byte having been read
        assert cancelled.wait(TIMEOUT_S)  # nobody is left to answer
        with http(path) as other:
            assert b'edge_clients_dropped_total{reason="outbox full"} 1.0' in (
                other.get("/metrics").content
            )
        received = b""
        while more := slow.recv(1 << 16):
            received += more
    assert received.count(text.encode()) < n_events
    assert b"data: [DONE]" not in received


def test_many_clients_at_once_get_their_own_answers(path):
    def play(turn):
        for word in turn.question.messages[-1].content.split():
            turn.deliver(TextDelta(word))
        turn.deliver(DONE)

    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        with http(path) as client:
            body = {"messages": [{"role": "user", "content": f"n {number} n"}]}
            answer = client.post("/v1/chat/completions", json=body).json()
            answers[number] = answer["choices"][0]["message"]["content"]

    with served(path, ScriptedSession(play)):
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
    assert answers == {number: f"n{number}n" for number in range(16)}


def test_the_loop_survives_a_socket_that_has_closed(path):
    go = threading.Event()
    delivered = threading.Event()

    def play(turn):
        turn.deliver(TextDelta("a"))
        assert go.wait(TIMEOUT_S)
        turn.deliver(TextDelta("b"))
        delivered.set()

    with (
        served(path, ScriptedSession(play)) as stop,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client,
    ):
        client.connect(str(path))
        send_question(client, {**ASK, "stream": True})
        assert client.recv(65536)
        stop()
        go.set()
        assert delivered.wait(TIMEOUT_S)
