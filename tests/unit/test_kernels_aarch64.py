"""The inner loops on NEON: cross-compiled, and run under an emulator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "kernels" / "cpu"
FLAGS = ["-std=c++17", "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"


def test_self_test_on_neon(tmp_path: Path) -> None:
    for program in (COMPILER, EMULATOR):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: apt-get install g++-aarch64-linux-gnu qemu-user-static")
    names = ("kernels_*.cpp", "kernel_table.cpp", "self_test.cpp")
    files = [path for name in names for path in SOURCES.glob(name)]
    program = tmp_path / "self_test"
    subprocess.run([COMPILER, *FLAGS, "-ffp-contract=off", *files, "-o", program], check=True)
    run = subprocess.run([EMULATOR, program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    assert "neon: checked" in run.stdout
