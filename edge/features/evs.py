"""Efficient Video Sampling: of each tubelet, keep the tokens that differ from the one before.

Source: transformers 5.23.0 `models/nemotron_h_omni/modeling_nemotron_h_omni.py`
`compute_retention_mask`, which equals vLLM 0.33 `multimodal/evs.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge.types import Float32

_FIRST_TUBELET = 255.0  # more than any dissimilarity, which is at most 2
_MIN_NORM = 1e-8


def n_kept(n_tubelets: int, tokens_per_tubelet: int, pruning_rate: float) -> int:
    """Tokens of a video that survive: never fewer than one tubelet's.

    Args:
        n_tubelets: in the unpruned video.
        tokens_per_tubelet: rows * columns of its grid.
        pruning_rate: share of all tokens to drop, 0 <= rate < 1.
    Raises:
        ValueError: the rate is outside its range.
    """
    if not 0 <= pruning_rate < 1:
        raise ValueError(f"pruning_rate is {pruning_rate}; it must be 0 <= rate < 1")
    # Not total - int(total * rate): the reference's rounding decides, 2560 at 0.9 keeps 255.
    return max(tokens_per_tubelet, int(n_tubelets * tokens_per_tubelet * (1 - pruning_rate)))


def retention_mask(embeddings: Float32, pruning_rate: float) -> NDArray[np.bool_]:
    """Which tokens of a video survive.

    Args:
        embeddings: float32 [n_tubelets, rows, columns, H], as the decoder would see them.
        pruning_rate: share of all tokens to drop, 0 <= rate < 1.
    Returns:
        bool [n_tubelets, rows, columns]. The whole first tubelet survives, and then the tokens
        least like their predecessors; of equals, the earlier.
    Raises:
        ValueError: the rate is outside its range.
    """
    n_tubelets, rows, columns, _ = embeddings.shape
    dissimilarity = np.full((n_tubelets, rows, columns), _FIRST_TUBELET, np.float32)
    for t in range(1, n_tubelets):
        dissimilarity[t] = 1 - _cosine(embeddings[t], embeddings[t - 1])
    kept = np.argsort(-dissimilarity, axis=None, kind="stable")
    mask = np.zeros(dissimilarity.size, np.bool_)
    mask[kept[: n_kept(n_tubelets, rows * columns, pruning_rate)]] = True
    return mask.reshape(dissimilarity.shape)


def _cosine(a: Float32, b: Float32) -> NDArray[np.float64]:
    """Cosine similarity over the last axis, exactly 1 where a equals b: a still picture gives
    ties, and the same choice on every machine."""
    # float64, one tubelet at a time, costs nothing beside the encoder; the reference's float32
    # sums lie within their rounding of it.
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    dot, aa, bb = (
        np.einsum("...h,...h->...", x, y)
        for x, y in ((wide_a, wide_b), (wide_a, wide_a), (wide_b, wide_b))
    )
    norms = np.sqrt(np.maximum(aa, _MIN_NORM**2) * np.maximum(bb, _MIN_NORM**2))
    similarity: NDArray[np.float64] = dot / norms
    return similarity
