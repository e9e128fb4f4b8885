"""`edge demo`: watch a recorded session and answer five questions about it, one of them spoken.

A bundle is made of the small trained checkpoint and kept, `edge run` plays the recording in place
of camera and microphone, and the questions are asked over its socket while it plays.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import edge
from edge import advice
from edge.child import BUILD_ENGINE, EDGE, python
from edge.client import Client
from edge.errors import ConfigurationError, EngineError, SocketError

PACKAGE = Path(__file__).resolve().parent
IN_WHEEL, IN_CHECKOUT = PACKAGE / "demo_files", PACKAGE.parent / "tests" / "assets"
"""Where tiny_omni, the checkpoint, and session, the recording, lie."""
N_RIGHT = 4
"""The demo fails below this many right answers."""
START_TIMEOUT_S = 60
SETTINGS = """\
# The small model has learned from a few seconds of context: keep that much.
[perception]
listen = "utterances"

[context]
max_tokens = 320
keep_tokens = 200

[answer]
max_tokens = 24
"""


@dataclass(frozen=True, slots=True)
class Files:
    """What the demo reads, and what it keeps for whoever goes on."""

    checkpoint: Path
    session: Path
    """session.mp4 and session.json: when to ask what, and the truth."""
    kept: Path

    @property
    def film(self) -> Path:
        """What is watched."""
        return self.session / "session.mp4"

    @property
    def bundle(self) -> Path:
        """What the checkpoint becomes."""
        return self.kept / "bundle"

    @property
    def settings(self) -> Path:
        """Of the service."""
        return self.kept / "edge.toml"


def files() -> Files:
    """In a checkout its own, and build/demo; else what the package brings, and the user's cache."""
    if IN_WHEEL.is_dir():
        given, cache = IN_WHEEL, os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        kept = Path(cache) / "edge-demo"
    else:
        given, kept = IN_CHECKOUT, PACKAGE.parent / "build" / "demo"
    return Files(given / "tiny_omni", given / "session", kept)


def run() -> None:
    """Build what is missing, watch, ask, show, and say what to type next.

    Raises:
        EdgeError: it cannot be built or started, or fewer than `N_RIGHT` answers are right.
    """
    used = files()
    prepare(used)
    answers = watch(used)
    if print_answers(answers) < N_RIGHT:
        raise EngineError(
            "edge demo",
            f"fewer than {N_RIGHT} answers are right",
            f"run `build-engine verify {used.bundle}`",
        )
    print_next(used)


def prepare(used: Files) -> None:
    """Make the bundle, if there is none or what it was made of is newer."""
    used.kept.mkdir(parents=True, exist_ok=True)
    used.settings.write_text(SETTINGS)
    if not is_stale(used.bundle, [used.checkpoint, PACKAGE, PACKAGE.parent / "build_engine"]):
        print(f"the small model's bundle is there: {_short(used.bundle)}")
        return
    if not (find_spec("onnx") and find_spec("tqdm") and find_spec("numpy")):
        raise ConfigurationError(
            "edge demo", "builds a bundle, and misses packages", advice.install("build")
        )
    print("building the small model's bundle", flush=True)
    shutil.rmtree(used.bundle, ignore_errors=True)
    words = ("bundle", used.checkpoint, used.bundle, "--target", "cpu")
    built = subprocess.run(python(BUILD_ENGINE, *words), check=False)
    if built.returncode:
        raise EngineError("edge demo", "could not build its bundle", "see above")


def is_stale(bundle: Path, made_of: list[Path]) -> bool:
    """Whether a bundle is missing, of another version, or older than a file in `made_of`."""
    manifest = bundle / "manifest.json"
    if not manifest.exists():
        return True
    files = (path for folder in made_of for path in folder.rglob("*") if path.suffix != ".pyc")
    newest_s = max(path.stat().st_mtime for path in files if path.is_file())
    version = json.loads(manifest.read_text()).get("builder_version")
    return bool(version != edge.__version__ or manifest.stat().st_mtime < newest_s)


