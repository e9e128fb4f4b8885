"""docs/robot.md: every example runs as it stands, against the real service on the small model."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from needed import must_be
from serve.scripted import TIMEOUT_S
from serve.test_end_to_end import Service

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs/robot.md"
EXAMPLES = dict(re.findall(r"<!-- run: (\S+) -->\n```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL))
SOCKET, ADDRESS, PORT = "/run/edge/edge.sock", "127.0.0.1:8321", "8321"


@pytest.fixture
def service(bundle, tmp_path):
    """A running service; its socket and the address of its TCP listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    path, settings = tmp_path / "edge.sock", tmp_path / "edge.toml"
    settings.write_text(f'[socket]\ntcp = "{address}"\n[answer]\nmax_tokens = 40\n')
    running = Service(bundle("base"), "--socket", path, "--config", settings)
    try:
        running.wait_for("event=ready")
        yield path, address
    finally:
        running.stop()


def run(service, name: str, command: list[str], tmp_path: Path, **environment: str) -> str:
    """The output of an example; its file's name stands behind `command`."""
    path, address = service
    file = tmp_path / {"c++": "example.cpp", "node": "example.js", "openai-js": "sdk.js"}.get(
        name, "example"
    )
    file.write_text(
        EXAMPLES[name]
        .replace(SOCKET, str(path))
        .replace(ADDRESS, address)
        .replace(PORT, address[10:])
    )
    ended = subprocess.run(
        [*command, str(file)],
        capture_output=True,
        text=True,
        timeout=3 * TIMEOUT_S,
        check=False,
        env={**os.environ, **environment},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def needs(program: str) -> str:
    """Where a program is."""
    found = shutil.which(program)
    must_be(found is not None, f"{program} is not installed")
    return str(found)


def test_curl(service, tmp_path):
    lines = run(service, "sh", ["sh"], tmp_path).splitlines()
    assert lines[-2] == "data: [DONE]"


def test_python(service, tmp_path):
    lines = run(service, "python", [sys.executable, "-W", "error"], tmp_path).splitlines()
    assert re.fullmatch(r'\{"colour":"(red|green|blue|none)"\}', lines[0])
    assert lines[-1].endswith(("(completed)", "(incomplete)"))


def test_javascript(service, tmp_path):
    assert run(service, "node", [needs("node")], tmp_path).strip()


def test_openais_javascript_sdk(service, tmp_path):
    modules = Path(os.environ.get("EDGE_NODE_MODULES", ROOT / ".venv/js/node_modules"))
    if not (modules / "openai").is_dir():  # of a registry that not every machine reaches
        pytest.skip("needs OpenAI's JavaScript SDK: make test installs it")
    output = run(service, "openai-js", [needs("node")], tmp_path, NODE_PATH=str(modules))
    assert output.strip().endswith(("(completed)", "(incomplete)"))


def test_cpp(service, tmp_path):
    program = tmp_path / "example.bin"
    run(service, "c++", [needs("g++"), "-Wall", "-Werror", "-o", str(program)], tmp_path)
    ended = subprocess.run([program], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert ended.stdout.startswith("HTTP/1.0 200")
    assert '"content":' in ended.stdout


def test_every_example_of_the_page_is_run():
    assert set(EXAMPLES) == {"sh", "python", "node", "openai-js", "c++"}
    assert PAGE.read_text().count("```") == 2 * len(EXAMPLES)
