"""Greedy, temperature, top-k, top-p and seeds."""

from __future__ import annotations

import numpy as np
import pytest

from edge.model.sampling import Sampler, Sampling

LOGITS = np.log(np.array([0.5, 0.05, 0.3, 0.15], np.float32))


def drawn(sampling, n=4000):
    sampler = Sampler(sampling)
    return np.bincount([sampler.choose(LOGITS) for _ in range(n)], minlength=4) / n


def test_greedy_takes_the_largest():
    assert drawn(Sampling(), 20).tolist() == [1, 0, 0, 0]
    assert drawn(Sampling(temperature=1.0, top_k=1, seed=0), 20).tolist() == [1, 0, 0, 0]


# 4000 draws: a share's standard error is below 0.008; 0.04 is five of them.
def test_temperature_one_draws_the_models_own_shares():
    np.testing.assert_allclose(
        drawn(Sampling(temperature=1.0, seed=1)), [0.5, 0.05, 0.3, 0.15], atol=0.04
    )


def test_a_low_temperature_sharpens():
    expected = np.array([0.5, 0.05, 0.3, 0.15]) ** 2
    np.testing.assert_allclose(
        drawn(Sampling(temperature=0.5, seed=2)), expected / expected.sum(), atol=0.04
    )


def test_top_k_keeps_the_likeliest():
    np.testing.assert_allclose(
        drawn(Sampling(temperature=1.0, top_k=2, seed=3)), [0.625, 0, 0.375, 0], atol=0.04
    )


@pytest.mark.parametrize(
    ("top_p", "shares"),
    [(0.5, [1, 0, 0, 0]), (0.51, [0.625, 0, 0.375, 0]), (0.9, [0.526, 0, 0.316, 0.158])],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, shares):
    np.testing.assert_allclose(
        drawn(Sampling(temperature=1.0, top_p=top_p, seed=4)), shares, atol=0.04
    )


def test_a_seed_repeats_and_another_differs():
    def run(seed):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler.choose(LOGITS) for _ in range(40)]

    assert run(7) == run(7)
    assert run(7) != run(8)


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
    ],
)
def test_values_outside_their_range_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)
