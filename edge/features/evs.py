"""Efficient Video Sampling: of each tubelet, keep the tokens that differ from the one before.

`retention_mask` chooses among all tokens of a whole clip. `CausalPruner` chooses as tubelets
arrive, by the same dissimilarity.

Source of the former: transformers 5.23.0 `models/nemotron_h_omni/modeling_nemotron_h_omni.py`
`compute_retention_mask`, which equals vLLM 0.33 `multimodal/evs.py`.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from edge.clock import NS_PER_S
from edge.types import Float32

CHANGED = 0.03
"""A place whose dissimilarity reaches this has changed.

Measured in the embeddings of the small trained model, at 2 frames a second: camera noise of a
standard deviation of 0.07 (0.1) of full scale stays below 0.019 (0.03 in 99.7 %); where a shape
came to or left a tenth of a place, 99.5 % lie above.
"""
CUT_SHARE = 0.5
"""A tubelet in which so many places changed, after one in which fewer did, follows a cut."""
REFRESH_NS = 30 * NS_PER_S
"""What was not kept for so long is kept once more: slow changes add up unseen."""

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
        dissimilarity[t] = _dissimilarity(embeddings[t], embeddings[t - 1])
    return _largest(dissimilarity, n_kept(n_tubelets, rows * columns, pruning_rate))


class CausalPruner:
    """Chooses of each tubelet of one source, as it arrives, the tokens to keep.

    Kept are the places that changed since the tubelet before, most changed first, within a budget;
    what the budget leaves out is owed, and counts the more the longer it waits. The first tubelet
    and the first after a cut are kept whole, one in a second at most: only so can the budget be
    exceeded. A tubelet in which nothing changed keeps nothing: a token of it reads as news.
    Memory: one tubelet and one second of counts.

    Where nothing is cut or left out, a clip keeps exactly what `retention_mask` keeps of it at the
    same number of tokens. A model that never saw parts of pictures in training needs whole ones:
    then a tubelet in which anything changed also keeps the rest, as far as the budget goes.
    """

    def __init__(
        self, tokens_per_s: int, max_tubelets_per_s: int, *, whole_pictures: bool = False
    ) -> None:
        """Start with no tubelet seen.

        Args:
            tokens_per_s: the budget, more than `max_tubelets_per_s`.
            max_tubelets_per_s: that will ever arrive in a second of capture time; one token each is
                set aside, for something may change in each.
            whole_pictures: keep the unchanged places, too, where others changed.
        """
        self._whole_pictures = whole_pictures
        self._shared_tokens = tokens_per_s - max_tubelets_per_s
        self._spent: deque[tuple[int, int]] = deque()  # (capture time, tokens) of the last second
        self._before: Float32 | None = None
        self._was_changing = False
        self._whole_ns: int | None = None
        self._owed: Float32 = np.zeros(0, np.float32)
        self._kept_ns: NDArray[np.int64] = np.zeros(0, np.int64)

    def start_again(self) -> None:
        """Keep the next tubelet whole: what was kept so far may be forgotten."""
        self._before = None

    def keep(self, tubelet: Float32, capture_ns: int, share: float = 1.0) -> NDArray[np.bool_]:
        """Which tokens of the next tubelet survive.

        Args:
            tubelet: float32 [rows, columns, H], as the decoder would see them.
            capture_ns: when it was taken, not before the one before.
            share: of the budget that may be spent now.
        Returns:
            bool [rows, columns]; nowhere True if nothing changed, else at least once.
        """
        change, is_new = self._change(tubelet, capture_ns)
        changed = change >= CHANGED
        while self._spent and self._spent[0][0] <= capture_ns - NS_PER_S:
            self._spent.popleft()
        if is_new and (self._whole_ns is None or self._whole_ns <= capture_ns - NS_PER_S):
            self._whole_ns = capture_ns
            kept = changed
        else:
            left = int(share * self._shared_tokens) - sum(n for _, n in self._spent)
            n_wanted = int(changed.sum())
            if n_wanted and self._whole_pictures:
                n_wanted = changed.size
            kept = _largest(change, min(max(1, left), n_wanted))
        self._spent.append((capture_ns, int(kept.sum())))
        self._owed = np.where(changed & ~kept, change, np.float32(0))
        self._kept_ns[kept] = capture_ns
        self._before = tubelet
        return kept

    def _change(self, tubelet: Float32, capture_ns: int) -> tuple[Float32, bool]:
        """How much each place wants to be kept, and whether all of them are new."""
        places = tubelet.shape[:2]
        if self._before is None or self._before.shape != tubelet.shape:
            self._kept_ns = np.full(places, capture_ns)
            self._was_changing = False
            return np.full(places, _FIRST_TUBELET, np.float32), True
        change = _dissimilarity(tubelet, self._before)
        is_changing = bool((change >= CHANGED).mean() >= CUT_SHARE)
        is_cut, self._was_changing = is_changing and not self._was_changing, is_changing
        change += self._owed
        due = is_cut | (capture_ns - self._kept_ns >= REFRESH_NS)
        return np.where(due, np.maximum(change, np.float32(CHANGED)), change), is_cut


def _largest(values: Float32, n: int) -> NDArray[np.bool_]:
    """Where the n largest values are; of equals, the earlier."""
    mask = np.zeros(values.size, np.bool_)
    mask[np.argsort(-values, axis=None, kind="stable")[:n]] = True
    return mask.reshape(values.shape)


def _dissimilarity(tubelet: Float32, before: Float32) -> Float32:
    """1 - cosine similarity, place by place."""
    return (1 - _cosine(tubelet, before)).astype(np.float32)


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
