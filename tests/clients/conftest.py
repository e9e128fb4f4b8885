"""Stock clients, unmodified, against a running service: `make test-clients`.

They have an environment of their own (locks/clients.txt), so nothing here imports the project: the
service is a process, `$EDGE_PYTHON -m edge.cli run`, on the small model's bundle.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
EDGE_PYTHON = os.environ.get("EDGE_PYTHON", str(ROOT / ".venv/bin/python"))
NODE_MODULES = Path(os.environ.get("EDGE_CLIENTS_JS", ROOT / ".venv/clients_js")) / "node_modules"
SETTINGS = """\
[socket]
tcp = "127.0.0.1:{port}"

[answer]
max_tokens = 64
"""
NOWHERE = "http://127.0.0.1:9"
"""What a client wants of another machine goes there: nobody listens."""


@dataclass(frozen=True)
class Service:
    """Where it listens, as clients are told."""

    port: int
    path: Path
    """Of its Unix socket."""

    @property
    def url(self) -> str:
        """What clients call the base URL."""
        return f"http://127.0.0.1:{self.port}/v1"


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that watches the demo's film, again and again."""
    folder = tmp_path_factory.mktemp("service")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "edge.toml").write_text(SETTINGS.format(port=port))
    bundle, path = folder / "bundle", folder / "edge.sock"
    build = ["-m", "build_engine.cli", "bundle", "tests/assets/tiny_omni", bundle]
    subprocess.run([EDGE_PYTHON, *build, "--target", "cpu"], cwd=ROOT, check=True)
    film = ["--video", "tests/assets/session/session.mp4", "--repeat"]
    words = ["run", bundle, "--config", folder / "edge.toml", "--socket", path, *film]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [EDGE_PYTHON, "-m", "edge.cli", *map(str, words)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        for line in process.stderr:
            log.write(line)
            if "event=ready" in line:
                break
        else:
            pytest.fail(f"the service did not start: {(folder / 'log').read_text()}")
        yield Service(port, path)
        process.terminate()
        assert process.wait(30) == 0


@pytest.fixture(scope="session")
def model() -> str:
    """What the service calls its model."""
    return "tiny_omni"


@pytest.fixture(autouse=True)
def nothing_leaves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, service: Service) -> None:
    """Clients are configured as their documentation says, by the environment."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, NOWHERE)
        monkeypatch.setenv(name.lower(), NOWHERE)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setenv("OPENAI_BASE_URL", service.url)
    monkeypatch.setenv("OPENAI_API_BASE", service.url)  # what litellm reads
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))


def run_script(name: str, *words: str) -> str:
    """What a program of js/ prints, beside the modules that it imports."""
    if shutil.which("node") is None or not NODE_MODULES.is_dir():
        why = "needs Node and npm: install nodejs and npm, and `make test-clients` again"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    program = NODE_MODULES.parent / name
    program.write_bytes((ROOT / "tests/clients/js" / name).read_bytes())
    done = subprocess.run(
        ["node", program, *words], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout
