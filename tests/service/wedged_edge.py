"""`edge` with an engine that hangs as soon as a file exists, or, with a number of seconds in it,
is so slow: wedged_edge.py FILE WORDS... With FILE.socket GET /readyz hangs, and all clients do."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from typing import Any

from edge.cli import main
from edge.engines.cpu import CpuEngine
from edge.serve import app

file = Path(sys.argv[1])
prefill, readiness = CpuEngine.prefill, app._Api.readiness


def wedged(engine: CpuEngine, *arguments: Any) -> Any:
    if file.exists() and (seconds := file.read_text()):
        time.sleep(float(seconds))
    elif file.exists():
        file.unlink()  # the next start is healthy
        threading.Event().wait()
    return prefill(engine, *arguments)


async def hanging(*arguments: Any) -> Any:
    if (socket_file := file.with_suffix(".socket")).exists():
        socket_file.unlink()
        threading.Event().wait()
    return await readiness(*arguments)


CpuEngine.prefill = wedged
app._Api.readiness = hanging
sys.exit(main(sys.argv[2:]))
