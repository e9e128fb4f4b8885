"""`edge` with an engine that hangs as soon as a file exists, or, with a number of seconds in it,
is so slow: wedged_edge.py FILE WORDS..."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from edge.cli import main
from edge.engines.cpu import CpuEngine

file = Path(sys.argv[1])
prefill = CpuEngine.prefill


def wedged(engine: CpuEngine, *arguments: Any) -> Any:
    if file.exists() and (seconds := file.read_text()):
        time.sleep(float(seconds))
    elif file.exists():
        file.unlink()  # the next start is healthy
        threading.Event().wait()
    return prefill(engine, *arguments)


CpuEngine.prefill = wedged
sys.exit(main(sys.argv[2:]))
