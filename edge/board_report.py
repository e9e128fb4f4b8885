"""`edge doctor --board-report`: all that a board can show in ten minutes, in one file.

Each step is a command of its own in a process of its own, for at most so long; whatever becomes of
it, the next one has its turn. The file names no person, machine or folder.
"""

# ruff: noqa: T201

from __future__ import annotations

import contextlib
import getpass
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import edge
from edge import demo
from edge.child import BUILD_ENGINE, EDGE, python

Verdict = Literal["ok", "failure", "timed out", "left out"]
TOTAL_S = 600.0
RECIPE, CONTEXT_TOKENS = "orin", 1024
"""Needs no samples, and its experts have kernels on every board."""
MAX_LINES = 200
"""Of what a step prints: the first and the last of them."""
_PART = "from edge.board_parts import main\nsys.exit(main(*sys.argv[1:]))"
_ARGUS = Path("/tmp/argus_socket")
_UNIT = Path("/usr/lib/systemd/system/edge.service")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is tried."""

    name: str
    right: str
    """What is seen where all is well."""
    command: list[str]
    timeout_s: float
    needs: tuple[str, ...] = ()
    """Steps that must have gone well."""
    missing: str = ""
    """What this machine lacks for it."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a step."""

    name: str
    right: str
    verdict: Verdict
    why: str
    """Where it was left out."""
    seconds: float
    exit_code: int | None
    output: list[str]


def run(file: Path, kernels: Path | None = None) -> None:
    """Do all of it, say how it goes, and write the file.

    Args:
        kernels: folder of `scripts/compile_gpu_kernels.py` for this board; None: they are compiled
            here, if Triton is installed.
    """
    used = demo.files()
    work = used.kept / "board"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    file.write_text("")  # else ten minutes would end with an error
    folders = {work: "WORK", used.checkpoint.parent: "GIVEN"}
    words = private_words(folders | ({kernels: "KERNELS"} if kernels else {}))
    results = []
    for result in carried_out(steps(used.checkpoint, work, kernels)):
        results.append(result)
        said = result.why or f"right: {result.right}"
        print(f"{result.verdict:9} {result.name:17} {result.seconds:6.1f} s  {said}", flush=True)
        if result.verdict in ("failure", "timed out"):
            print(*(f"{'':38}| {line}" for line in result.output[-3:]), sep="\n")
    report = {
        "omni_edge": edge.__version__,
        "python": platform.python_version(),
        "architecture": platform.machine(),
        "steps": [
            asdict(
                replace(
                    result,
                    why=without(words, result.why),
                    output=[without(words, line) for line in result.output],
                )
            )
            for result in results
        ],
    }
    file.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written: {file}, without names of people, machines or folders")


def steps(checkpoint: Path, work: Path, kernels: Path | None) -> list[Step]:
    """What is tried, in this order.

    Args:
        checkpoint: of the small trained model.
        work: folder for what is made; the bundle in it stays.
        kernels: as `run` takes it.
    """
    quantized, bundle = work / "quantized", work / "bundle"
    compiled = kernels or work / "kernels"
    no_triton = "" if find_spec("triton") else "Triton, or --kernels with the folder that it made"
    no_pyaudio = "" if find_spec("pyaudio") else "PyAudio: EXTRAS with microphone"
    build = ["compile", bundle, "--target", "this-gpu", "--context", CONTEXT_TOKENS]
    verified = "`ok` in every line, no `WRONG`"
    plans = "a line for decode, prefill, vision and audio"
    return [
        Step("board", "verdict `ok`, or what `remedy` says", python(EDGE, "doctor", "--json"), 60),
        Step(
            "quantize",
            "21 linears bf16, 48 linears w4a16",
            python(BUILD_ENGINE, "quantize", checkpoint, quantized, "--recipe", RECIPE),
            60,
        ),
        Step(
            "bundle",
            "a bundle of 18 MB, verified",
            python(BUILD_ENGINE, "bundle", quantized, bundle, "--target", "cpu"),
            60,
            ("quantize",),
        ),
        Step(
            "verify on the CPU",
            verified,
            python(BUILD_ENGINE, "verify", bundle, "--engine", "cpu"),
            60,
            ("bundle",),
        ),
        Step(
            "speed of the CPU",
            "tokens a second, and the memory's GB a second",
            python(EDGE, "bench", "decode", bundle),
            60,
            ("bundle",),
        ),
        Step("GPU", "its name, its sm, its memory, TensorRT 10.9 or later", _part("gpu"), 60),
        Step("compile", plans, python(BUILD_ENGINE, *build), 150, ("bundle", "GPU")),
        Step("verify", verified, python(BUILD_ENGINE, "verify", bundle), 60, ("compile",)),
        Step(
            "kernels",
            "registers of 14 kernels, spill_bytes=0",
            ["true"] if kernels else _part("kernels", compiled),
            120,
            ("GPU",),
            "" if kernels else no_triton,
        ),
        Step(
            "compile with them",
            plans,
            python(BUILD_ENGINE, *build, "--kernels", compiled),
            150,
            ("bundle", "kernels"),
        ),
        Step(
            "verify with them",
            verified,
            python(BUILD_ENGINE, "verify", bundle),
            60,
            ("compile with them",),
        ),
        Step(
            "try",
            "self-check `ok`",
            python(EDGE, "doctor", bundle, "--try"),
            60,
            ("bundle",),
        ),
        Step("session", "4 or 5 of 5 answers right", _part("session", work), 90, ("bundle",)),
        Step("V4L2 cameras", "about 5 s of frames of each", _part("cameras"), 45),
        Step(
            "CSI camera",
            "about 150 frames of 1920x1080",
            _part("csi"),
            30,
            missing="" if _ARGUS.exists() else "a CSI camera and its daemon, nvargus-daemon",
        ),
        Step("microphones", "5 s of each", _part("microphones"), 45, missing=no_pyaudio),
        Step(
            "service",
            "ActiveState=active, NRestarts=0, ready: true",
            _part("service"),
            30,
            missing="" if _UNIT.exists() else f"sudo make install BUNDLE={bundle}",
        ),
    ]


