"""Films and sounds in a request: the forms in which this model is documented to take them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import av
import httpx2
import numpy as np
import pytest
from make_media import write_video
from serve.scripted import DONE, MODEL, TIMEOUT_S, ScriptedSession, answer, served
from serve.test_fields import CONFIG, refused

from build_engine.bundle import build_bundle
from edge.clock import VirtualClock
from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine
from edge.errors import MediaError
from edge.model.prompt import ChatTemplate
from edge.model.sampling import Sampling
from edge.model.tokenizer import Tokenizer
from edge.senses import sent
from edge.senses.clip import decode_video
from edge.serve.chat import parse_request
from edge.serve.response_items import KeptOf
from edge.serve.responses import parse_request as parse_response
from edge.session.answer import answer as answered
from edge.session.context import LiveContext
from edge.session.live_prompt import LivePrompt
from edge.session.turn import Turn
from edge.types import Film, Picture, Sound

pytest_plugins = ["media"]
FPS, SECONDS = 10, 4


def data_url(data: bytes, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> bytes:
    """Four seconds of a square that moves, without sound."""
    frames = np.zeros((FPS * SECONDS, 48, 64, 3), np.uint8)
    for k, frame in enumerate(frames):
        frame[16:32, k : k + 16] = 255
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    times_ms = range(0, 1000 * SECONDS, 1000 // FPS)
    write_video(path, [*frames], times_ms)
    return path.read_bytes()


@pytest.fixture(scope="module")
def spoken(clips: Path) -> bytes:
    """Five seconds with sound."""
    return (clips / "bigbuckbunny.mp4").read_bytes()


def sound_file(container: str, codec: str, rate_hz: int = 16_000) -> bytes:
    """A second of a tone, as one of the kinds of files that clients send."""
    samples = (np.sin(np.arange(rate_hz) * 0.1) * 8000).astype(np.int16)[None, :]
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate_hz, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = rate_hz
        resampler = av.AudioResampler(stream.format.name, "mono", rate_hz, stream.frame_size or 0)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return file.getvalue()


def asked(*parts: Any, **fields: Any) -> Any:
    """The media of a chat request's only message."""
    body = {"messages": [{"role": "user", "content": [*parts]}], **fields}
    request = parse_request(json.dumps(body).encode(), MODEL, CONFIG, Sampling())
    assert request.unheard == []
    return request.question.messages[0].media


def url(data: bytes) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": data_url(data)}}


TEXT = {"type": "text", "text": "Describe what happens in this video."}


def cookbook(film: bytes) -> dict[str, Any]:
    """NVIDIA's own request to vLLM for a film, with the film itself in the place of its address.

    Source: NVIDIA-NeMo/Nemotron, usage-cookbook/Nemotron-3-Nano-Omni/vllm_cookbook.ipynb.
    """
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": [TEXT, url(film)]}],
        "temperature": 0.2,
        "max_tokens": 2048,
        "chat_template_kwargs": {"enable_thinking": False},
    }


