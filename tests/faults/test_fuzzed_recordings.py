"""Recordings that are changed in many ways: each replays, or ends in one clear error."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from edge.engines.bundle import Bundle
from edge.engines.choose import Choice, opened

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "scripts"))
import fuzz_recordings

pytest_plugins = ["media"]


def test_changed_recordings_end_in_no_traceback(bundle, tmp_path):
    path, draws, outcomes = tmp_path / "mutant.mcap", random.Random(7), set()
    found = Bundle(bundle("base"))
    with opened(found, Choice(unverified=True)) as engine:
        paths = fuzz_recordings.good(tmp_path / "good", engine, found)
        assert len(paths) == 2
        assert [fuzz_recordings.outcome(path, engine, found) for path in paths] == ["same"] * 2
        for _ in range(200):
            fuzz_recordings.mutant(draws, paths, path)
            outcomes.add(fuzz_recordings.outcome(path, engine, found))
    assert outcomes >= {"same", "other events", "MediaError"}
