"""Bins of logits, beside numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import _kernels

N_BINS = 100


def binned(logits, most, scale, width, n_bins=N_BINS):
    """What the kernel makes of them."""
    bins = np.full(len(logits), 7, np.uint16)
    mass, counts = np.full(n_bins + 1, 7.0), np.full(n_bins + 1, 7, np.int64)
    _kernels.bin_logits(logits, most, scale, width, bins, mass, counts)
    return bins, mass, counts


@given(
    seed=st.integers(0, 1 << 40),
    n=st.sampled_from([0, 1, 63, 64, 65, 1000]),
    width=st.sampled_from([0.01, 1e-4, 1e-12]),
    temperature=st.sampled_from([1e-30, 0.6, 2.0]),
)
def test_a_bin_has_its_tokens_and_what_they_weigh(seed, n, width, temperature):
    """Measured: at most 9e-13 of a bin's weight, what the terms that are left out come to."""
    rng = np.random.default_rng(seed)
    logits = (rng.random(n) * -1.2 * N_BINS * width * temperature).astype(np.float32)
    logits[rng.random(n) < 0.1] = -np.inf
    most = float(logits.max(initial=-np.inf)) if n else 0.0
    if math.isinf(most):
        most = 0.0
    scale = 1.0 / width / temperature
    bins, mass, counts = binned(logits, most, scale, width)
    deep = np.minimum((most - logits.astype(np.float64)) * scale, N_BINS)
    np.testing.assert_array_equal(bins, np.floor(deep))
    np.testing.assert_array_equal(counts, np.bincount(bins, minlength=N_BINS + 1))
    weights = np.exp(-deep * width)
    expected = np.bincount(bins, weights, N_BINS + 1)
    np.testing.assert_allclose(mass[:-1], expected[:-1], rtol=2e-12)
    assert mass[-1] == 0.0


def test_what_is_no_number_is_in_the_last_bin():
    logits = np.array([np.nan, 1.0, -np.inf, np.inf], np.float32)
    bins, mass, counts = binned(logits, 1.0, 10.0, 0.01)
    assert bins.tolist() == [N_BINS, 0, N_BINS, 0]
    assert (mass[-1], counts[0], counts[-1]) == (0.0, 2, 2)


def test_all_of_one_value_are_in_one_bin():
    bins, mass, counts = binned(np.full(300, -2.5, np.float32), -2.5, 0.0, 0.0)
    assert not bins.any()
    assert (mass[0], counts[0], mass[1:].sum()) == (300.0, 300, 0.0)


@pytest.mark.parametrize(
    ("n_bins_of", "message"),
    [
        ((9, 11, 11), "bins are not one for each"),
        ((10, 11, 12), "not of 1 to 65536"),
        ((10, 65_537, 65_537), "not of 1 to 65536"),
    ],
)
def test_other_shapes_are_refused(n_bins_of, message):
    n, n_mass, n_counts = n_bins_of
    arrays = np.empty(n, np.uint16), np.empty(n_mass), np.empty(n_counts, np.int64)
    with pytest.raises(ValueError, match=message):
        _kernels.bin_logits(np.zeros(10, np.float32), 0.0, 1.0, 0.01, *arrays)


@pytest.mark.parametrize(("scale", "width"), [(-1.0, 0.01), (1.0, 0.011), (1.0, -0.1)])
def test_bins_that_are_too_wide_are_refused(scale, width):
    with pytest.raises(ValueError, match="width"):
        binned(np.zeros(10, np.float32), 0.0, scale, width)
