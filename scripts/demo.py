"""Watch a recorded session and answer five questions about it, four typed and one spoken.

Builds the bundle of the small trained checkpoint, starts `edge run` on a recording in place of
camera and microphone, asks over the socket while it plays, and prints what was answered beside
what is true, and when each stage happened.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edge.client import Client  # noqa: E402
from edge.errors import SocketError  # noqa: E402

CHECKPOINT = ROOT / "tests" / "assets" / "tiny_omni"
SESSION = ROOT / "tests" / "assets" / "session"
"""session.mp4 and session.json: when to ask what, and the truth (record_session.py)."""
N_RIGHT = 4
"""The demo fails below this many right answers."""
START_TIMEOUT_S = 60
SETTINGS = """
[perception]
listen = "utterances"

[context]
max_tokens = 320
keep_tokens = 200

[answer]
max_tokens = 24
"""
"""The small model has learned from a few seconds of context: keep that much."""


def command(*words: object) -> list[str]:
    """A command of this project, by this Python."""
    module = {"edge": "edge.cli", "build-engine": "build_engine.cli"}[str(words[0])]
    return [sys.executable, "-m", module, *(str(word) for word in words[1:])]


def wait_until_ready(service: subprocess.Popen[str], client: Client) -> None:
    """Return when the service answers, or end the demo with what it said."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while service.poll() is None and time.monotonic() < deadline:
        try:
            if client.health()["ready"]:
                return
        except SocketError:
            time.sleep(0.05)
    service.kill()
    sys.exit(f"demo: the service did not start:\n{service.communicate()[1]}")


def ask(socket: Path, question: str) -> dict[str, Any]:
    """`edge ask`, as a person would."""
    words = command("edge", "ask", question, "--socket", socket, "--json")
    answer: dict[str, Any] = json.loads(subprocess.check_output(words, text=True))
    return answer


def print_timeline(segments: list[dict[str, Any]], answers: list[dict[str, Any]]) -> None:
    """One line an event, in the order of time."""
    lines = [(segment["captured_s"], segment_line(segment)) for segment in segments]
    lines += [(answer["asked_s"], answer_line(answer)) for answer in answers]
    print("\n  time s   event (stages in ms)")
    for at_s, text in sorted(lines):
        print(f"{at_s:8.3f}   {text}")


def segment_line(s: dict[str, Any]) -> str:
    """When a segment passed each stage, counted from the stage before."""
    return (
        f"{s['modality']} captured, {s['n_tokens']} tokens: taken +{s['late_ms']:.1f}, "
        f"features +{s['features_ms']:.1f}, encoded +{s['encode_ms']:.1f}, "
        f"prefilled +{s['prefill_ms']:.1f}"
    )


def answer_line(answer: dict[str, Any]) -> str:
    """When an answer passed each stage, counted from the question."""
    t = answer["edge"]
    return (
        f"asked {answer['question']!r} on {t['n_context_tokens']} tokens of live context, "
        f"{t['newest_capture_age_ms']:.0f} ms old: prefilled {t['prefilled_ms']:.1f}, "
        f"first token {t['first_token_ms']:.1f}, "
        f"{answer['usage']['completion_tokens']} tokens {t['finished_ms']:.1f}"
    )


def print_answers(answers: list[dict[str, Any]]) -> int:
    """What was asked, answered and true; returns how many are right."""
    n_right = 0
    print(f"\n{'asked':34} {'answered':12} {'true':12}")
    for answer in answers:
        asked = f"(aloud) {answer['aloud']}?" if answer["aloud"] else answer["question"]
        right = answer["content"] == answer["truth"]
        n_right += right
        mark = "" if right else "   wrong"
        print(f"{asked:34} {answer['content']:12} {answer['truth']:12}{mark}")
    print(f"{n_right} of {len(answers)} right")
    return n_right


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="edge-demo-") as name:
        folder = Path(name)
        bundle, socket, settings = folder / "bundle", folder / "edge.sock", folder / "edge.toml"
        settings.write_text(SETTINGS)
        subprocess.check_call(
            command("build-engine", "bundle", CHECKPOINT, bundle, "--target", "cpu")
        )
        film = SESSION / "session.mp4"
        print(f"watching {film.name} at its own pace, 2 frames a second, speech as utterances")
        service = subprocess.Popen(
            command(
                *("edge", "run", bundle, "--video", film, "--socket", socket),
                *("--config", settings, "--quiet"),
            ),
            stderr=subprocess.PIPE,
            text=True,
        )
        client = Client(socket)
        wait_until_ready(service, client)
        answers = []
        for query in json.loads((SESSION / "session.json").read_text()):
            time.sleep(max(0.0, query["at_s"] - client.health()["uptime_s"]))
            asked_s = client.health()["uptime_s"]
            answers.append({**query, "asked_s": asked_s, **ask(socket, query["question"])})
        health = client.health()
        service.send_signal(signal.SIGTERM)
        _, errors = service.communicate(timeout=30)
        print_timeline(health["recent"], answers)
        print(f"\ncounters: {health['counters']}")
        if service.returncode != 0 or errors:
            sys.exit(f"demo: the service ended with {service.returncode}:\n{errors}")
        if print_answers(answers) < N_RIGHT:
            sys.exit(f"demo: fewer than {N_RIGHT} answers are right")
        print("stopped cleanly")


if __name__ == "__main__":
    main()
