"""The service under a supervisor that speaks sd_notify and hands over the socket."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import sys
import threading
import time
import wave
from pathlib import Path

import pytest
from supervisor import TIMEOUT_S, Supervisor

from edge.client import Client, Finished
from edge.errors import CapacityError, SocketError

pytestmark = pytest.mark.alone
pytest_plugins = ["media"]
WEDGED = Path(__file__).with_name("wedged_edge.py")
MAX_DRAIN_S = 5.0


@pytest.fixture
def supervised(bundle, tmp_path):
    """Make a supervisor of `edge run` on the base bundle; closed after the test."""
    made: list[Supervisor] = []

    def make(*words: object, watchdog_s: float = 0.0, wedge: Path | None = None) -> Supervisor:
        program = ["-m", "edge.cli"] if wedge is None else [str(WEDGED), str(wedge)]
        words = ("run", bundle("base"), *words)
        command = [sys.executable, *program, *(str(word) for word in words)]
        made.append(Supervisor(tmp_path, command, watchdog_s))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.close()


class Asking(threading.Thread):
    """A client on a thread of its own."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        super().__init__()
        self._client, self._max_tokens = Client(path, TIMEOUT_S), max_tokens
        self.begun = threading.Event()
        self.events: list[object] = []
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            for event in self._client.ask("Hello", max_tokens=self._max_tokens):
                self.events.append(event)
                self.begun.set()
        except (CapacityError, SocketError) as error:
            self.error = error
        self.ended_s = time.monotonic()
        self.begun.set()

    def done(self) -> Finished:
        self.join(TIMEOUT_S)
        assert self.error is None
        assert isinstance(self.events[-1], Finished)
        return self.events[-1]


def statuses(supervisor: Supervisor) -> list[str]:
    return [line for _, lines in supervisor.heard for line in lines if line.startswith("STATUS=")]


def test_who_connects_before_readiness_is_answered_after(supervised):
    supervisor = supervised()
    asking = Asking(supervisor.path, 4)  # before the service even starts
    supervisor.start()
    ready_s = supervisor.wait_for("READY=1")
    assert asking.done().usage["completion_tokens"] == 4
    assert asking.ended_s > ready_s
    doing = [line for line in statuses(supervisor) if "starting" in line]
    assert len(doing) == 4
    for word, line in zip(("byte", "load", "warm", "prompt"), doing, strict=True):
        assert word in line
    line = next(line for line in supervisor.log.splitlines() if "event=ready" in line)
    stages = dict(pair.split("=") for pair in line.split() if "_s=" in pair)
    print(f"process start to READY {ready_s - supervisor.started_s:.2f} s: {stages}")
    total_s = float(stages.pop("startup_s"))
    assert total_s == pytest.approx(sum(float(s) for s in stages.values()), abs=0.01)
    # The kernel counts a process's start in ticks of 10 ms.
    assert total_s == pytest.approx(ready_s - supervisor.started_s, abs=0.1)
    code, _ = supervisor.stop()
    assert code == 0
    assert supervisor.path.exists(), "the socket is the supervisor's"


def test_an_idle_service_says_that_it_lives(supervised):
    supervisor = supervised(watchdog_s=4.0)
    supervisor.start()
    supervisor.wait_for("READY=1")
    first_s = supervisor.wait_for("WATCHDOG=1")
    second_s = supervisor.wait_for("WATCHDOG=1")
    assert 0.9 <= second_s - first_s < 4.0
    assert "context" in statuses(supervisor)[-1]


def test_a_hanging_engine_is_noticed_and_the_next_start_answers(supervised, tmp_path):
    wedge = tmp_path / "wedge"
    supervisor = supervised(watchdog_s=4.0, wedge=wedge)
    supervisor.start()
    supervisor.wait_for("WATCHDOG=1")
    wedge.touch()
    lost = Asking(supervisor.path, 4)
    supervisor.watch()
    aborted_s = time.monotonic()
    assert supervisor.process.returncode == -signal.SIGABRT
    lost.join(TIMEOUT_S)
    assert isinstance(lost.error, SocketError)
    waiting = Asking(supervisor.path, 4)  # while nobody serves
    supervisor.start()
    assert waiting.done().usage["completion_tokens"] == 4
    print(f"aborted and answering again within {waiting.ended_s - aborted_s:.2f} s")
    assert supervisor.stop()[0] == 0


def test_a_socket_that_hangs_is_noticed_though_the_robot_perceives_on(supervised, tmp_path):
    """The loop's thread comes on all the time: its own progress is not what is missing."""
    wedge = tmp_path / "wedge"
    supervisor = supervised(watchdog_s=4.0, wedge=wedge)
    supervisor.start()
    supervisor.wait_for("WATCHDOG=1")
    silent_s = Client(supervisor.path, TIMEOUT_S).health()["silent_s"]
    assert 0.0 <= silent_s["socket"] < 4.0
    assert 0.0 <= silent_s["loop"] < 4.0
    wedge.with_suffix(".socket").touch()
    with contextlib.closing(http.client.HTTPConnection("edge")) as hanging:
        hanging.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        hanging.sock.connect(str(supervisor.path))
        hanging.request("GET", "/readyz")
        wedged_s = time.monotonic()
        supervisor.watch()
    print(f"aborted {time.monotonic() - wedged_s:.2f} s after the socket hung")
    assert supervisor.process.returncode == -signal.SIGABRT
    assert any("the socket has not answered for" in status for status in statuses(supervisor))
    waiting = Asking(supervisor.path, 2)  # while nobody serves
    supervisor.start()
    assert waiting.done().usage["completion_tokens"] == 2
    assert supervisor.stop()[0] == 0


