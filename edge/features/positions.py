"""The vision encoder's position table, resized to a grid: as two matrices, one for each axis."""

from __future__ import annotations

import numpy as np

from edge.types import Float32


def interpolation_weights(n: int, m: int, table: int) -> Float32:
    """Weights that take one axis of the position table to one axis of a patch grid.

    The table is resized bilinearly to a square and cropped to the grid. Both axes are separable, so
    a grid of h x w positions is `weights(h) @ table @ weights(w).T`, which the encoder's graph
    computes for any grid without being built again.

    Args:
        n: patches along this axis, 1..m.
        m: side of the square, the larger of the grid's height and width, in patches.
        table: side of the learned table.
    Returns:
        (n, table), rows that sum to 1; the identity (cropped) where m == table.
    Raises:
        ValueError: n is not in 1..m.
    Source: transformers 5.23.0 `RadioPatchEmbeddings._interpolate_position_embedding`, that is
        `interpolate(mode="bilinear", align_corners=False)` of PyTorch without antialiasing.
    """
    if not 1 <= n <= m:
        raise ValueError(f"an axis of {n} patches does not lie in a square of {m}")
    # in float32 as the reference, whose rounding of a source near 100 is 1e-5 of a table step
    output = np.arange(n, dtype=np.float32) + np.float32(0.5)
    scale = np.float32(table) / np.float32(m)
    source = np.maximum(output * scale - np.float32(0.5), np.float32(0))
    lower = source.astype(np.int64)
    upper = np.minimum(lower + 1, table - 1)
    fraction = source - lower.astype(np.float32)
    rows = np.arange(n)
    weights = np.zeros((n, table), np.float32)
    weights[rows, lower] = 1 - fraction
    weights[rows, upper] += fraction
    return weights
