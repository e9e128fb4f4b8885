"""The live context on the tensorrt engine, which has only as many states as a session needs."""

from __future__ import annotations

import numpy as np
import pytest
from fake_cuda import FakeDriver
from fake_gpu import load

from edge.engines.bundle import Bundle
from edge.session.context import LiveContext
from edge.session.slot import Perceived
from edge.types import Evidence

ANCHOR = np.arange(3, 9, dtype=np.int32)
SEPARATOR = np.array([198], np.int32)
SPLIT_TOLERANCE = 2e-5
"""As the laws' of tests/unit/test_laws.py: sums in another order."""


@pytest.fixture(scope="module")
def board(compiled):
    found = load(Bundle(compiled("wide")), FakeDriver())
    yield found
    found.engine.close()
    assert found.driver.leaks() == {}


def perceived(engine, n, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, engine.spec.decoder.hidden_size), np.float32)
    return Perceived("video", rows, Evidence("camera", seed, seed + 1, (seed,)))


def test_a_session_has_states_enough(board, engine):
    """Rebases, forks, and a recall in the middle of a rebase; the cpu engine says the same."""
    heard = []
    for executor in (board.engine, engine("wide")):
        context = LiveContext(executor, ANCHOR, SEPARATOR, max_tokens=200, keep_tokens=80)
        said, n_in_rebase = [], 0
        for seed in range(16):
            context.append(perceived(executor, 25, seed))
            with context.fork() as fork:
                said.append(executor.decode(fork.state, 5))
            n_in_rebase += context._next is not None
            recalled = context.recall(seed - 1, seed + 1)
            with recalled.fork() as fork:
                said.append(executor.decode(fork.state, 7))
            del recalled, fork
            context.rebase()
        assert context.n_rebases > 0
        assert n_in_rebase > 0
        heard.append(np.stack(said))
        del context
    got, expected = heard
    assert np.abs(got - expected).max() <= SPLIT_TOLERANCE * np.abs(expected).max()
    assert len(board.engine._free_places) == len(board.engine._places)
