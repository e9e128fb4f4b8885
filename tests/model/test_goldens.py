"""The runtime against stored outputs of transformers: the model is exact, without torch."""

from __future__ import annotations

import numpy as np
import pytest
from make_tiny_checkpoint import PRESETS
from parity import GOLDENS, disagreements, golden_part, runtime_outputs


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_stage_equals_the_golden(preset, bundle, engine):
    with np.load(GOLDENS / f"{preset}.npz") as stored:
        expected = dict(stored)
    got = golden_part(runtime_outputs(engine(preset), bundle(preset)))
    assert got.keys() == expected.keys()
    assert disagreements(got, expected) == {}
