"""A child process that runs this Python with the packages that its parent runs on."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

_NOT_THE_WORKING_FOLDER = "import sys; sys.path[:] = filter(None, sys.path)\n"
"""Python puts the working folder first, as an empty path. In a checkout, or in a folder that
somebody else may write to, it would hide the installed packages. -P is Python 3.11's; -I would also
hide those of the user and of PYTHONPATH."""
EDGE = "from edge.cli import main\nsys.exit(main())"
BUILD_ENGINE = "from build_engine.cli import main\nsys.exit(main())"


def may_be_ended() -> None:
    """Be what the kernel ends first where memory is short: this process can be begun again."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def python(code: str, *arguments: object) -> list[str]:
    """The command that runs `code`, which has `sys` and finds `arguments` in `sys.argv[1:]`."""
    return [sys.executable, "-c", _NOT_THE_WORKING_FOLDER + code, *map(str, arguments)]
