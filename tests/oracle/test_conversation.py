"""The whole conversation against transformers, and the stored goldens against it too."""

from __future__ import annotations

import numpy as np
import pytest
from parity import GOLDENS, difference, disagreements, golden_part, runtime_outputs


@pytest.fixture(scope="module")
def expected(reference, checkpoint_folder):
    from oracle.conversation import reference_outputs

    return reference_outputs(reference, checkpoint_folder)


def test_every_stage_equals_transformers(expected, checkpoint_folder, bundle, engine, capsys):
    preset = checkpoint_folder.name
    got = runtime_outputs(engine(preset), bundle(preset))
    with capsys.disabled():
        figures = (f"{n} {difference(n, got[n], values):.1e}" for n, values in expected.items())
        print(f"\n{preset}: {', '.join(figures)}")
    assert disagreements(got, expected) == {}


def test_the_stored_goldens_are_this_oracles(expected, checkpoint_folder):
    with np.load(GOLDENS / f"{checkpoint_folder.name}.npz") as stored:
        goldens = dict(stored)
    part = golden_part(expected)
    assert goldens.keys() == part.keys()
    assert disagreements(goldens, part) == {}
