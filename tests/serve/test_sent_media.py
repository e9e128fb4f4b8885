"""Requests that bring files which take much time to decode, and others beside them."""

from __future__ import annotations

import base64
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import media_bombs as bombs
import numpy as np
import pytest
from serve.scripted import TIMEOUT_S, ScriptedSession, answer, served

from edge.errors import MediaError, ProtocolError
from edge.senses import decoder, sent
from edge.senses.decoder import Decoder
from edge.serve import decoding
from edge.serve.client_sound import MAX_PIECE_S, ClientSound
from edge.serve.conversation import entry_of
from edge.serve.protocol import InputAudio, InputImage, MessageItem

HEALTH_S = 0.3
PNG = bombs.png(16, 16)


def picture(data: bytes) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def asking(*data: bytes) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [picture(one) for one in data]}]}


def health_s(path: Path, done: threading.Event) -> list[float]:
    """How long each answer took a client that asks again and again until something is done."""
    times_s = []
    transport = httpx2.HTTPTransport(uds=str(path))
    with httpx2.Client(transport=transport, base_url="http://edge", timeout=TIMEOUT_S) as client:
        while not done.wait(0.02):
            began_s = time.monotonic()
            assert client.get("/healthz").status_code == 200
            times_s.append(time.monotonic() - began_s)
    return times_s


@pytest.mark.alone
def test_others_are_served_while_a_bomb_is_decoded_and_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(decoder, "MAX_CPU_S", {"picture": 1, "sound": 1, "film": 1})
    path = tmp_path / "edge.sock"
    transport = httpx2.HTTPTransport(uds=str(path))
    bomb, done, times_s = bombs.PICTURES["GIF: a comment of 11 MB"](), threading.Event(), []
    with (
        served(path, ScriptedSession(answer("x"))),
        httpx2.Client(transport=transport, base_url="http://edge", timeout=60.0) as client,
    ):
        assert client.post("/v1/chat/completions", json=asking(PNG)).status_code == 200
        asks = threading.Thread(target=lambda: times_s.extend(health_s(path, done)))
        body = asking(bomb)
        asks.start()
        refused = client.post("/v1/chat/completions", json=body)
        done.set()
        asks.join()
        assert refused.status_code == 400
        assert "picture: takes more than 1 s to decode" in refused.json()["error"]["message"]
        assert client.post("/v1/chat/completions", json=asking(PNG)).status_code == 200
    times_s.sort()
    n, slowest_s = len(times_s), times_s[-1]
    print(f"healthz beside it: {n} answers, {times_s[n // 2]:.3f} s, at most {slowest_s:.3f} s")
    assert times_s[n // 2] < HEALTH_S


def test_requests_that_wait_for_a_decoder_are_bounded_and_text_does_not_wait(tmp_path, monkeypatch):
    path, go_on, n_in = tmp_path / "edge.sock", threading.Event(), threading.Semaphore(0)

    def slowly(_, job, data):
        n_in.release()
        assert go_on.wait(TIMEOUT_S)
        return sent.decode(job, data)

    monkeypatch.setattr(Decoder, "__call__", slowly)
    transport = httpx2.HTTPTransport(uds=str(path))
    statuses: list[int] = []
    with (
        served(path, ScriptedSession(answer("x"))),
        httpx2.Client(transport=transport, base_url="http://edge", timeout=TIMEOUT_S) as client,
    ):

        def ask() -> None:
            statuses.append(client.post("/v1/chat/completions", json=asking(PNG)).status_code)

        others = [threading.Thread(target=ask) for _ in range(decoding.MAX_READING_OF_CLIENT)]
        for other in others:
            other.start()
            assert n_in.acquire(timeout=TIMEOUT_S)
        refused = client.post("/v1/chat/completions", json=asking(PNG))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "over_capacity")
        text = {"messages": [{"role": "user", "content": "an image, é"}]}
        assert client.post("/v1/chat/completions", json=text).status_code == 200
        go_on.set()
        for other in others:
            other.join()
        assert statuses == [200] * len(others)
        assert client.post("/v1/chat/completions", json=asking(PNG)).status_code == 200


def test_more_pictures_than_a_request_may_have_are_refused(tmp_path):
    """Of more parts than a message may have nothing is looked at."""
    path = tmp_path / "edge.sock"
    transport = httpx2.HTTPTransport(uds=str(path))
    session = ScriptedSession(answer("x"))
    with (
        served(path, session),
        httpx2.Client(transport=transport, base_url="http://edge", timeout=TIMEOUT_S) as client,
    ):
        refused = client.post("/v1/chat/completions", json=asking(*[PNG] * 1000))
        assert refused.status_code == 400
        assert "pictures: are more than 64 in one request" in refused.json()["error"]["message"]
        n_most = sent.MAX_OF_KIND["picture"]
        assert client.post("/v1/chat/completions", json=asking(*[PNG] * n_most)).status_code == 200
    assert len(session.questions[0].messages[0].media) == n_most


def item(*parts: Any) -> MessageItem:
    return MessageItem(role="user", content=[*parts])


def test_a_conversation_s_item_is_bounded_likewise():
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    with pytest.raises(MediaError, match="pictures: are more than 64"):
        entry_of(item(*[InputImage(image_url=url)] * 65), "a")
    second = base64.b64encode(bytes(2 * 24_000)).decode()
    with pytest.raises(MediaError, match="sounds: are more than 16"):
        entry_of(item(*[InputAudio(audio=second)] * 17), "a")


def test_a_sound_is_judged_before_it_is_converted(monkeypatch):
    def convert(*_: object) -> None:
        raise AssertionError("converted")

    monkeypatch.setattr("edge.serve.conversation.resample", convert)
    long = base64.b64encode(bytes(2 * 24_000 * 31)).decode()
    with pytest.raises(MediaError, match="lasts more than 30 s"):
        entry_of(item(InputAudio(audio=long)), "a")


def test_a_piece_of_sound_is_bounded():
    sound = ClientSound()
    sound.detect_turns(True)
    piece = np.zeros(24_000 * MAX_PIECE_S + 1, "<i2").tobytes()
    with pytest.raises(ProtocolError, match="lasts more than 120 s; append it in shorter"):
        sound.push(piece)
    assert sound.heard_ms == 0
