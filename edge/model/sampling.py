"""How the next token is chosen from logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge.types import Float32


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

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 2.0:
            raise ValueError(f"temperature is {self.temperature}, outside 0..2")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}, outside 0..1")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}, below 0")


class Sampler:
    """Draws the tokens of one answer."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._rng = np.random.default_rng(sampling.seed)

    def choose(self, logits: Float32) -> int:
        """The next token.

        Args:
            logits: shape (vocabulary,), float32.
        """
        settings = self._sampling
        if settings.temperature == 0.0 or settings.top_k == 1:
            return int(np.argmax(logits))
        order = np.argsort(-logits, kind="stable")
        if settings.top_k:
            order = order[: settings.top_k]
        scaled = logits[order].astype(np.float64) / settings.temperature
        probabilities = np.exp(scaled - scaled[0])
        probabilities /= probabilities.sum()
        if settings.top_p < 1.0:
            before = np.cumsum(probabilities) - probabilities
            probabilities = np.where(before < settings.top_p, probabilities, 0.0)
            probabilities /= probabilities.sum()
        return int(self._rng.choice(order, p=probabilities))
