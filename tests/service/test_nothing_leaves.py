"""The commands under strace: no socket of the internet, no file that nobody asked for."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from watched import TIMEOUT_S, Watched

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "tests" / "assets" / "tiny_omni"
FILM = ROOT / "tests" / "assets" / "session" / "session.mp4"
SOURCES = ("edge", "build_engine", "jetson", "kernels", "scripts", "tests")
QUIET = ("ORT_DISABLE_TELEMETRY", "CI")
"""Variables that would silence ONNX Runtime by themselves."""
N_SEGMENTS = 14
"""A second each: ONNX Runtime looks for its collector nine seconds after it was loaded."""


@pytest.fixture
def watched(tmp_path):
    """A watch that has seen a bundle being built."""
    made = Watched(tmp_path)
    made.build_engine("bundle", CHECKPOINT, "bundle", "--target", "cpu")
    yield made
    made.close()


def test_the_watch_sees_sockets_and_files(watched):
    assert watched.internet() == []
    assert watched.unasked() == []
    watched.run("-c", "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)")
    assert len(watched.internet()) == 1
    watched.run("-c", "import pathlib; pathlib.Path('~/.cache/id').expanduser().parent.mkdir()")
    watched.run("-c", "import pathlib; pathlib.Path('/proc/self/comm').write_text('x')")
    left, *calls = watched.unasked()
    assert left.endswith("home/.cache")
    assert sorted(call.split("(")[0] for call in calls) == ["mkdir", "openat"]


def test_building_and_judging_leave_nothing(watched):
    watched.build_engine("verify", "bundle")
    watched.build_engine("inspect", "bundle")
    watched.build_engine("quantize", CHECKPOINT, "quantized", "--recipe", "w4a16")
    watched.build_engine("evaluate", "bundle", "--against", "bundle", "--samples", FILM)
    assert watched.internet() == []
    assert watched.unasked() == []


def test_a_session_and_its_replay_leave_nothing(watched):
    there = ("--socket", "edge.sock")
    film = ("--video", FILM, "--repeat", "--record", "session.mcap")
    service = watched.serve("bundle", *film, *there, n_segments=N_SEGMENTS)
    assert watched.edge("ask", "What color is the square?", *there)
    assert "answers 1" in watched.edge("status", *there)
    watched.edge("mcp", *there)
    service.send_signal(signal.SIGTERM)
    _, log = service.communicate(timeout=TIMEOUT_S)
    assert service.returncode == 0, log
    assert "all as recorded" in watched.edge("replay", "bundle", "session.mcap")
    assert watched.internet() == []
    assert watched.unasked() == []


def test_looking_at_the_machine_leaves_nothing(watched):
    watched.edge("doctor", "bundle", "--try")
    watched.edge("bench", "load", "bundle", "--rounds", 1)
    watched.edge("bench", "features", "bundle", "--rounds", 1)
    assert watched.internet() == []
    assert watched.unasked() == []


def imported(source: Path) -> set[str]:
    """The modules that a file names in its imports."""
    nodes = list(ast.walk(ast.parse(source.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def test_one_module_imports_onnx_runtime():
    files = [path for folder in SOURCES for path in (ROOT / folder).rglob("*.py")]
    importers = [
        str(path.relative_to(ROOT))
        for path in files
        if any(name.split(".")[0] == "onnxruntime" for name in imported(path))
    ]
    assert importers == ["edge/engines/onnx_runtime.py"]


def test_telemetry_is_off_before_onnx_runtime_is_looked_for(tmp_path):
    """Whatever release is installed: the locked one has none to be seen."""
    (tmp_path / "onnxruntime.py").write_text(
        "import os\nprint(os.environ.get('ORT_DISABLE_TELEMETRY'))\nraise SystemExit"
    )
    environment = {key: value for key, value in os.environ.items() if key not in QUIET}
    for module in ("edge.engines.onnx_runtime", "edge.engines.encoders"):
        program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {module}"
        said = subprocess.check_output(
            [sys.executable, "-c", program], env=environment, cwd=ROOT, text=True
        )
        assert said == "1\n"
