"""A real microphone path: a PulseAudio sink that nobody hears, its monitor as the microphone."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import threading
import wave
from pathlib import Path

import numpy as np
import pytest

from edge import board_parts
from edge.cli import main
from edge.clock import NS_PER_S, MonotonicClock
from edge.features.resample import resample
from edge.senses.microphone import Microphone

pytestmark = pytest.mark.alone
pytest_plugins = ["media"]
SOURCE = "module-remap-source"
RATE_HZ = 16_000


def must_be(there: bool, what: str) -> None:
    if not there:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)


class Pulse:
    """A sound server of our own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        run = folder / "run"
        run.mkdir(mode=0o700)
        (folder / ".asoundrc").write_text(
            "pcm.!default { type pulse }\nctl.!default { type pulse }\npcm.pulse { type pulse }\n"
        )
        # libpulse waits for itself for ever where its server goes while a block that they share is
        # read: its thread, with the lock, for the reader of the block, and that one for the lock.
        (folder / "client.conf").write_text("enable-shm = no\n")
        self.environment = {
            "HOME": str(folder),
            "PULSE_CLIENTCONFIG": str(folder / "client.conf"),
            "XDG_RUNTIME_DIR": str(run),
            "PULSE_SERVER": f"unix:{run}/pulse/native",
        }

    def start(self) -> None:
        loaded = ["module-native-protocol-unix", "module-null-sink sink_name=ci rate=48000"]
        command = [
            "pulseaudio",
            "-n",
            "--daemonize=yes",
            "--exit-idle-time=-1",
            *(f"--load={m}" for m in loaded),
        ]
        self._run(*command)
        self.plug()

    def plug(self) -> None:
        self._run("pactl", "load-module", SOURCE, "master=ci.monitor", "source_name=cimic")
        self._run("pactl", "set-default-source", "cimic")

    def play(self, path: Path) -> None:
        self._run("paplay", "--device=ci", str(path))

    def stop(self) -> None:
        pid = self.folder / "run/pulse/pid"
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGTERM)
            while pid.exists():
                threading.Event().wait(0.02)

    def _run(self, *words: str) -> None:
        environment = {**os.environ, **self.environment}
        ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=30)
        assert ended.returncode == 0, ended.stderr


@pytest.fixture
def pulse(tmp_path, monkeypatch):
    for program in ("pulseaudio", "pactl", "paplay"):
        must_be(
            shutil.which(program) is not None, f"needs {program}: scripts/install_test_media.sh"
        )
    pytest.importorskip("pyaudio") if os.environ.get("CI") != "true" else __import__("pyaudio")
    server = Pulse(tmp_path)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.start()
    yield server
    server.stop()


def loudest_match(heard: np.ndarray, played: np.ndarray) -> float:
    """Correlation at the best shift."""
    n = 1 << (len(heard) + len(played)).bit_length()
    cross = np.fft.irfft(np.fft.rfft(heard, n) * np.conj(np.fft.rfft(played, n)), n)
    at = int(cross[: len(heard) - len(played)].argmax())
    part = heard[at : at + len(played)]
    return float(np.corrcoef(part, played)[0, 1])


@pytest.mark.parametrize("form", ["", "?rate=44100&channels=2", "?rate=8000&channels=1"])
def test_what_is_played_is_heard(pulse, speech, form):
    path = speech / "Front_Center.wav"
    with wave.open(str(path)) as file:
        data = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
        played = resample(data[:, None].astype(np.float32), file.getframerate())
        seconds = file.getnframes() / file.getframerate()
    microphone = Microphone("head", f"device:pulse{form}", MonotonicClock())
    chunks = microphone.chunks()
    first = next(chunks)
    player = threading.Thread(target=pulse.play, args=(path,))
    player.start()
    got = [
        first,
        *itertools.takewhile(
            lambda c: c.capture_ns < first.capture_ns + int((seconds + 2) * NS_PER_S), chunks
        ),
    ]
    player.join()
    microphone.close()
    heard = np.concatenate([chunk.samples for chunk in got])
    likeness = loudest_match(heard, played)
    print(f"{form or 'own format'}: correlation {likeness:.4f}, {microphone.n_lost} overruns")
    # 8 kHz leaves out the speech above 4 kHz.
    assert likeness > (0.9 if "8000" in form else 0.98)
    settled = got[len(got) // 3 :]  # PulseAudio begins with a hole or two
    ends = [chunk.capture_ns + len(chunk.samples) * NS_PER_S // RATE_HZ for chunk in settled]
    gaps_s = [(c.capture_ns - end) / NS_PER_S for c, end in zip(settled[1:], ends, strict=False)]
    assert max(map(abs, gaps_s)) < 0.2
    assert abs(sum(gaps_s)) < 0.2


def test_a_microphone_that_comes_back_is_heard_again(pulse, caplog):
    caplog.set_level("INFO")
    microphone = Microphone("head", "device:pulse", MonotonicClock())
    chunks = microphone.chunks()
    before = next(chunks)
    caplog.clear()
    pulse.stop()  # the whole server: all its devices go
    plugged = threading.Timer(3.0, pulse.start)
    plugged.start()
    after = next(chunk for chunk in chunks if "event=back" in caplog.text)
    plugged.join()
    microphone.close()
    gap_s = (after.capture_ns - before.capture_ns) / NS_PER_S
    print(f"away for 3 s: heard again after {gap_s:.1f} s")
    assert "event=lost" in caplog.text
    assert 3 < gap_s < 60, "PortAudio looks for devices for seconds when there is no server"


def test_formats_are_listed(pulse, capsys):
    assert main(["devices", "--json"]) == 0
    (found,) = [d for d in json.loads(capsys.readouterr().out) if d["source"] == "device:pulse"]
    rates = {one["rate_hz"]: one["channels"] for one in found["formats"]}
    assert rates.keys() >= {8000, 16000, 44100, 48000}
    assert all(channels[:2] == [1, 2] for channels in rates.values())
    assert main(["devices"]) == 0
    said = capsys.readouterr().out.splitlines()
    at = next(n for n, line in enumerate(said) if '"device:pulse"' in line)
    print("\n".join(said[at : at + 2]))
    assert "44100, 48000" in said[at + 1]
    for rate_hz in (8000, 44100):  # what is listed can be had
        microphone = Microphone("head", f"device:pulse?rate={rate_hz}&channels=2", MonotonicClock())
        assert len(next(microphone.chunks()).samples)
        microphone.close()


def test_a_device_that_is_not_there(pulse, caplog):
    microphone = Microphone("head", "device:no such thing", MonotonicClock())
    ended = threading.Timer(0.5, microphone.close)
    ended.start()
    assert list(microphone.chunks()) == []
    assert "is not there; plug it in" in caplog.text


def test_a_board_s_report_has_what_is_heard_and_no_names(pulse, capsys, monkeypatch):
    monkeypatch.setattr(board_parts, "CAPTURE_S", 1.0)
    assert board_parts.main("microphones") == 0
    said = capsys.readouterr().out
    assert "the default microphone:\n  1." in said
    assert "dB of full scale, 0 times sound was lost" in said


def test_a_board_s_report_names_no_device(caplog):
    """Some are called after their owners."""
    caplog.handler.addFilter(board_parts._Unnamed(["Anna's buds", "Anna"]))
    with caplog.at_level("WARNING"):
        logging.getLogger("edge").warning("event=lost error=%s", "Anna's buds: cannot be opened")
    assert "Anna" not in caplog.text
    assert "event=lost error=(a device): cannot be opened" in caplog.text
