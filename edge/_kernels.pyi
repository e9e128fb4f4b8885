"""The native kernels (kernels/cpu). Matrices are C-contiguous and are never converted.

A bfloat16 is passed as its bits (uint16), an E4M3 as its code (uint8). Outputs are the caller's
arrays. n_threads 0 takes all cores. The interpreter's lock is released while a kernel runs.
`portable` keeps to instructions that every processor has: for tests, and the bits are the same.

Raises:
    TypeError: an array has another dtype, rank or layout.
    ValueError: the shapes do not belong together.
"""

import numpy as np
from numpy.typing import NDArray

def amax(weight: NDArray[np.float32] | NDArray[np.uint16], n_threads: int) -> float:
    """The largest magnitude; NaN or infinity if the weight holds one."""

def pack_nvfp4(
    weight: NDArray[np.float32] | NDArray[np.uint16],
    scale_2: float,
    codes: NDArray[np.uint8],
    block_scale: NDArray[np.uint8],
    n_threads: int,
) -> None:
    """weight [n, k] -> codes [n, k / 2], block_scale [n, k / 16] (E4M3)."""

def unpack_nvfp4(
    codes: NDArray[np.uint8],
    block_scale: NDArray[np.uint8],
    scale_2: float,
    weight: NDArray[np.float32],
    n_threads: int,
) -> None:
    """codes [n, k / 2], block_scale [n, k / 16] (E4M3) -> weight [n, k]."""

def pack_fp8(
    weight: NDArray[np.float32] | NDArray[np.uint16],
    scale: float,
    codes: NDArray[np.uint8],
    n_threads: int,
) -> None:
    """weight [n, k] -> codes [n, k] (E4M3)."""

def unpack_fp8(
    codes: NDArray[np.uint8], scale: float, weight: NDArray[np.float32], n_threads: int
) -> None:
    """codes [n, k] (E4M3) -> weight [n, k]."""

def pack_int4(
    weight: NDArray[np.float32] | NDArray[np.uint16],
    codes: NDArray[np.uint8],
    block_scale: NDArray[np.float32],
    n_threads: int,
) -> None:
    """weight [n, k] -> codes [n / 2, k], block_scale [n, k / 128]."""

def unpack_int4(
    codes: NDArray[np.uint8],
    block_scale: NDArray[np.float32],
    weight: NDArray[np.float32],
    n_threads: int,
) -> None:
    """codes [n / 2, k], block_scale [n, k / 128] -> weight [n, k]."""

def log_mel_frames(
    samples: NDArray[np.float32],
    start: int,
    weights: NDArray[np.float32],
    bounds: NDArray[np.int32],
    out: NDArray[np.float64],
    n_threads: int,
    portable: bool = False,
) -> None:
    """samples [n], raw -> out [frames, filters], natural logarithms of their energies.

    Frame t is samples[start + 160 t:][:400]; around the samples there are zeros. weights
    [filters, 257] of the FFT's bins, bounds [filters, 2]: which of them count.
    """

def normalize_columns(
    log: NDArray[np.float64], out: NDArray[np.float32], portable: bool = False
) -> None:
    """log [n, m] -> out [n, m]: each column to mean 0 and standard deviation 1 (divisor n - 1)."""

def patches(
    pixels: NDArray[np.uint8],
    first_column: NDArray[np.int32],
    column_weights: NDArray[np.float32],
    first_row: NDArray[np.int32],
    row_weights: NDArray[np.float32],
    gain: NDArray[np.float32],
    offset: NDArray[np.float32],
    out: NDArray[np.float32],
    n_threads: int,
    portable: bool = False,
) -> None:
    """pixels [h, w, 3], rows anywhere -> out [patches, 3 * side * side], rows anywhere.

    An axis is resized by out[i] = sum over t of weights[i, t] * in[first[i] + t], `first`
    ascending; then each channel is multiplied by its gain, and its offset added.
    """
