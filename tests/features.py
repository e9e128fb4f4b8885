"""Image and sound features in float64, written to be read: what the kernels are compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge.features.mel import mel_filter_bank
from edge.types import Float32, UInt8

Float64 = NDArray[np.float64]


def clip_bounds(n_samples: int) -> list[tuple[int, int]]:
    """Where vLLM cuts sound at 16 kHz into clips: (start, end) of each; the last may end later."""
    starts = range(0, max(n_samples, 1), 480_000)
    return [(start, max(min(start + 480_000, n_samples), start + 1600)) for start in starts]


def axis_weights(n_in: int, n_out: int) -> Float64:
    """[n_out, n_in]: torch's bicubic, anti-aliased; centres are float32, as torch has them."""
    if n_in == n_out:
        return np.eye(n_in)
    scale = np.float32(n_in) / np.float32(n_out)
    stretch = max(float(scale), 1.0)
    centre = (scale * (np.arange(n_out) + 0.5)).astype(np.float32)[:, None]
    first = (centre - np.float32(2 * stretch) + np.float32(0.5)).astype(np.int64)
    last = (centre + np.float32(2 * stretch) + np.float32(0.5)).astype(np.int64)
    position = np.arange(n_in)
    x = np.abs((position - centre.astype(np.float64) + 0.5) / stretch)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    weights[(position < first) | (position >= last)] = 0
    return weights / weights.sum(axis=1, keepdims=True)


def resized(pixels: UInt8, height: int, width: int) -> Float64:
    """RGB [H, W, 3] -> [height, width, 3], 0..255 and beyond."""
    rows, columns = axis_weights(len(pixels), height), axis_weights(pixels.shape[1], width)
    return np.einsum("yh,xw,hwc->yxc", rows, columns, pixels.astype(np.float64), optimize=True)


def patches_of(picture: Float64, side: int) -> Float64:
    """[rows * side, columns * side, 3] -> [rows * columns, 3 * side * side]."""
    rows, columns = len(picture) // side, picture.shape[1] // side
    blocks = picture.reshape(rows, side, columns, side, 3).transpose(0, 2, 4, 1, 3)
    return blocks.reshape(rows * columns, -1)


def raw_log_mel(samples: Float32, n_mels: int) -> Float64:
    """[n // 160, n_mels]: logarithms of mel energies."""
    emphasised = samples.copy()
    emphasised[1:] -= np.float32(0.97) * samples[:-1]  # float32: what follows starts from it
    padded = np.pad(emphasised, 200)
    frames = np.lib.stride_tricks.sliding_window_view(padded, 400)[::160][: len(samples) // 160]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)
    spectrum = np.fft.rfft(frames * hann, 512)
    power = spectrum.real**2 + spectrum.imag**2
    return np.log(power @ mel_filter_bank(n_mels).T.astype(np.float64) + 2.0**-24)


def log_mel(samples: Float32, n_mels: int) -> Float64:
    """[n // 160, n_mels], each bin normalised over the clip."""
    log = raw_log_mel(samples, n_mels)
    return (log - log.mean(axis=0)) / (log.std(axis=0, ddof=1) + 1e-5)
