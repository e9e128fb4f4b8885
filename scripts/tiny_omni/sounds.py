"""Sounds for batches: a word, a spoken question, or only noise, each in a room of its own."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from speech import QUESTIONS, WORDS, Corpus, augment, load_corpus

Float32 = NDArray[np.float32]
Split = Literal["train", "held_out"]
P_NOISE = 0.12
"""Share of sounds without any word, for which the honest answer is `none`."""


FITS = {"train": 0.8, "held_out": 0.9}
"""Most of a window that a clip may fill before its pace is changed."""


class Sounds:
    """Draws augmented sounds from a corpus."""

    def __init__(self, path: Path) -> None:
        self.corpus: Corpus = load_corpus(path)
        self._lengths = np.diff(self.corpus.offsets)
        self._indices = cache(self.corpus.indices)

    def said(self, rng: np.random.Generator, split: Split, text: str, n: int) -> Float32:
        """`text` as one of the split's voices says it, [n]: one that is quick enough."""
        indices = self._indices(split, text)
        lengths = self._lengths[indices]
        fitting = indices[lengths <= max(FITS[split] * n, lengths.min())]
        clip = self.corpus.clip(int(fitting[rng.integers(len(fitting))]))
        return augment(clip, rng, n, uneven=split == "train")

    def word(self, rng: np.random.Generator, split: Split, n: int) -> tuple[Float32, str | None]:
        """A random word and what it is, or noise and None, [n]."""
        if rng.random() < P_NOISE:
            return augment(np.zeros(n, np.float32), rng, n), None
        word = WORDS[rng.integers(len(WORDS))]
        return self.said(rng, split, word, n), word

    def question(self, rng: np.random.Generator, split: Split, n: int) -> tuple[Float32, str]:
        """A random spoken question and its text, [n]."""
        text = QUESTIONS[rng.integers(len(QUESTIONS))]
        return self.said(rng, split, text, n), text
