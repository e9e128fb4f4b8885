"""Play random worlds around a live session, each beside the reference that says what is due.

tests/session/worlds.py draws a world from a seed: cameras, microphones, clients, triggers, notes,
modes, reloads and faults, around the runtime's own loop on a virtual clock and an engine that has a
device's bounds. tests/session/reference_session.py says after every step of the loop what it must
have done. The last line is JSON; where the two differ, the seed and its world, made small, stand
before it, and the command ends with 1. To keep one, put it into test_worlds.py's EXAMPLES.

Usage:
    python scripts/random_worlds.py --worlds 10000 --seed 0
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "session"))

from worlds import cut, fails, play, random_world

SHARE = 25
"""Worlds that a process plays at a time."""


def play_some(seeds: Sequence[int]) -> tuple[Counter[str], list[tuple[int, str]], float]:
    """What happened, which seeds differ and how, and the processor time that it took, s."""
    began_s, count, differ = time.process_time(), Counter[str](), list[tuple[int, str]]()
    for seed in seeds:
        try:
            count += play(random_world(seed))
        except Exception as error:  # noqa: BLE001 - of one world; the others are played, too
            differ.append((seed, f"{type(error).__name__}: {error}"))
    return count, differ, time.process_time() - began_s


def begin() -> None:
    """A process of its own core: the kernels' threads would wait for one another."""
    logging.disable()
    gc.freeze()  # what was imported is looked through at each full collection otherwise
    own = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {own[os.getpid() % len(own)]})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    seeds = range(arguments.seed, arguments.seed + arguments.worlds)
    shares = [seeds[at : at + SHARE] for at in range(0, len(seeds), SHARE)]
    count, differ, busy_s, began_s = Counter[str](), list[tuple[int, str]](), 0.0, time.monotonic()
    with ProcessPoolExecutor(arguments.processes, initializer=begin) as processes:
        for found in tqdm(processes.map(play_some, shares), total=len(shares), disable=None):
            count += found[0]
            differ += found[1]
            busy_s += found[2]
    for seed, how in differ:
        print(f"seed {seed}: {how}")
    if differ:
        logging.disable()
        print(f"seed {differ[0][0]}, made small: {cut(random_world(differ[0][0]), fails)}")
    whole = {
        "worlds": arguments.worlds,
        "seed": arguments.seed,
        "differ": [seed for seed, _ in differ],
        "seconds": round(time.monotonic() - began_s, 1),
        "worlds_per_core_second": round(arguments.worlds / busy_s, 1),
        **dict(sorted(count.items())),
    }
    print(json.dumps(whole))
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