def watch(used: Files) -> list[dict[str, Any]]:
    """Play the recording to a service and ask; what was answered, beside the truth."""
    queries = json.loads((used.session / "session.json").read_text())
    with tempfile.TemporaryDirectory(prefix="edge-demo-") as folder:  # a socket's path is short
        socket = Path(folder) / "edge.sock"
        words = (used.bundle, "--video", used.film, "--config", used.settings, "--quiet")
        service = subprocess.Popen(
            python(EDGE, "run", *words, "--socket", socket), stderr=subprocess.PIPE, text=True
        )
        try:
            client = Client(socket)
            _wait_until_ready(service, client)
            print(
                f"watching {_short(used.film)} at its own pace, 2 frames a second, speech as "
                f"utterances; asking {len(queries)} questions meanwhile",
                flush=True,
            )
            answers = []
            for query in queries:
                time.sleep(max(0.0, query["at_s"] - client.health()["uptime_s"]))
                asked_s = client.health()["uptime_s"]
                answers.append({**query, "asked_s": asked_s, **_ask(socket, query["question"])})
            health = client.health()
            service.send_signal(signal.SIGTERM)
            _, errors = service.communicate(timeout=30)
        finally:
            service.kill()
    _print_timeline(health["recent"], answers)
    print(f"\ncounters: {health['counters']}")
    if service.returncode != 0 or errors:
        problem = f"ended with {service.returncode}: {errors.strip()}"
        raise EngineError("the demo's service", problem, "run `edge doctor`")
    return answers


def _wait_until_ready(service: subprocess.Popen[str], client: Client) -> None:
    """Return when the service answers, or raise what it said."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while service.poll() is None and time.monotonic() < deadline:
        try:
            if client.health()["ready"]:
                return
        except SocketError:
            time.sleep(0.05)
    service.kill()
    problem = f"did not start: {service.communicate()[1].strip()}"
    raise EngineError("the demo's service", problem, "run `edge doctor`")


def _ask(socket: Path, question: str) -> dict[str, Any]:
    """`edge ask`, as a person would."""
    words = python(EDGE, "ask", question, "--socket", socket, "--json")
    asked = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if asked.returncode:
        raise EngineError("edge demo", f"got no answer to {question!r}", "see above")
    answer: dict[str, Any] = json.loads(asked.stdout)
    return answer


def _print_timeline(segments: list[dict[str, Any]], answers: list[dict[str, Any]]) -> None:
    """One line an event, in the order of time."""
    lines = [(segment["captured_s"], _segment_line(segment)) for segment in segments]
    lines += [(answer["asked_s"], _answer_line(answer)) for answer in answers]
    print("\n  time s   event (stages in ms)")
    for at_s, text in sorted(lines):
        print(f"{at_s:8.3f}   {text}")


def _segment_line(s: dict[str, Any]) -> str:
    """When a segment passed each stage, counted from the stage before."""
    return (
        f"{s['modality']} captured, {s['n_tokens']} tokens: taken +{s['late_ms']:.1f}, "
        f"features +{s['features_ms']:.1f}, encoded +{s['encode_ms']:.1f}, "
        f"prefilled +{s['prefill_ms']:.1f}"
    )


def _answer_line(answer: dict[str, Any]) -> str:
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


def print_next(used: Files) -> None:
    """Commands that work where the demo was called, as it was called."""
    called = _called()
    bundle, settings, film = (_short(p) for p in (used.bundle, used.settings, used.film))
    print(f"""
To go on, keep it running; the film is played again and again:
  {called} run {bundle} --config {settings} --video {film} --repeat --socket ./edge.sock
and in another shell:
  {called} ask "How many shapes are there?" --socket ./edge.sock
  {called} watch "Is there a triangle?" --socket ./edge.sock
  {called} --help""")


def _called() -> str:
    """What to write for `edge` here."""
    called = Path(sys.argv[0])
    if called.name != "edge":
        return f"{_short(Path(sys.executable))} -m edge.cli"
    found = shutil.which("edge")
    return "edge" if found and Path(found).samefile(called) else _short(called)


def _short(path: Path) -> str:
    """For a shell: from the working folder, if it lies there."""
    absolute = Path(os.path.abspath(path))
    if absolute.is_relative_to(Path.cwd()):
        inside = str(absolute.relative_to(Path.cwd()))
        return shlex.quote(inside if "/" in inside else f"./{inside}")
    return shlex.quote(str(absolute))
