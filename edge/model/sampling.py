"""How the next token is chosen from logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge import _kernels
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
N_BINS = 4096
"""Of logits, in which what counts is looked for."""
DEEPEST = 40.0
"""So many temperatures below the likeliest token, others are as good as never drawn: 2**20 of them
have 4e-12 of what it has. The few draws among them sort all."""
CLOSELY = 1e-10
"""Relative error that a sum of weights over the vocabulary stays below, in whatever order it is
taken, and without those that lie deepest."""
FEW = 4096
"""Tokens that are sorted at once."""


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
        large, so only those near it are sorted. Where it is not certain, all are.

        Args:
            logits: shape (vocabulary,), float32.
        """
        settings = self._sampling
        if settings.temperature == 0.0 or settings.top_k == 1:
            return int(np.argmax(logits))
        point = self._rng.random()
        ranking = _Binned(logits, self._temperature)
        whole = ranking.first(settings.top_k) if settings.top_k else ranking.whole
        # Sums are rounded: the token is certain if it is there at both ends of what they may be.
        least, most = whole * (1.0 - CLOSELY), whole * (1.0 + CLOSELY)
        if settings.top_p < 1.0:
            least, most = (ranking.at(settings.top_p * amount)[1] for amount in (least, most))
        token, _ = ranking.at(point * least * (1.0 - CLOSELY))
        other, _ = ranking.at(point * most * (1.0 + CLOSELY))
        if token is not None and token == other:
            return token
        return self._draw(logits, _sorted(logits, np.arange(len(logits))), point)

    def _draw(self, logits: Float32, order: Indices, point: float) -> int:
        """The token at a point, 0..1, of those that settings leave of `order`."""
        settings = self._sampling
        order = order[: settings.top_k] if settings.top_k else order
        weights = _weights(logits[order], self._temperature)
        weights /= weights.sum()
        before = np.cumsum(weights) - weights
        return _at(point, order, np.where(before < settings.top_p, weights, 0.0))


class _Binned:
    """Tokens in bins, the likeliest first: only what lies in a bin that is asked for is sorted."""

    def __init__(self, logits: Float32, temperature: float) -> None:
        self._bins = np.empty(len(logits), np.uint16)
        mass, counts = np.empty(N_BINS + 1), np.empty(N_BINS + 1, np.int64)
        most = float(logits.max())
        span = min((most - float(logits.min())) / temperature, DEEPEST)
        width = span / (N_BINS - 1)
        scale = 1.0 / width / temperature if width else 0.0
        _kernels.bin_logits(logits, most, scale, width, self._bins, mass, counts)
        self._reached, self._n_reached = np.cumsum(mass), np.cumsum(counts)
        self._parts: dict[int, _Part] = {}
        self.whole = float(self._reached[-1])
        self._logits, self._most, self._temperature = logits, most, temperature

    def at(self, target: float) -> tuple[int | None, float]:
        """The first token with which the weights reach a target, and what they reach with it.

        The likeliest token's weight is 1. No token, and all of it, if it lies deepest.
        """
        found = int(np.searchsorted(self._reached, target))
        if found >= N_BINS:
            return None, self.whole
        part = self._part(found)
        token, reached = part.ranked.at((target - part.before) / part.weight)
        reached = part.before + reached * part.weight
        return (None if token is None else int(part.ids[token])), reached

    def first(self, n: int) -> float:
        """The weight of the n likeliest together."""
        found = int(np.searchsorted(self._n_reached, n))
        if found >= N_BINS:
            return self.whole
        part = self._part(found)
        return part.before + part.weight * part.ranked.first(n - part.n_before)

    def _part(self, found: int) -> _Part:
        """The bin of a number."""
        part = self._parts.get(found)
        if part is None:
            ids = np.flatnonzero(self._bins == found)
            logits = self._logits[ids]
            most = logits.max()
            ranked: _Binned | _Sorted | _Even
            if most == logits.min():
                ranked = _Even(len(ids))
            else:
                ranked = (_Sorted if len(ids) <= FEW else _Binned)(logits, self._temperature)
            part = self._parts[found] = _Part(
                ids,
                ranked,
                math.exp((float(most) - self._most) / self._temperature),
                float(self._reached[found - 1]) if found else 0.0,
                int(self._n_reached[found - 1]) if found else 0,
            )
        return part


class _Part(NamedTuple):
    """A bin, in the order that its own tokens have."""

    ids: Indices
    ranked: _Binned | _Sorted | _Even
    weight: float
    """Of its likeliest."""
    before: float
    """What all before it weigh."""
    n_before: int


class _Sorted:
    """The same of a few tokens."""

    def __init__(self, logits: Float32, temperature: float) -> None:
        self._order = _sorted(logits, np.arange(len(logits)))
        self._reached = np.cumsum(_weights(logits[self._order], temperature))

    def at(self, target: float) -> tuple[int, float]:
        """As `_Binned.at`; a target that rounding has put behind the last token is there."""
        last = min(int(np.searchsorted(self._reached, target)), len(self._order) - 1)
        return int(self._order[last]), float(self._reached[last])

    def first(self, n: int) -> float:
        """As `_Binned.first`."""
        return float(self._reached[n - 1])


class _Even:
    """The same of tokens that are equally likely."""

    def __init__(self, n: int) -> None:
        self._n = n

    def at(self, target: float) -> tuple[int, float]:
        """As `_Sorted.at`."""
        n = min(max(math.ceil(target), 1), self._n)
        return n - 1, float(n)

    def first(self, n: int) -> float:
        """As `_Binned.first`."""
        return float(n)


def _weights(logits: Float32, temperature: float) -> Weights:
    """In proportion to probabilities, the first being 1; none overflows."""
    below = logits.astype(np.float64) - float(logits[0])
    return np.asarray(np.exp(below / temperature))


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
