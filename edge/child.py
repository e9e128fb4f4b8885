"""A child process that runs this Python with the packages that its parent runs on."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path

_NOT_THE_WORKING_FOLDER = "import sys; sys.path[:] = filter(None, sys.path)\n"
"""Python puts the working folder first, as an empty path. In a checkout, or in a folder that
somebody else may write to, it would hide the installed packages. -P is Python 3.11's; -I would also
hide those of the user and of PYTHONPATH."""
EDGE = "from edge.cli import main\nsys.exit(main())"
BUILD_ENGINE = "from build_engine.cli import main\nsys.exit(main())"
SHARE_OF_MEMORY = 0.25
"""That each kind of processes that follow or decode what clients send may take together."""
_ROOT = Path("/")


def places(n_bytes: int, least: int, most: int, root: Path = _ROOT) -> int:
    """How many processes of a kind may live at once, by the memory that is free now.

    Args:
        n_bytes: that one may take.
        least: that there are in any case.
        root: where /proc and /sys are.
    """
    said = re.search(r"^MemAvailable: +(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    free = [1024 * int(said[1])] if said else []
    own = re.search(r"^0::/(.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE)
    group = Path(own[1]) if own else Path()
    for folder in (group, *group.parents):  # a container's is its root
        limit = _text(root / "sys/fs/cgroup" / folder / "memory.max").strip()
        free += [int(limit)] if limit.isdecimal() else []
    return max(least, min(most, int(SHARE_OF_MEMORY * min(free, default=0) / n_bytes)))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def may_be_ended() -> None:
    """Be what the kernel ends first where memory is short: this process can be begun again."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def may_wait(n_steps: int = 10) -> int:
    """Let the service have the cores first; how nice this process was before."""
    return os.nice(n_steps) - n_steps


def waits_no_more(nice: int) -> None:
    """Be as nice as before, where the system lets a process be (systemd: `LimitNICE=0`)."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, nice)


def interpreter() -> str:
    """This Python."""
    return sys.executable


def python(code: str, *arguments: object) -> list[str]:
    """The command that runs `code`, which has `sys` and finds `arguments` in `sys.argv[1:]`."""
    return [interpreter(), "-c", _NOT_THE_WORKING_FOLDER + code, *map(str, arguments)]
