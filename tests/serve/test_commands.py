"""`edge` commands as processes, against the real application."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import wave
from dataclasses import replace

import numpy as np
import pytest
from serve.scripted import DONE, MS, REPORT, TIMEOUT_S, ScriptedSession, answer, served
from test_async_client import tell_watchers, unwatched

from edge.errors import CapacityError
from edge.session.notes import Noted
from edge.session.turn import Freshness
from edge.types import Sound


@pytest.fixture
def session():
    return ScriptedSession(answer("red", reasoning="Hm"))


@pytest.fixture
def path(tmp_path, session):
    with served(tmp_path / "edge.sock", session):
        yield tmp_path / "edge.sock"


def started(path, *words):
    command = [sys.executable, "-m", "edge.cli", *map(str, words), "--socket", str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def edge(path, *words):
    process = started(path, *words)
    said, error = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, said, error


DEAF = "edge: microphone mast gives nothing now: the answer has nothing of it\n"
"""What an answer by `DONE` lacks."""


@pytest.mark.parametrize(
    ("fresh", "told"),
    [
        ([], "edge: there is no camera: the answer stands on nothing seen\n"),
        ([("front", "video", 100 * MS, False)], ""),
        ([("front", "video", 100 * MS, False), ("mast", "audio", None, False)], ""),
        (
            [("front", "video", 12_400 * MS, True), ("arm", "video", None, True)],
            "edge: camera front gives nothing now: the answer has nothing younger than 12 s of it\n"
            "edge: camera arm gives nothing now: the answer has nothing of it\n",
        ),
    ],
)
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_person_hears_what_the_robot_does_not_perceive(path, session, fresh, told, form):
    timeline = replace(DONE.timeline, freshness=tuple(Freshness(*one) for one in fresh))
    session._play = answer("red", done=replace(DONE, timeline=timeline))
    code, said, error = edge(path, "ask", "Which colour?", *form)
    assert (code, error) == (0, told)
    assert "red" in said
    assert edge(path, "ask", "Which colour?", "--recall", 30, 10)[2] == ""


def test_recall_asks_about_the_past(path, session):
    assert edge(path, "recall", 30, 10) == (0, "Hmred\n", "")
    assert edge(path, "recall", 30, "--max-tokens", 5)[0] == 0
    assert edge(path, "recall", 30, 2, "Who was it?")[0] == 0
    asked = [(q.messages[-1].content, q.recall_s) for q in session.questions]
    assert asked == [
        ("What happened?", (30, 10)),
        ("What happened?", (30, 0)),
        ("Who was it?", (30, 2)),
    ]
    code, _, error = edge(path, "recall", 10, 30)
    assert (code, "give the longer time ago first" in error) == (1, True)


def test_say_sends_a_recording(path, session, tmp_path):
    samples = (8000 * np.sin(np.arange(16_000) / 20)).astype(np.int16)
    with wave.open(str(tmp_path / "spoken.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    code, said, error = edge(path, "say", tmp_path / "spoken.wav", "--json")
    assert (code, error) == (0, DEAF)
    assert json.loads(said)["content"] == "red"
    assert json.loads(said)["edge"] == REPORT
    assert edge(path, "ask", "Which?", "--consistency")[0] == 0
    assert session.questions.pop().consistency
    assert edge(path, "say", tmp_path / "spoken.wav", "--text", "Answer the question.")[0] == 0
    first, second = (question.messages[-1] for question in session.questions)
    (sound,) = first.media
    assert isinstance(sound, Sound)
    assert len(np.frombuffer(sound.samples, np.float32)) == len(samples)
    assert (first.content, second.content) == ("", "Answer the question.")
    code, _, error = edge(path, "say", tmp_path / "none.wav")
    assert (code, error) == (74, f"edge: {tmp_path / 'none.wav'}: No such file or directory\n")


def test_watch_tells_and_ends_its_trigger(path, session):
    teller = threading.Thread(target=tell_watchers, args=(session,))
    teller.start()
    code, said, error = edge(path, "watch", "Is it?", "--cooldown", 0, "--once")
    teller.join(TIMEOUT_S)
    assert (code, error) == (0, "")
    assert said == "      9.0 s  began  0.75  camera\n"
    assert unwatched(session)


def test_watch_until_it_is_interrupted(path, session):
    process = started(path, "watch", "Is it?", "--json")
    tell_watchers(session)
    lines = [json.loads(process.stdout.readline()) for _ in range(2)]
    process.send_signal(signal.SIGINT)
    assert process.wait(TIMEOUT_S) == 130
    process.communicate()
    assert [line["began"] for line in lines] == [True, False]
    assert unwatched(session)


def test_events_are_lines_of_json(path, session):
    process = started(path, "events", "edge.noted")
    found, done = [], threading.Event()

    def read():
        found.append(json.loads(process.stdout.readline()))
        done.set()

    reader = threading.Thread(target=read)
    reader.start()
    while not done.wait(0.01):
        session.events.tell(Noted(1_000_000_000, "it rains", 3))
    process.kill()
    process.communicate()
    assert [(event["type"], event["text"]) for event in found] == [("edge.noted", "it rains")]


def test_a_refusal_is_one_line(tmp_path):
    full = ScriptedSession(answer("x"), refusal=CapacityError("question", "8 wait", "ask later"))
    with served(tmp_path / "edge.sock", full):
        assert edge(tmp_path / "edge.sock", "recall", 5) == (
            *(1, ""),
            "edge: question: 8 wait; ask later\n",
        )
    for words in (("watch", "x"), ("events",), ("recall", 5)):
        code, _, error = edge(tmp_path / "none.sock", *words)
        assert (code, "is not there; start `edge run`" in error) == (73, True)
