"""The robot's own voice in its microphone: cancelled, and what may be left of it masked.

A linear filter learns how the loudspeaker sounds in the microphone and subtracts that. What it
leaves is louder than a quiet person, the less so the longer it has learned. So a block counts as
masked unless it is clearly louder, over most bands, than the residue has lately been.

Source: G. Enzner, P. Vary, "Frequency-domain adaptive Kalman filter for acoustic echo control in
hands-free telephones" (2006); F. Kuech et al., "State-space architecture of the partitioned-block-
based acoustic echo controller" (2014).
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge.model.spec import SAMPLE_RATE_HZ
from edge.senses.sound import BLOCK_SAMPLES, MAX_JITTER_NS, NS_PER_SAMPLE
from edge.types import AudioChunk, Float32

Complex64 = NDArray[np.complex64]

N_PARTS = 14
"""The filter reaches 0.45 s back: the delay and the room's response."""
KEEP = 0.9996
"""How much of the echo path stays the same from one block to the next."""
N_PRIOR_BLOCKS = 12
"""Blocks with the robot's voice whose level says how loud it is in the microphone."""
N_WARM_BLOCKS = 60
"""1.9 s of the robot's voice are learned from before anybody can interrupt it; once, not always."""
MARGIN_DB = 3.0
"""Somebody speaks where the sound is this much louder than the residue."""
RISE_DB, FALL_DB = 0.2, 0.02
"""A block: how the residue's level follows what is heard. It settles where 1 in 11 is above."""
FIRST_RESIDUE_DB = 10.0
MAX_RATIO_DB = 20.0
"""No band says more than this."""
ECHO_SHARE = 0.1
"""Of the echo's estimate that a trained filter may leave, beside what it knows to be uncertain."""
INAUDIBLE = 0.003
"""A residue below this share of the sound masks nothing."""
MAX_WAITING_SAMPLES = 60 * SAMPLE_RATE_HZ
"""Played sound that the microphone has not come to yet; beyond it the oldest is forgotten."""

_BAND_EDGES_HZ = (
    *(150, 250, 350, 450, 570, 700, 850, 1000, 1200),
    *(1400, 1650, 1950, 2300, 2700, 3200, 3800, 4600, 5600),
)
_BAND_EDGES = [round(hz * 2 * BLOCK_SAMPLES / SAMPLE_RATE_HZ) for hz in _BAND_EDGES_HZ]
_TINY = 1e-9
"""Far below the power of one bit of 16 in a bin."""


class Echo:
    """The echo of one loudspeaker in one microphone. It learns for as long as it lives."""

    def __init__(self) -> None:
        self._played = _Played()
        self._filter = _Filter()
        self._place: int | None = None  # of the next block, in samples of the played sound
        self._n_since_voice = N_PARTS + 1  # blocks; more than N_PARTS: no echo can be left
        self._n_blocks = 0  # with the robot's voice in them
        self._heard_power = self._played_power = 0.0
        self._residue_db = np.full(len(_BAND_EDGES) - 1, FIRST_RESIDUE_DB)
        self._left: NDArray[np.float64] = np.zeros(len(_BAND_EDGES) - 1)
        self._expected: NDArray[np.float64] = self._left

    def play(self, chunk: AudioChunk) -> None:
        """Know what is played, before it is heard."""
        self._played.put(round(chunk.capture_ns / NS_PER_SAMPLE), chunk.samples)

    def lose_place(self) -> None:
        """The next block does not go on where the last one ended."""
        self._place = None

    def clean(self, block: AudioChunk) -> tuple[AudioChunk, bool]:
        """The microphone's next block without the echo, and whether it is masked.

        Without the robot's voice it is the block itself.
        """
        place = round(block.capture_ns / NS_PER_SAMPLE)
        if self._place is not None and abs(place - self._place) * NS_PER_SAMPLE <= MAX_JITTER_NS:
            place = self._place  # the filter needs the same distance always, times jitter
        self._place = place + BLOCK_SAMPLES
        voice = self._played.take(place)
        speaks = bool(voice.any())
        self._n_since_voice = 0 if speaks else self._n_since_voice + 1
        if self._n_since_voice > N_PARTS:
            return block, False
        self._n_blocks += speaks
        if self._n_blocks <= N_PRIOR_BLOCKS:
            self._heard_power += float(np.square(block.samples).mean())
            self._played_power += float(np.square(voice).mean())
            gain = self._heard_power / max(self._played_power, _TINY)
            self._filter.expect(1.5 * gain / N_PARTS)
        samples, *powers = self._filter.step(block.samples, voice)
        masked = self._masks(*(_in_bands(power) for power in powers))
        return replace(block, samples=samples), masked

    def _masks(self, left: Float32, echo: Float32, uncertain: Float32) -> bool:
        self._left = 0.6 * self._left + 0.4 * left
        self._expected = 0.6 * self._expected + 0.4 * (uncertain + ECHO_SHARE * echo)
        if self._expected.sum() < INAUDIBLE * self._left.sum():
            return False
        ratio_db = 10 * np.log10((self._left + _TINY) / (self._expected + _TINY))
        above_db = ratio_db - self._residue_db
        self._residue_db += np.where(above_db > 0, RISE_DB, -FALL_DB)
        certain = np.clip(above_db, -MAX_RATIO_DB, MAX_RATIO_DB).mean() > MARGIN_DB
        return not certain or self._n_blocks <= N_WARM_BLOCKS