BODIES = {
    "film": {},
    "with its sound": {"mm_processor_kwargs": {"use_audio_in_video": True}},
    "rate": {"media_io_kwargs": {"video": {"fps": 3.0}}},
    "frames": {"media_io_kwargs": {"video": {"fps": 1, "num_frames": 512}}},
    "all frames": {
        "media_io_kwargs": {"video": {"fps": 2.0, "num_frames": -1}},
        "mm_processor_kwargs": {"use_audio_in_video": True},
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "thinking": {
        "max_tokens": 20480,
        "temperature": 0.6,
        "top_p": 0.95,
        "chat_template_kwargs": {"enable_thinking": True, "reasoning_budget": 16384},
    },
    "instruct": {"max_tokens": 1024, "temperature": 0.2, "top_k": 1},
}


@pytest.mark.parametrize("name", BODIES)
def test_documented_bodies_are_answered(tmp_path, spoken, name):
    path = tmp_path / "edge.sock"
    session = ScriptedSession(answer("A rabbit."))
    transport = httpx2.HTTPTransport(uds=str(path))
    with (
        served(path, session),
        httpx2.Client(transport=transport, base_url="http://edge", timeout=TIMEOUT_S) as client,
    ):
        body = cookbook(spoken) | BODIES[name]
        reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    assert "X-Edge-Ignored" not in reply.headers
    (seen,) = session.questions[0].messages[0].media
    assert isinstance(seen, Film)
    assert session.questions[0].messages[0].content == TEXT["text"]


def test_frames_are_those_of_the_models_card(film, spoken):
    (seen,) = asked(url(film))
    whole = decode_video(film)
    assert seen == Film(b"".join(f.tobytes() for f in whole.frames), 64, 48, whole.times_s)
    assert len(seen.times_s) == 2 * SECONDS
    io_kwargs = {"video": {"fps": 1}}
    assert len(asked(url(film), media_io_kwargs=io_kwargs)[0].times_s) == SECONDS
    for settings, n in (
        ({"num_frames": 3}, 3),
        ({"fps": -1}, FPS * SECONDS),
        ({"fps": 0, "num_frames": 5}, 5),
        ({"fps": 60, "num_frames": -1}, FPS * SECONDS),
    ):
        assert len(asked(url(film), media_io_kwargs={"video": settings})[0].times_s) == n
    pruned = asked(url(film), mm_processor_kwargs={"video_pruning_rate": 0.5})[0]
    assert pruned.pruning_rate == 0.5
    assert asked(url(spoken))[0].sound is None
    (heard,) = asked(url(spoken), mm_processor_kwargs={"use_audio_in_video": True})
    np.testing.assert_array_equal(
        np.frombuffer(heard.sound.samples, np.float32), decode_video(spoken).sound
    )
    assert asked(url(film), mm_processor_kwargs={"use_audio_in_video": True})[0].sound is None


def test_a_sound_of_its_own_takes_the_place_of_the_films(spoken):
    """As in vLLM's `nano_nemotron_vl`: the film's is used where there is no other."""
    tone = {"type": "audio_url", "audio_url": {"url": data_url(sound_file("wav", "pcm_s16le"))}}
    found = asked(url(spoken), tone, mm_processor_kwargs={"use_audio_in_video": True})
    assert [type(one) for one in found] == [Film, Sound]
    assert found[0].sound is None


@pytest.mark.parametrize(
    "form",
    [
        lambda one: {"type": "video_url", "video_url": {"url": data_url(one)}},
        lambda one: {"type": "video_url", "video_url": data_url(one)},
        lambda one: {"type": "input_video", "video_url": data_url(one)},
        lambda one: {
            "type": "input_video",
            "input_video": {"data": base64.b64encode(one).decode(), "format": "mp4"},
        },
        lambda one: {"type": "input_video", "input_video": {"url": data_url(one)}},
    ],
)
def test_forms_of_a_film(film, form):
    body = {"messages": [{"role": "user", "content": [form(film)]}]}
    request = parse_request(json.dumps(body).encode(), MODEL, CONFIG, Sampling())
    assert request.question.messages[0].media == asked(url(film))
    body = {"input": [{"role": "user", "content": [form(film)]}]}
    response = parse_response(json.dumps(body).encode(), MODEL, CONFIG, Sampling(), KeptOf())
    assert response.question.messages[0].media == asked(url(film))


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("wav", "pcm_s16le"),
        ("mp3", "libmp3lame"),
        ("flac", "flac"),
        ("ogg", "libopus"),
        ("ipod", "aac"),
    ],
)
def test_kinds_of_sound(container, codec):
    data = sound_file(container, codec, 48_000 if codec == "libopus" else 16_000)
    for part in (
        {"type": "audio_url", "audio_url": {"url": data_url(data, "audio/x")}},
        {"type": "input_audio", "input_audio": {"url": data_url(data, "audio/x")}},
    ):
        (heard,) = asked(part)
        assert len(heard.samples) / 4 == pytest.approx(16_000, abs=3000)
    encoded = base64.b64encode(data).decode()
    body = {"type": "input_audio", "input_audio": {"data": encoded, "format": container}}
    request = {"messages": [{"role": "user", "content": [body]}]}
    parse_request(json.dumps(request).encode(), MODEL, CONFIG, Sampling())


