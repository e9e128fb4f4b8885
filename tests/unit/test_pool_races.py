"""The pool of threads under ThreadSanitizer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "kernels" / "cpu"
FLAGS = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]


def compiled(program: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    files = [SOURCES / "pool_test.cpp", SOURCES / "pool.cpp"]
    command = ["c++", *FLAGS, *flags, *files, "-o", program]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs c++: apt-get install g++")
def test_no_races(tmp_path: Path) -> None:
    program = tmp_path / "pool_test"
    if compiled(program, "-fsanitize=thread").returncode:
        plain = compiled(program)
        assert not plain.returncode, plain.stderr
        pytest.skip("needs ThreadSanitizer's library: apt-get install libtsan2")
    run = subprocess.run([program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr[-4000:]
