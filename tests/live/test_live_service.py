"""Somebody speaks into a real microphone before a real camera, and is answered."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from supervisor import TIMEOUT_S, Supervisor
from test_microphone import RATE_HZ, pulse  # noqa: F401  a fixture
from test_supervised import statuses, supervised  # noqa: F401  a fixture
from websockets.sync.client import unix_connect

from build_engine.bundle import build_bundle
from edge.client import Client
from edge.senses.media import check, mono_blocks

pytestmark = pytest.mark.alone
pytest_plugins = ["media"]
STREAM = Path(__file__).with_name("barcode_stream.py")
ASSETS = Path(__file__).parents[1] / "assets"
FILM = ASSETS / "session/session.mp4"
QUESTION_S = 4.4, 6.6
"""When the film's sound asks `what color is the triangle`."""


def wait_for(supervisor, pattern, count=1):
    """Until the log has so many lines like this; the service tells its status meanwhile."""
    while len(re.findall(pattern, supervisor.log)) < count:
        supervisor.hear(1.0)
        assert supervisor.process.poll() is None, supervisor.log


def test_spoken_questions_are_answered_and_faults_stay_apart(
    supervised,  # noqa: F811
    pulse,  # noqa: F811
    speech,
    tmp_path,
):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    settings = tmp_path / "edge.toml"
    settings.write_text(
        f"""
[perception]
fps = 4
listen = "utterances"
[turns]
mode = "open"
[answer]
max_tokens = 4
[[camera]]
name = "front"
source = "udp://127.0.0.1:{port}"
[[microphone]]
name = "head"
source = "device:pulse"
"""
    )
    camera = [sys.executable, str(STREAM), str(port)]
    film = subprocess.Popen(camera)
    supervisor = supervised("--config", settings, watchdog_s=20.0)
    try:
        supervisor.start()
        supervisor.wait_for("READY=1")
        wait_for(supervisor, "segment=video", 2)
        pulse.play(speech / "Front_Center.wav")
        wait_for(supervisor, "turn=(stop|length)")
        line = next(line for line in supervisor.log.splitlines() if "turn=" in line)
        print(f"spoken and answered: {line.split('INFO ')[-1]}")
        film.kill()
        film.wait()
        wait_for(supervisor, "sense=front event=lost")
        pulse.play(speech / "Rear_Left.wav")  # the microphone does not mind
        wait_for(supervisor, "turn=(stop|length)", 2)
        film = subprocess.Popen(camera)
        wait_for(supervisor, "sense=front event=back")
        counters = Client(supervisor.path).health()["counters"]
        print(json.dumps(counters))
        assert counters["head_failed"] == counters["front_failed"] == 0
        code, seconds = supervisor.stop()
        assert (code, seconds < 5) == (0, True)
    finally:
        film.kill()
        film.wait()


def cut_out_question(path: Path) -> Path:
    """What is asked in the film, as a WAV file."""
    sound = np.concatenate([block for _, block in mono_blocks(check(FILM))])
    start, end = (int(at_s * RATE_HZ) for at_s in QUESTION_S)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        file.writeframes((sound[start:end] * 32767).astype(np.int16).tobytes())
    return path


def test_what_is_asked_aloud_about_what_is_seen_is_answered_right(pulse, tmp_path):  # noqa: F811
    """paplay speaks, the microphone hears, the small trained model answers about the film."""
    bundle = tmp_path / "bundle"
    build_bundle(ASSETS / "tiny_omni", bundle, "cpu", lambda *_: None)
    settings = tmp_path / "edge.toml"
    settings.write_text(
        f"""
[perception]
fps = 2
listen = "utterances"
[turns]
mode = "open"
text = "Answer the question."
[answer]
max_tokens = 8
[[camera]]
name = "front"
source = "{FILM}"
[[microphone]]
name = "head"
source = "device:pulse"
"""
    )
    program = [sys.executable, "-m", "edge.cli", "run", str(bundle), "--config", str(settings)]
    supervisor = Supervisor(tmp_path, program)
    try:
        supervisor.start()
        supervisor.wait_for("READY=1")
        wait_for(supervisor, "segment=video", 7)
        with unix_connect(str(supervisor.path), "ws://edge/v1/realtime") as listener:
            wanted = {"type": "realtime", "edge": {"events": ["speech"]}}
            listener.send(json.dumps({"type": "session.update", "session": wanted}))
            pulse.play(cut_out_question(tmp_path / "question.wav"))
            heard = []
            while not heard or heard[-1]["type"] != "edge.speech.done":
                heard.append(json.loads(listener.recv(TIMEOUT_S)))
        heard = [event for event in heard if event["type"].startswith("edge.speech")]
        said = "".join(event["delta"] for event in heard if "delta" in event)
        line = next(line for line in supervisor.log.splitlines() if "turn=" in line)
        print(f"asked aloud: {said!r}: {line.split('INFO ')[-1]}")
        assert [event["type"] for event in heard][:3] == [
            "edge.speech.started",
            "edge.speech.stopped",
            "edge.speech.asked",
        ]
        assert said == "green"
        assert supervisor.stop()[0] == 0
    finally:
        supervisor.close()
