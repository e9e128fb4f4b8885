"""How sure the model is: from the probabilities that it gave, the same for answers and triggers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edge.session.turn import Chance, Likely, YesNo
from edge.types import Float32

DIGITS = 3
"""Of an answer's confidence: on another machine's kernels the rest of them may differ."""


def confidence(logits: Float32, yes_no: YesNo) -> float:
    """P(yes) / (P(yes) + P(no)), each over the tokens with which that answer may begin.

    Args:
        logits: [vocabulary], after the question.
    """
    yes, no = (np.logaddexp.reduce(logits[list(ids)]) for ids in (yes_no.yes, yes_no.no))
    return float(1.0 / (1.0 + np.exp(np.clip(no - yes, -500.0, 500.0))))


def log_probability(logits: Float32, token: int) -> float:
    """Of a token among all that are allowed, at temperature 1.

    Args:
        logits: [vocabulary]; -inf for what is not allowed.
    """
    most = logits.max()
    return float(logits[token] - most - np.log(np.exp(logits - most).sum()))


def chance(logits: Float32, token: int, n_others: int, spell: Callable[[int], bytes]) -> Chance:
    """How likely a token was that is said, and the likeliest ones beside it.

    Args:
        logits: [vocabulary]; -inf for what is not allowed, which is not among the others.
        spell: the bytes of a token.
    """
    wide = logits.astype(np.float64)
    total = float(np.logaddexp.reduce(wide[np.isfinite(wide)]))
    n_others = min(n_others, int(np.isfinite(wide).sum()))
    others: list[int] = []
    if n_others:
        least = np.partition(wide, -n_others)[-n_others]
        near = np.flatnonzero(wide >= least)
        others = near[np.argsort(-wide[near], kind="stable")][:n_others].tolist()
    said, *rest = (Likely(spell(one), float(wide[one]) - total) for one in (token, *others))
    return Chance(said, tuple(rest))


class Certainty:
    """Gathers how likely the tokens of one answer were.

    Where a format leaves one token only, the model has decided nothing: it does not count.
    """

    def __init__(self) -> None:
        self._sum = 0.0
        self._n = 0

    def add(self, allowed: Float32, token: int) -> None:
        """The answer goes on with a token.

        Args:
            allowed: [vocabulary] logits; -inf for what is not allowed.
        """
        if np.isfinite(allowed).sum() > 1:
            self._sum += log_probability(allowed, token)
            self._n += 1

    @property
    def value(self) -> float | None:
        """The geometric mean of their probabilities, 0..1; None before there is one."""
        return round(math.exp(self._sum / self._n), DIGITS) if self._n else None
