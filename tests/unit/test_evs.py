"""Efficient Video Sampling, against goldens of transformers' compute_retention_mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.features.evs import n_kept, retention_mask

A, B = (1.0, 0.0), (0.0, 1.0)
MINUS_A = (-1.0, 0.0)
TIES = np.array([[[A, A, A, A]], [[A, B, B, MINUS_A]], [[B, B, A, MINUS_A]]], np.float32)


@pytest.mark.parametrize(
    ("n_tubelets", "tokens", "rate", "kept"),
    [
        (1, 256, 0.5, 256),
        (2, 256, 0.5, 256),
        (3, 256, 0.5, 384),
        (128, 256, 0.5, 16384),
        (1, 256, 0.7, 256),
        (2, 256, 0.7, 256),
        (3, 256, 0.7, 256),
        (128, 256, 0.7, 9830),
        (10, 252, 0.5, 1260),
        (10, 252, 0.7, 756),
        (10, 252, 0.9, 252),
        (2560, 1, 0.9, 255),  # 1 - 0.9 is a little below 0.1
        (5, 12, 0.0, 60),
    ],
)
def test_n_kept(n_tubelets: int, tokens: int, rate: float, kept: int) -> None:
    assert n_kept(n_tubelets, tokens, rate) == kept


@pytest.mark.parametrize(
    ("rate", "survivors"), [(0.5, [0, 1, 2, 3, 5, 7]), (0.4, [0, 1, 2, 3, 5, 6, 7])]
)
def test_of_equals_the_earlier_survives(rate: float, survivors: list[int]) -> None:
    mask = retention_mask(TIES, rate)
    assert mask.shape == (3, 1, 4)
    assert np.flatnonzero(mask).tolist() == survivors


def test_a_still_picture_keeps_the_earliest() -> None:
    """Exactly equal tubelets tie, whatever the rounding of their sums."""
    picture = np.random.default_rng(0).normal(size=(1, 6, 7, 2688)).astype(np.float32)
    mask = retention_mask(np.repeat(picture, 5, axis=0), 0.55).ravel()
    assert mask[: mask.sum()].all()


@given(st.integers(2, 40), st.integers(1, 8), st.floats(0, 1, exclude_max=True), st.integers(0, 99))
def test_ties_are_ordered_by_position(
    n_tubelets: int, columns: int, rate: float, seed: int
) -> None:
    vectors = np.array([A, B, MINUS_A], np.float32)
    embeddings = vectors[np.random.default_rng(seed).integers(0, 3, (n_tubelets, 1, columns))]
    difference = 1 - (embeddings[1:] * embeddings[:-1]).sum(axis=-1)  # 0, 1 or 2
    flat = [255.0] * columns + difference.ravel().tolist()
    order = sorted(range(len(flat)), key=lambda i: (-flat[i], i))
    survivors = sorted(order[: n_kept(n_tubelets, columns, rate)])
    assert np.flatnonzero(retention_mask(embeddings, rate)).tolist() == survivors


def test_length_does_not_matter() -> None:
    """It is the angle that counts; a zero vector is unlike everything."""
    embeddings = np.ones((2, 1, 4, 3), np.float32)
    embeddings[1, 0] *= np.array([[2], [-1], [0], [0.5]], np.float32)
    assert np.flatnonzero(retention_mask(embeddings, 0.25)).tolist() == [0, 1, 2, 3, 5, 6]


@given(
    st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.floats(0, 1, exclude_max=True),
    st.integers(0, 99),
)  # fmt: skip
def test_what_survives_differs_at_least_as_much_as_what_does_not(
    n_tubelets: int, rows: int, columns: int, rate: float, seed: int
) -> None:
    embeddings = np.random.default_rng(seed).normal(size=(n_tubelets, rows, columns, 8))
    mask = retention_mask(embeddings.astype(np.float32), rate)
    assert mask.sum() == n_kept(n_tubelets, rows * columns, rate)
    assert mask[0].all()
    unit = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    difference = 1 - (unit[1:] * unit[:-1]).sum(axis=-1)
    kept, dropped = difference[mask[1:]], difference[~mask[1:]]
    if kept.size and dropped.size:
        assert kept.min() >= dropped.max() - 1e-6


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_rates_outside_the_range_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="pruning_rate is"):
        retention_mask(TIES, rate)
