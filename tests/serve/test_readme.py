"""README's "By hand" and its Python: every line works as it is typed, in this order."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from needed import must_be
from serve.scripted import TIMEOUT_S

from edge import demo

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "README.md").read_text()
LINES = re.sub(r"\\\n *", "", re.findall(r"## By hand.*?```\n(.*?)```", PAGE, re.DOTALL)[0])
ACTIVATE, *COMMANDS = LINES.splitlines()
COLORS = ("red\n", "green\n", "blue\n")
(PYTHON,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A checkout in which `make demo` was called."""
    must_be((Path(sys.prefix) / "bin/activate").exists(), "needs a virtual environment: make test")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for name in ("tests", "locks"):
        (tmp_path / name).symlink_to(ROOT / name)
    assets = ROOT / "tests" / "assets"
    demo.prepare(demo.Files(assets / "tiny_omni", assets / "session", tmp_path / "build" / "demo"))
    return tmp_path


class Shell:
    """A line in a shell of its own; its output is read line by line."""

    def __init__(self, line: str, folder: Path) -> None:
        self.process = subprocess.Popen(
            ["bash", "-c", f"set -e; {ACTIVATE}; exec {line}"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PIP_NO_INDEX": "1"},  # the tests' environment has it all
        )
        self.said: list[str] = []

    def wait_for(self, text: str, count: int = 1) -> None:
        """Read until `count` lines hold `text`."""
        assert self.process.stdout is not None
        while sum(text in line for line in self.said) < count:
            self.said.append(self.process.stdout.readline())
            assert self.said[-1], f"ended before {text!r}: {self.said}"

    def end(self, by: signal.Signals | None = None) -> tuple[int, str]:
        """Wait for its end, after Ctrl-C if so said: exit code and all that it said."""
        if by:
            self.process.send_signal(by)
        rest, _ = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, "".join(self.said) + rest


@pytest.fixture
def typed(folder) -> Iterator[list[Shell]]:
    """The shells in which lines are still at work; ended with the test."""
    shells: list[Shell] = []
    yield shells
    for shell in shells:
        if shell.process.poll() is None:
            shell.process.kill()
        shell.process.communicate()


def test_every_line_works_as_typed_in_this_order(folder, typed):
    """What goes on is left to until it has told something, then ended as with Ctrl-C."""
    said: dict[str, str] = {}
    for line in COMMANDS:
        if line.startswith("edge run"):
            while typed:
                assert typed.pop().end(signal.SIGINT)[0] == 0
            typed.append(Shell(line, folder))
            typed[-1].wait_for("event=ready")
            # Of a live one is asked what was there 3 seconds ago.
            typed[-1].wait_for("segment=video", 1 if "--record" in line else 5)
            continue
        if line.startswith("edge replay"):
            assert typed.pop().end(signal.SIGINT)[0] == 0
        if line.startswith("edge top"):
            line = line.replace("edge top", "edge top --once")
        shell = Shell(line, folder)
        typed.append(shell)
        if line.startswith(("edge watch", "edge events")):
            shell.wait_for("began" if "watch" in line else "edge.perceived")
            code = 0 if shell.end(signal.SIGINT)[0] == 130 else 1
        else:
            code, said[line] = shell.end()
        typed.remove(shell)
        assert code == 0, (line, shell.said, said.get(line))
    assert any("square" in text for line, text in said.items() if "What do you see" in line)
    assert any(text in ("two\n", "three\n") for line, text in said.items() if "How many" in line)
    assert any(text in COLORS for line, text in said.items() if "edge say" in line)
    assert any("all as recorded" in text for line, text in said.items() if "edge replay" in line)


def test_the_python_works(folder, typed):
    run = next(line for line in COMMANDS if line.startswith("edge run"))
    run = run.replace("build/bundle", "build/demo/bundle")
    typed.append(Shell(run, folder))
    typed[-1].wait_for("segment=video")
    code = PYTHON + "print(answer.choices[0].message.content)\nclient.close()\n"
    (folder / "typed.py").write_text(code)
    typed.append(Shell("python -W error typed.py", folder))
    code, said = typed[-1].end()
    assert code == 0, said
    assert "circle" in said
