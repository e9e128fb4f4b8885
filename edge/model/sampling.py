"""How the next token is chosen from logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge.model.penalties import Penalties, likely
from edge.types import Float32

Indices: TypeAlias = NDArray[np.signedinteger[Any]]
Weights: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings of one answer.

    Raises:
        ValueError: a value is outside its range.
    """

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Smallest set of tokens whose probability reaches top_p; 0 < top_p <= 1."""
    top_k: int = 0
    """The top_k likeliest tokens; 0 is all."""
    seed: int | None = None
    """Same seed, state and question: same answer. None draws one."""
    min_p: float = 0.0
    """Only tokens that are at least so many times as likely as the likeliest; 0..1."""
    presence_penalty: float = 0.0
    """What the logit of a token loses that was said; -2..2."""
    frequency_penalty: float = 0.0
    """What it loses for each time that it was said; -2..2."""
    repetition_penalty: float = 1.0
    """Above 0: what a positive logit of a token that was read or said is divided by."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """What the logits of tokens gain; -100..100."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 2.0:
            raise ValueError(f"temperature is {self.temperature}, outside 0..2")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}, outside 0..1")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}, below 0")
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p is {self.min_p}, outside 0..1")
        if not self.repetition_penalty > 0.0:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}, not above 0")

    @property
    def penalizes(self) -> bool:
        """Whether logits depend on what was said, or on the request."""
        return bool(
            self.presence_penalty
            or self.frequency_penalty
            or self.repetition_penalty != 1.0
            or self.logit_bias
        )


COLDEST = 1e-30
"""At any temperature below, the same tokens are drawn: logits are no closer to each other."""
DEPTHS = (6.0, 9.0, 12.0, 20.0, 40.0)
"""How far below the likeliest token others are looked for, in temperatures, before all are."""
ROUGHLY, CLOSELY = 1e-5, 1e-12
"""Relative errors that a sum over the vocabulary stays below: in float32, where what counts lies at
most 13 below the likeliest and is 3e-6 off, and in float64."""


class Sampler:
    """Draws the tokens of one answer."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._rng = np.random.default_rng(sampling.seed)
        self._temperature = max(sampling.temperature, COLDEST)
        self._penalties: Penalties | None = None
        if sampling.penalizes:
            self._penalties = Penalties(
                presence=sampling.presence_penalty,
                frequency=sampling.frequency_penalty,
                repetition=sampling.repetition_penalty,
                bias=sampling.logit_bias,
            )

    def read(self, tokens: Sequence[int]) -> None:
        """The prompt has these tokens: a repetition penalty counts them too."""
        if self._penalties is not None:
            self._penalties.read(tokens)

    def choose(self, logits: Float32) -> int:
        """The next token, which the answer goes on with.

        Args:
            logits: shape (vocabulary,), float32.
        """
        penalties, settings = self._penalties, self._sampling
        if penalties is not None:
            logits = penalties.apply(logits)
        if settings.min_p and settings.temperature:
            logits = likely(logits, settings.min_p, self._temperature)
        token = self._chosen(logits)
        if penalties is not None:
            penalties.take(token)
        return token

    def _chosen(self, logits: Float32) -> int:
        """The next token.

        As if all were sorted, the likeliest first, and one of them drawn; but the vocabulary is
        large, so only those are sorted that can be it. Where that is not certain, all are.

        Args:
            logits: shape (vocabulary,), float32.
        """
        settings = self._sampling
        if settings.temperature == 0.0 or settings.top_k == 1:
            return int(np.argmax(logits))
        point = self._rng.random()
        if settings.top_k:
            near = self._near(logits, lambda ids: len(ids) >= settings.top_k)
            return self._draw(logits, _sorted(logits, near), point)
        found = self._found(logits, point)
        if found is None:
            return self._draw(logits, _sorted(logits, np.arange(len(logits))), point)
        if settings.top_p == 1.0:
            return int(found[-1])
        return _at(point, found, self._weights(logits, found))

    def _near(self, logits: Float32, is_enough: Callable[[Indices], bool]) -> Indices:
        """The likeliest tokens, not sorted; all of them if no less is enough."""
        most = logits.max()
        for depth in DEPTHS:
            near = np.flatnonzero(logits >= most - np.float32(depth * self._temperature))
            if is_enough(near):
                return near
        return np.arange(len(logits))

    def _found(self, logits: Float32, point: float) -> Indices | None:
        """The likeliest tokens, sorted, up to the one that makes them reach top_p.

        Where top_p leaves all, up to the token at the point. None if rounding decides which it is.
        """
        share = self._sampling.top_p if self._sampling.top_p < 1.0 else point
        most = logits.max()
        with np.errstate(over="ignore"):
            rough = np.exp((logits - most) * np.float32(1.0 / self._temperature))
        total = float(rough.sum())
        enough = share * total * (1.0 + 2.0 * ROUGHLY)
        order = _sorted(logits, self._near(logits, lambda ids: float(rough[ids].sum()) > enough))
        reached = np.cumsum(self._weights(logits, order))
        for error in (ROUGHLY, CLOSELY):
            if error == CLOSELY:
                total = float(np.exp((logits.astype(np.float64) - most) / self._temperature).sum())
            bounds = (share * total * (1.0 - error), share * total * (1.0 + error))
            last, at_most = np.searchsorted(reached, bounds)
            if last == at_most < len(order):
                return order[: last + 1]
        return None

    def _draw(self, logits: Float32, order: Indices, point: float) -> int:
        """The token at a point, 0..1, of those that settings leave of `order`."""
        settings = self._sampling
        order = order[: settings.top_k] if settings.top_k else order
        weights = self._weights(logits, order)
        weights /= weights.sum()
        before = np.cumsum(weights) - weights
        return _at(point, order, np.where(before < settings.top_p, weights, 0.0))

    def _weights(self, logits: Float32, order: Indices) -> Weights:
        """In proportion to their probabilities, the first being 1; none overflows."""
        below = logits[order].astype(np.float64) - float(logits[order[0]])
        return np.asarray(np.exp(below / self._temperature))


def _sorted(logits: Float32, ids: Indices) -> Indices:
    """The likeliest first; of equals the lowest.

    Args:
        ids: in ascending order.
    """
    # Whole numbers that are ordered as the logits are and then as the ids: many times as fast to
    # sort as floats whose equals must stay in order.
    bits = (np.float32(0.0) - logits[ids]).view(np.int32)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32 | ids
    return np.sort(keys) & 0xFFFFFFFF


def _at(point: float, order: Indices, weights: Weights) -> int:
    """The token at a point, 0..1, if each takes as much as it weighs."""
    reached = np.cumsum(weights)
    return int(order[np.searchsorted(reached / reached[-1], point, side="right")])
