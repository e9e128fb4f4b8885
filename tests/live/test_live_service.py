"""Somebody speaks into a real microphone before a real camera, and is answered."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

from test_microphone import pulse  # noqa: F401  a fixture
from test_supervised import statuses, supervised  # noqa: F401  a fixture

from edge.client import Client

pytest_plugins = ["media"]
STREAM = Path(__file__).with_name("barcode_stream.py")


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
