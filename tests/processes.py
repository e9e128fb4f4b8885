"""Processes below another."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def descendants(process: int) -> list[int]:
    """All processes below one, each before those below it."""
    found: list[int] = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            if parent == process:
                found += [int(name), *descendants(int(name))]
    return found
