"""What a client changes of the logits: biases, penalties for what was said already, min_p.

Source: vLLM 0.20, `vllm/v1/sample/sampler.py` for the order (biases, repetition, frequency,
presence; then temperature, and min_p before top_k and top_p), `logits_processor/builtin.py` and
`model_executor/layers/utils.py` for each of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from edge.types import Float32


class Penalties:
    """Those of one answer. It remembers what was said."""

    def __init__(
        self,
        *,
        presence: float,
        frequency: float,
        repetition: float,
        bias: Sequence[tuple[int, float]],
    ) -> None:
        """Nothing has been said.

        Args:
            presence: what every token loses that was said.
            frequency: what it loses for each time.
            repetition: what the logit of one that was read or said is divided by if it is above 0,
                and else multiplied with.
            bias: what tokens gain.
        """
        self._presence, self._frequency, self._repetition = presence, frequency, repetition
        self._biased = np.array([token for token, _ in bias], np.intp)
        self._bias = np.array([more for _, more in bias], np.float32)
        self._read: set[int] = set()
        self._said: Counter[int] = Counter()

    def read(self, tokens: Sequence[int]) -> None:
        """The prompt has these tokens: repetition counts them too."""
        self._read.update(map(int, tokens))

    def take(self, token: int) -> None:
        """The answer goes on with a token."""
        self._said[token] += 1

    def apply(self, logits: Float32) -> Float32:
        """The logits with all of it.

        Args:
            logits: shape (vocabulary,), float32; left as they are. -inf stays -inf.
        """
        logits = logits.copy()
        logits[self._biased] += self._bias
        if self._repetition != 1.0:
            known = np.fromiter(self._read | self._said.keys(), np.intp)
            factor, found = np.float32(self._repetition), logits[known]
            logits[known] = np.where(found > 0, found / factor, found * factor)
        if self._said:
            said = np.fromiter(self._said.keys(), np.intp)
            times = np.fromiter(self._said.values(), np.float32)
            logits[said] -= np.float32(self._frequency) * times
            logits[said] -= np.float32(self._presence)
        return logits


def likely(logits: Float32, min_p: float, temperature: float) -> Float32:
    """The logits with -inf for every token that is less than min_p times as likely as the first.

    Args:
        logits: shape (vocabulary,), float32.
        min_p: above 0, at most 1.
        temperature: above 0.
    """
    least = logits.max() + np.float32(temperature * math.log(min_p))
    return np.where(logits < least, np.float32(-np.inf), logits)