def test_a_killed_service_is_back(supervised):
    supervisor = supervised()
    supervisor.start()
    supervisor.wait_for("READY=1")
    supervisor.process.kill()
    supervisor.process.wait(TIMEOUT_S)
    killed_s = time.monotonic()
    waiting = Asking(supervisor.path, 2)
    supervisor.start()
    assert waiting.done().usage["completion_tokens"] == 2
    print(f"answering {waiting.ended_s - killed_s:.2f} s after kill -9")


@pytest.mark.parametrize(("token_s", "is_cut"), [(0.02, False), (0.8, True)])
def test_the_end_waits_for_answers_under_way(supervised, tmp_path, token_s, is_cut):
    wedge = tmp_path / "wedge"
    supervisor = supervised(wedge=wedge)
    supervisor.start()
    supervisor.wait_for("READY=1")
    wedge.write_text(str(token_s))
    asking = Asking(supervisor.path, 12)
    assert asking.begun.wait(TIMEOUT_S)
    code, seconds = supervisor.stop()
    print(f"SIGTERM in mid-turn, {token_s} s a token: ended after {seconds:.2f} s")
    assert code == 0
    assert seconds < MAX_DRAIN_S
    while supervisor.hear(0.1):
        pass
    assert any("STOPPING=1" in lines for _, lines in supervisor.heard)
    if is_cut:
        asking.join(TIMEOUT_S)
        assert "is stopping" in str(asking.error)
    else:
        assert asking.done().usage["completion_tokens"] == 12


def test_what_has_begun_is_told_to_be_over_when_the_service_ends(supervised, speech, tmp_path):
    """On the wire too: somebody speaks with the button held, and a question is being answered."""
    settings, wedge = tmp_path / "edge.toml", tmp_path / "wedge"
    settings.write_text('[perception]\nlisten = "utterances"\n[turns]\nmode = "push_to_talk"\n')
    with (
        wave.open(str(speech / "Front_Center.wav")) as word,
        wave.open(str(tmp_path / "word.wav"), "wb") as file,
    ):
        file.setparams(word.getparams())
        file.writeframes(word.readframes(word.getnframes()) + bytes(2 * 48_000))  # and 1 s silence
    words = ("--audio", tmp_path / "word.wav", "--repeat", "--config", settings)
    supervisor = supervised(*words, wedge=wedge)
    supervisor.start()
    supervisor.wait_for("READY=1")
    client = Client(supervisor.path, TIMEOUT_S)
    told = client.events(["edge.perceived", "edge.speech"])
    assert next(told)["type"] == "edge.perceived"  # nobody holds the button yet
    with client._answer("POST", "/v1/edge/turns", b'{"button": "begin"}'):
        pass
    while next(told)["type"] != "edge.speech.started":
        pass
    wedge.write_text("0.8")  # s a token
    asking = Asking(supervisor.path, 12)
    assert asking.begun.wait(TIMEOUT_S)
    assert supervisor.stop()[0] == 0
    rest = []
    with contextlib.suppress(SocketError):
        rest.extend(told)
    rest = [event for event in rest if event["type"] != "edge.perceived"]
    assert [event["type"] for event in rest] == ["edge.speech.stopped"]
    assert not rest[0]["is_asked"]
    asking.join(TIMEOUT_S)
    assert "is stopping" in str(asking.error)


def test_settings_are_reloaded_and_the_context_stays(supervised, tmp_path):
    settings = tmp_path / "edge.toml"
    settings.write_text("[answer]\nmax_tokens = 5\nremember = true\n")
    supervisor = supervised("--config", settings)
    supervisor.start()
    supervisor.wait_for("READY=1")
    client = Client(supervisor.path, TIMEOUT_S)

    def n_answered() -> int:
        finished = list(client.ask("Hello"))[-1]
        assert isinstance(finished, Finished)
        return finished.usage["completion_tokens"]

    def reload(text: str) -> str:
        settings.write_text(text)
        supervisor.process.send_signal(signal.SIGHUP)
        supervisor.wait_for("RELOADING=1")
        supervisor.wait_for("READY=1")
        return statuses(supervisor)[-1]

    assert n_answered() == 5
    before = client.health()
    assert before["max_context_tokens"] == 8192
    assert reload("[answer]\nmax_tokens = 5\n").endswith("restart for: nothing")
    said = reload("[answer]\nmax_tokens = 3\n[context]\nmax_tokens = 4096\n")
    assert said == "STATUS=settings reloaded; restart for: context"
    assert n_answered() == 3
    after = client.health()
    assert after["n_context_tokens"] == before["n_context_tokens"]
    assert after["max_context_tokens"] == before["max_context_tokens"]
    assert after["counters"]["answers"] == 2
    said = reload("[answer]\nmax_tokens = -1\n")
    assert "settings unchanged" in said
    assert "max_tokens is -1" in said
    assert n_answered() == 3
    assert supervisor.stop()[0] == 0


def test_a_wrong_bundle_ends_with_the_code_that_is_not_restarted(supervised, tmp_path):
    supervisor = Supervisor(
        tmp_path, [sys.executable, "-m", "edge.cli", "run", str(tmp_path / "nowhere")]
    )
    try:
        supervisor.start()
        assert supervisor.process.wait(TIMEOUT_S) == 78
        assert supervisor.path.exists()
    finally:
        supervisor.close()
