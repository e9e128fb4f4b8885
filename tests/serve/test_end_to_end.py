"""`edge run` as a process on real media, with clients that we did not write."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import wave
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest
import soxr
from make_media import QUARTER_TURNS, turn_mp4

pytest_plugins = ["media"]


class Service:
    """A running `edge run`; its log is what tests wait for."""

    def __init__(self, *words: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edge.cli", "run", *(str(word) for word in words)],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []

    def wait_for(self, text: str, count: int = 1) -> str:
        """Read the log until `count` lines hold `text`; the last of them."""
        found = [line for line in self.log if text in line]
        assert self.process.stderr is not None
        while len(found) < count:
            line = self.process.stderr.readline()
            assert line, f"ended before {text!r}: {''.join(self.log)}"
            self.log.append(line)
            found += [line] * (text in line)
        return found[count - 1]

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.log += (self.process.communicate(timeout=30)[1] or "").splitlines()
        return self.process.returncode


@pytest.fixture
def run(bundle, tmp_path):
    """Start a service on the base bundle; ended after the test."""
    started: list[Service] = []

    def start(*words: object) -> tuple[Service, Path]:
        socket = tmp_path / "edge.sock"
        service = Service(bundle("base"), "--socket", socket, *words)
        started.append(service)
        service.wait_for("event=ready")
        return service, socket

    yield start
    for service in started:
        if service.process.poll() is None:
            service.process.kill()
        service.process.communicate()


def edge(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge.cli", *(str(word) for word in words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def film(clips: Path, speech: Path, tmp_path: Path, name: str) -> tuple[list[object], str]:
    """Arguments for one recording, and what it is."""
    if name == "wide":  # 1280x720 at 25 fps with 48 kHz 5.1 sound of its own
        return ["--video", clips / "bigbuckbunny.mp4"], "bigbuckbunny.mp4"
    if name == "turned":  # 176x144 at 29.97 fps, shown upright as 144x176; spoken 48 kHz mono
        lying = clips / "carphone_pristine.mp4"
        path = turn_mp4(lying, tmp_path / "turned.mp4", QUARTER_TURNS[1])
        return ["--video", path, "--audio", speech / "Front_Center.wav"], "turned.mp4"
    # 640x272 at 25 fps; 44.1 kHz stereo
    with wave.open(str(speech / "Rear_Left.wav")) as spoken:
        frames = spoken.readframes(spoken.getnframes())
        rate = spoken.getframerate()
    samples = np.frombuffer(frames, np.int16)
    samples = soxr.resample(samples, rate, 44_100)
    path = tmp_path / "stereo.wav"
    with wave.open(str(path), "wb") as stereo:
        stereo.setnchannels(2)
        stereo.setsampwidth(2)
        stereo.setframerate(44_100)
        stereo.writeframes(np.stack([samples, samples // 2], -1).tobytes())
    return ["--video", clips / "bikes.mp4", "--audio", path], "bikes.mp4"


@pytest.mark.parametrize("name", ["wide", "turned", "bikes"])
def test_real_media_are_perceived_and_asked_about(run, clips, speech, tmp_path, name):
    words, source = film(clips, speech, tmp_path, name)
    service, socket = run(*words, "--fps", 4)
    service.wait_for("segment=video", count=4)
    service.wait_for("segment=audio")
    asked = edge("ask", "What do you see?", "--socket", socket, "--max-tokens", 8, "--json")
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    assert answer["usage"]["completion_tokens"] <= 8
    timeline = answer["edge"]
    assert 0 <= timeline["waited_ms"] <= timeline["prefilled_ms"] <= timeline["first_token_ms"]
    assert timeline["n_context_tokens"] > 4 * 15
    seen = [e for e in timeline["evidence"] if e["frame_ids"]]
    assert {evidence["source"] for evidence in seen} == {source}
    assert all(len(evidence["frame_ids"]) == 2 for evidence in seen)
    status = json.loads(edge("status", "--socket", socket, "--json").stdout)
    assert status["counters"]["answers"] == 1
    assert status["counters"]["video_segments"] >= 4
    assert service.stop() == 0
    assert not socket.exists()


def test_the_stock_sdk_and_curl_stream_from_the_live_context(run, clips):
    service, socket = run("--video", clips / "bikes.mp4", "--fps", 4)
    service.wait_for("segment=video", count=2)
    http = httpx2.Client(transport=httpx2.HTTPTransport(uds=str(socket)))
    with openai.OpenAI(base_url="http://localhost/v1", api_key="-", http_client=http) as client:
        model = client.models.list().data[0].id
        assert model == "base"
        messages = [{"role": "user", "content": "Where is it?"}]
        settings = {"model": model, "messages": messages, "max_tokens": 12, "temperature": 0}
        chunks = list(client.chat.completions.create(**settings, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text
        assert chunks[-1].choices[0].finish_reason in ("stop", "length")
        thinking = client.chat.completions.create(
            **settings, extra_body={"chat_template_kwargs": {"enable_thinking": True}}
        )
        assert thinking.choices[0].message.reasoning_content
    body = json.dumps({"stream": True, "messages": messages, "max_tokens": 12})
    url = "http://localhost/v1/chat/completions"
    curl = ["curl", "-sN", "--unix-socket", str(socket), url, "-d", body]
    lines = subprocess.check_output(curl, text=True).splitlines()
    events = [line.removeprefix("data: ") for line in lines if line]
    assert events[-1] == "[DONE]"
    closing = json.loads(events[-2])
    assert closing["edge"]["evidence"][-1]["source"] == "bikes.mp4"
    assert service.stop() == 0


def test_the_end_of_a_recording_does_not_end_the_service(run, speech):
    service, socket = run("--audio", speech / "Front_Center.wav", "--listen", "utterances")
    service.wait_for("sense=audio event=ended")
    service.wait_for("segment=audio")
    asked = edge("ask", "What was said?", "--socket", socket, "--max-tokens", 4)
    assert asked.returncode == 0
    assert "edge: there is no camera: the answer stands on nothing seen\n" in asked.stderr
    assert service.stop() == 0


def test_a_service_without_senses_answers_text(run):
    service, socket = run()
    service.wait_for("event=blind")
    service.wait_for("event=deaf")
    first = edge("ask", "Hello", "--socket", socket, "--max-tokens", 6)
    assert first.returncode == 0
    assert edge("ask", "Hello", "--socket", socket, "--max-tokens", 6).stdout == first.stdout
    assert service.stop() == 0


def test_a_killed_service_leaves_a_path_that_the_next_one_takes(run):
    service, socket = run()
    service.process.kill()
    service.process.wait()
    assert socket.exists()
    refused = edge("ask", "Hello", "--socket", socket)
    assert refused.returncode == 73
    assert "edge run" in refused.stderr
    again, _ = run()
    assert edge("ask", "Hello", "--socket", socket, "--max-tokens", 2).returncode == 0
    assert again.stop() == 0


def refusal(bundle, tmp_path, *words, socket=None):
    """Exit code and the one line of an `edge run` that does not start."""
    path = socket or tmp_path / "edge.sock"
    ended = edge("run", bundle, "--socket", path, *words)
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, lines
    assert ended.stdout == ""
    return ended.returncode, lines[0]


def test_what_cannot_start_says_so_in_one_line(bundle, clips, speech, tmp_path):
    good = bundle("base")

    cut = tmp_path / "cut.mp4"
    cut.write_bytes((clips / "bigbuckbunny.mp4").read_bytes()[:300_000])
    code, line = refusal(good, tmp_path, "--video", cut)
    assert code == 65
    assert f"edge: {cut}: is cut short" in line

    code, line = refusal(good, tmp_path, "--video", speech / "Front_Center.wav")
    assert code == 65
    assert "has no video track; give a file with video" in line

    silent = tmp_path / "silent.wav"
    with wave.open(str(silent), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(32_000))
    code, line = refusal(good, tmp_path, "--audio", silent)
    assert code == 65
    assert "is silent: all 16000 samples are 0" in line

    taken = tmp_path / "taken"
    taken.write_text("mine")
    code, line = refusal(good, tmp_path, socket=taken)
    assert code == 73
    assert str(taken) in line
    assert taken.read_text() == "mine"

    code, line = refusal(tmp_path / "nowhere", tmp_path)
    assert code == 78
    assert "is not a bundle" in line

    settings = tmp_path / "edge.toml"
    settings.write_text("[perception]\nfps = -1\nfsp = 2\n[contxt]\n")
    code, line = refusal(good, tmp_path, "--config", settings)
    assert code == 78
    assert all(part in line for part in ("perception.fps is -1", "fsp", "contxt"))
    assert not (tmp_path / "edge.sock").exists()


def test_a_second_service_on_the_same_socket_is_refused(run, bundle, tmp_path):
    service, socket = run()
    code, line = refusal(bundle("base"), tmp_path, socket=socket)
    assert code == 73
    assert "another edge run is serving there" in line
    assert edge("ask", "Hello", "--socket", socket, "--max-tokens", 2).returncode == 0
    assert service.stop() == 0


def test_a_damaged_bundle_is_refused(bundle, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in bundle("base").iterdir():
        content = bytearray(path.read_bytes())
        if path.name == "decoder.safetensors":
            content[-1] ^= 0x10
        (copy / path.name).write_bytes(content)
    code, line = refusal(copy, tmp_path)
    assert code == 78
    assert "decoder.safetensors: is damaged" in line
    os.truncate(copy / "vision.onnx", 10)
    assert refusal(copy, tmp_path)[0] == 78
