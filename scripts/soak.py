"""Let a service perceive a recording again and again, ask it now and then, and watch its memory.

Prints the slope of the resident memory after the first two minutes, what was perceived, dropped and
answered, and the share of a core that the process took. Ends with 1 if memory grows by more than
1 MB a minute, or if anything was dropped or failed.

Usage:
    python scripts/soak.py BUNDLE FILM              # ten minutes
    python scripts/soak.py BUNDLE FILM --minutes 60 --picture soak.svg
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from build_engine.chart import curves
from edge.client import Client
from edge.errors import EdgeError

SAMPLE_EVERY_S, ASK_EVERY_S, WARM_UP_S = 2.0, 20.0, 120.0
MAX_SLOPE_MB_MIN = 1.0
QUESTION = "What do you see?"


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_s(pid: int) -> float:
    """Processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def soak(arguments: argparse.Namespace) -> tuple[dict[str, Any], list[tuple[float, float]]]:
    """Run the service and watch it."""
    with tempfile.TemporaryDirectory(prefix="edge-soak-") as folder:
        socket = Path(folder) / "edge.sock"
        command = [sys.executable, "-m", "edge.cli", "run", str(arguments.bundle), "--repeat"]
        command += ["--video", str(arguments.film), "--socket", str(socket), "--quiet"]
        service = subprocess.Popen(command)
        client = Client(socket)
        while not _is_ready(client):
            if service.poll() is not None:
                sys.exit(f"soak: the service ended with {service.returncode}")
            time.sleep(0.2)
        began, began_cpu_s, asked_s = time.monotonic(), cpu_s(service.pid), 0.0
        samples: list[tuple[float, float]] = []
        n_asked = 0
        with tqdm(total=60 * arguments.minutes, unit="s", disable=None) as bar:
            while (since_s := time.monotonic() - began) < 60 * arguments.minutes:
                samples.append((since_s, resident_mb(service.pid)))
                if since_s - asked_s >= ASK_EVERY_S:
                    asked_s = since_s
                    list(client.ask(QUESTION, max_tokens=16))
                    n_asked += 1
                bar.update(since_s - bar.n)
                time.sleep(SAMPLE_EVERY_S)
        spent_s = cpu_s(service.pid) - began_cpu_s
        counters = client.health()["counters"]
        service.send_signal(signal.SIGTERM)
        code = service.wait(timeout=30)
    later = np.array([sample for sample in samples if sample[0] >= WARM_UP_S] or samples)
    slope = float(np.polyfit(later[:, 0] / 60, later[:, 1], 1)[0])
    report = {
        "minutes": arguments.minutes,
        "slope_mb_min": round(slope, 3),
        "resident_mb": {
            "after_warm_up": round(later[0, 1], 1),
            "at_the_end": round(later[-1, 1], 1),
        },
        "cores": round(spent_s / (60 * arguments.minutes), 3),
        "asked": n_asked,
        "exit_code": code,
        "counters": counters,
    }
    return report, samples


def _is_ready(client: Client) -> bool:
    try:
        return bool(client.health()["ready"])
    except EdgeError:
        return False


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("film", type=Path, help="a recording, with or without sound")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--picture", type=Path, help="write the memory over time as an SVG")
    arguments = parser.parse_args()
    report, samples = soak(arguments)
    if arguments.picture:
        arguments.picture.write_text(curves("resident memory, MB", {"service": samples}))
    print(json.dumps(report))
    counters = report["counters"]
    lost = sum(n for name, n in counters.items() if name.endswith(("dropped", "failed", "refused")))
    return int(report["slope_mb_min"] > MAX_SLOPE_MB_MIN or lost > 0 or report["exit_code"] != 0)


if __name__ == "__main__":
    sys.exit(main())