class _Played:
    """What was played, until the microphone has come to it."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[int, Float32]] = deque()
        self._end: int | None = None

    def put(self, place: int, samples: Float32) -> None:
        if self._end is not None and abs(place - self._end) * NS_PER_SAMPLE <= MAX_JITTER_NS:
            place = self._end
        self._end = place + len(samples)
        self._pieces.append((place, samples))
        while sum(len(piece) for _, piece in self._pieces) > MAX_WAITING_SAMPLES:
            self._pieces.popleft()

    def take(self, place: int) -> Float32:
        """[512] from `place` on; silence where nothing was played."""
        taken = np.zeros(BLOCK_SAMPLES, np.float32)
        while self._pieces and self._pieces[0][0] + len(self._pieces[0][1]) <= place:
            self._pieces.popleft()
        for start, samples in self._pieces:
            first, last = max(start, place), min(start + len(samples), place + BLOCK_SAMPLES)
            if first < last:
                taken[first - place : last - place] += samples[first - start : last - start]
        return taken


class _Filter:
    """A Kalman filter for each frequency and each block of the echo path, by overlap-save."""

    def __init__(self) -> None:
        shape = (N_PARTS, BLOCK_SAMPLES + 1)
        self._path: Complex64 = np.zeros(shape, np.complex64)
        self._variance = np.zeros(shape, np.float32)
        self._voice: Complex64 = np.zeros(shape, np.complex64)  # spectra, the newest first
        self._last: Float32 = np.zeros(BLOCK_SAMPLES, np.float32)
        self._noise = np.zeros(shape[1], np.float32)

    def expect(self, variance: float) -> None:
        """Start from an unknown path of this power in each part."""
        self._variance[:] = variance

    def step(self, heard: Float32, voice: Float32) -> tuple[Float32, Float32, Float32, Float32]:
        """Subtract the echo from `heard` [512], then learn from what is left.

        Returns:
            What is left [512], and by frequency [513] its power, the power of the subtracted
            echo, and how much echo it should expect to have left.
        """
        self._voice = np.roll(self._voice, 1, axis=0)
        self._voice[0] = np.fft.rfft(np.concatenate([self._last, voice]))
        self._last = voice
        power = _power(self._voice)
        whole = np.fft.irfft((self._path * self._voice).sum(axis=0))
        echo = whole[BLOCK_SAMPLES:].astype(np.float32)
        left = heard - echo
        error = _spectrum(left)
        uncertain = 0.5 * (power * self._variance).sum(axis=0)
        self._noise = 0.7 * self._noise + 0.3 * _power(error)
        gain = self._variance / (uncertain + self._noise + _TINY)
        change = np.fft.irfft(gain * self._voice.conj() * error, axis=1)
        change[:, BLOCK_SAMPLES:] = 0
        self._path += np.fft.rfft(change, axis=1).astype(np.complex64)
        self._variance *= KEEP**2 * (1 - 0.5 * gain * power)
        self._variance += (1 - KEEP**2) * _power(self._path)
        return left, _power(error), _power(_spectrum(echo)), uncertain


def _spectrum(block: Float32) -> Complex64:
    padded = np.concatenate([np.zeros(BLOCK_SAMPLES), block])
    return np.fft.rfft(padded).astype(np.complex64)


def _power(spectrum: Complex64) -> Float32:
    power: Float32 = np.square(spectrum.real) + np.square(spectrum.imag)
    return power


def _in_bands(power: Float32) -> Float32:
    return np.add.reduceat(power, _BAND_EDGES)[:-1]
