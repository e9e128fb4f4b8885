"""The position table, resized to a grid of patches: worked examples, and averages of neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from edge.features.positions import interpolation_weights

TABLE = 10.0 * np.arange(4)[:, None] + np.arange(4)


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (2, 3, [[1.8333, 3.1667, 4.5], [15.1667, 16.5, 17.8333]]),
        (
            6,
            2,
            [[0, 0.5], [5, 5.5], [11.6667, 12.1667], [18.3333, 18.8333], [25, 25.5], [30, 30.5]],
        ),
        (4, 4, TABLE.tolist()),
        (4, 2, TABLE[:, :2].tolist()),
    ],
)
def test_a_resized_table(rows: int, columns: int, expected: list[list[float]]) -> None:
    side = max(rows, columns)
    by_row, by_column = (interpolation_weights(n, side, 4) for n in (rows, columns))
    np.testing.assert_allclose(by_row @ TABLE @ by_column.T, expected, atol=5e-5)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 7), (128, 128), (8, 136), (136, 136)])
def test_each_place_is_an_average_of_two(n: int, m: int) -> None:
    weights = interpolation_weights(n, m, 128)
    assert weights.shape == (n, 128)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    assert (weights >= 0).all()
    assert ((weights > 0).sum(axis=1) <= 2).all()


@pytest.mark.parametrize("n", [0, 5])
def test_a_crop_larger_than_the_square_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"an axis of {n} patches does not lie in a square of 4"):
        interpolation_weights(n, 4, 16)