def carried_out(steps: Iterable[Step], total_s: float = TOTAL_S) -> Iterator[Result]:
    """What becomes of each step, as it ends.

    Args:
        total_s: seconds after which no more begin, and those under way are ended.
    """
    deadline_s = time.monotonic() + total_s
    verdicts: dict[str, Verdict] = {}
    for step in steps:
        left_s = deadline_s - time.monotonic()
        lacking = [name for name in step.needs if verdicts[name] != "ok"]
        why = f"needs {step.missing or lacking[0]}" if step.missing or lacking else ""
        if not why and left_s <= 0:
            why = f"{total_s:.0f} s are over"
        result = _left_out(step, why) if why else _tried(step, min(step.timeout_s, left_s))
        verdicts[step.name] = result.verdict
        yield result


def private_words(folders: Mapping[Path, str]) -> dict[str, str]:
    """What no report may hold -> what stands for it, the longest first."""
    host = socket.gethostname()
    words = {str(folder.absolute()): name for folder, name in folders.items()}
    words |= {sys.prefix: "PYTHON", str(demo.PACKAGE.parent): "CODE", str(Path.cwd()): "HERE"}
    words |= {str(Path.home()): "~", getpass.getuser(): "USER", host.partition(".")[0]: "HOST"}
    words[host] = "HOST"
    words = {word: name for word, name in words.items() if word not in ("", "/", "root")}
    return dict(sorted(words.items(), key=lambda item: -len(item[0])))


def without(words: Mapping[str, str], text: str) -> str:
    """`text` with other words for some, and for whatever lies in somebody's home."""
    for word, name in words.items():
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", name, text)
    return re.sub(r"/(home|Users|media|run/user)/[^/\s'\":]+", r"/\1/USER", text)


def _part(name: str, *words: object) -> list[str]:
    return python(_PART, name, *words)


def _left_out(step: Step, why: str) -> Result:
    return Result(step.name, step.right, "left out", why, 0.0, None, [])


def _tried(step: Step, timeout_s: float) -> Result:
    """Run it; at the end of its time all that it has started ends, too."""
    began_s = time.monotonic()
    process = subprocess.Popen(
        step.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    verdict: Verdict
    try:
        output, _ = process.communicate(timeout=timeout_s)
        verdict = "ok" if process.returncode == 0 else "failure"
    except subprocess.TimeoutExpired:
        verdict = "timed out"
    finally:
        _end(process)
    if verdict == "timed out":
        output, _ = process.communicate()
    lines = output.splitlines()
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES // 2], "...", *lines[-MAX_LINES // 2 :]]
    seconds = round(time.monotonic() - began_s, 2)
    return Result(step.name, step.right, verdict, "", seconds, process.returncode, lines)


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):  # all of it has ended
        os.killpg(process.pid, signal.SIGKILL)
