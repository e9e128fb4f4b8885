"""Damaged media files end in pictures and sound or in one clear error (`make fuzz-media`)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from fuzz_media import MOVING, PICTURES, Worker, fuzz


def test_a_sample(tmp_path: Path) -> None:
    report = fuzz(60, 7, tmp_path)
    assert report["failures"] == []
    assert report["n_kinds"] == len(PICTURES) + len(MOVING)
    assert report["n_decoded"] + report["n_refused"] == 60
    assert min(report["n_decoded"], report["n_refused"]) > 10
    assert report["n_with_damage_counted"] > 3


def dies(_: Path) -> dict[str, object]:
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}


def hangs(_: Path) -> dict[str, object]:
    while True:
        time.sleep(1)


def is_unclear(_: Path) -> dict[str, object]:
    raise ZeroDivisionError("0/0")


def is_large(_: Path) -> dict[str, object]:
    return {"end": "decoded", "taken": len(bytearray(b"x") * (9 << 27))}


@pytest.mark.parametrize(
    ("use", "end"),
    [(dies, "died"), (hangs, "hung"), (is_unclear, "unclear"), (is_large, "large")],
)
def test_what_a_decoder_may_not_do_is_found(use: object, end: str, tmp_path: Path) -> None:
    worker = Worker(use, max_s=3 if end == "hung" else 60)
    assert worker.open(tmp_path)["end"] == end
    assert worker.open(tmp_path)["end"] == end  # by another process
    worker.close()