@pytest.mark.parametrize("where", ["http://x/a.mp4", "https://x/a.mp4", "file:///a.mp4", "/a.mp4"])
@pytest.mark.parametrize("form", ["video_url", "input_video"])
def test_no_film_is_fetched(where, form):
    part = {"type": form, "video_url": {"url": where}}
    error = refused(messages=[{"role": "user", "content": [part]}])
    assert "the service fetches nothing" in error.problem
    assert "send the film itself" in error.remedy


def test_what_is_no_film_is_refused_in_one_line():
    for data in (b"", b"hello", b"\x00" * 5000, b"#EXTM3U\nhttp://x/a.ts\n"):
        body = {"messages": [{"role": "user", "content": [url(data)]}]}
        with pytest.raises(MediaError) as caught:
            parse_request(json.dumps(body).encode(), MODEL, CONFIG, Sampling())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"media_io_kwargs": {"video": {"num_frames": 513}}},
        {"media_io_kwargs": {"video": {"fps": 61}}},
        {"mm_processor_kwargs": {"video_pruning_rate": 1.0}},
        {"media_io_kwargs": {"video": {"fps": "2"}}},
    ],
)
def test_settings_are_bounded(fields):
    assert refused(**fields).thing.startswith(next(iter(fields)))


def test_what_all_media_of_a_request_take_is_bounded(film, monkeypatch):
    """Films are made smaller, pictures refused."""
    (whole,) = asked(url(film))
    monkeypatch.setattr(sent, "MAX_MEDIA_BYTES", len(whole.rgb) * 3 // 2)
    first, second = asked(url(film), url(film))
    assert (first.width, second.width) == (64, 32)
    picture = Picture(bytes(3), 1, 1)
    monkeypatch.setattr(sent, "decode_picture", lambda *_: picture)
    monkeypatch.setattr(sent, "MAX_MEDIA_BYTES", 7)
    part = {"type": "image_url", "image_url": data_url(b"x")}
    assert len(asked(part, part)) == 2
    with pytest.raises(MediaError, match="take more than 7 bytes"):
        asked(part, part, part)


def test_media_of_all_requests_are_bounded_together(tmp_path, film, monkeypatch):
    (whole,) = asked(url(film))
    monkeypatch.setattr("edge.serve.app.MAX_ALL_MEDIA_BYTES", len(whole.rgb) * 3)
    path = tmp_path / "edge.sock"
    transport = httpx2.HTTPTransport(uds=str(path))
    with (
        served(path, ScriptedSession(lambda turn: turn.deliver(DONE))),
        httpx2.Client(transport=transport, base_url="http://edge", timeout=TIMEOUT_S) as client,
    ):
        for _ in range(3):  # what was held is given back
            assert client.post("/v1/chat/completions", json=cookbook(film)).status_code == 200
        two = cookbook(film)
        two["messages"] *= 2
        refused = client.post("/v1/chat/completions", json=two)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "over_capacity")
        assert client.post("/v1/chat/completions", json=cookbook(film)).status_code == 200


def test_the_trained_model_sees_a_film_of_a_request(tmp_path):
    """The demo's film, sent instead of played: a triangle, a circle and a square move."""
    assets = Path(__file__).resolve().parent.parent / "assets"
    build_bundle(assets / "tiny_omni", tmp_path / "bundle", "cpu", lambda *_: None)
    engine = CpuEngine(Bundle(tmp_path / "bundle"), n_threads=1)
    engine.load_encoders()
    prompt = LivePrompt(Tokenizer(tmp_path / "bundle"), ChatTemplate(tmp_path / "bundle"), "")
    anchor, separator = prompt.anchor(), prompt.separator()
    context = LiveContext(engine, anchor, separator, max_tokens=400, keep_tokens=200)
    film = (assets / "session/session.mp4").read_bytes()
    body = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "What do you see?"}]}]
    }
    body["messages"][0]["content"].append(url(film))
    request = parse_request(json.dumps(body).encode(), MODEL, CONFIG, Sampling())
    said: list[Any] = []
    answered(context, prompt, Turn(request.question, 0, said.append), VirtualClock())
    text = "".join(event.text for event in said)
    assert {*text.split(", ")} == {"a green triangle", "a red circle", "a blue square"}
