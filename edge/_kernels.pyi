"""The native kernels (kernels/cpu). Matrices are C-contiguous and are never converted.

A bfloat16 is passed as its bits (uint16), an E4M3 as its code (uint8). Outputs are the caller's
arrays. n_threads 0 takes all cores. Other threads may run Python while a kernel does that takes
more than about a millisecond.
`portable` keeps to instructions that every processor has: for tests, and the bits are the same.

Raises:
    TypeError: an array has another dtype, rank or layout.
    ValueError: the shapes do not belong together.
"""

import numpy as np
from numpy.typing import NDArray

def amax(weight: NDArray[np.float32] | NDArray[np.uint16], n_threads: int) -> float:
    """The largest magnitude; NaN or infinity if the weight holds one."""

def bin_logits(
    logits: NDArray[np.float32],
    most: float,
    scale: float,
    width: float,
    bins: NDArray[np.uint16],
    mass: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> None:
    """logits [n] -> bins [n], and of each bin [k + 1] the tokens' mass and number.

    A logit lies (most - logit) * scale bins deep, each `width` temperatures wide, and its token
    weighs exp(-width) for each of them. What lies k deep or more is in the last bin and weighs
    nothing.
    """

def pack_nvfp4(
    weight: NDArray[np.float32] | NDArray[np.uint16],
    scale_2: float,
    codes: NDArray[np.uint8],
    block_scale: NDArray[np.uint8],
    n_threads: int,
) -> None:
    """weight [n, k] -> codes [n, k / 2], block_scale [n, k / 16] (E4M3)."""

def interleave_nvfp4(codes: NDArray[np.uint8], to: NDArray[np.uint8]) -> None: ...
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

def set_threads(n_threads: int) -> None:
    """How many threads kernels share, the caller included; 0: one for each usable core."""

def threads() -> int:
    """How many they are."""

def instruction_sets() -> list[str]:
    """Those that this build and this processor have, the best first."""

def instruction_set() -> str:
    """The one in use."""

def use_instruction_set(name: str) -> None:
    """Take another one of `instruction_sets()`, for the whole process."""

class Weight:
    """A weight [n, k], or a stack of them, over arrays that it keeps and never copies."""

    def __init__(
        self,
        format: str,
        n_matrices: int,
        n: int,
        k: int,
        values: NDArray[np.uint8],
        block_scale: NDArray[np.uint8] | None,
        scales: NDArray[np.float32] | None,
    ) -> None:
        """format: float32, bfloat16, fp8, int4 or nvfp4; arrays are flat."""

    @property
    def n(self) -> int:
        """Outputs of a matrix."""

    @property
    def k(self) -> int:
        """Inputs of a matrix."""

def will_read(weight: Weight) -> None:
    """Let threads that wait for the next kernel bring what `weight` begins with into their cache.

    A hint, taken back by the next one. Of a stack nothing is fetched.
    """

def linear(weight: Weight, x: NDArray[np.float32], y: NDArray[np.float32], exact: bool) -> None:
    """x [rows, k] -> y [rows, n]."""

def experts(
    up: Weight,
    down: Weight,
    x: NDArray[np.float32],
    ids: NDArray[np.int32],
    weights: NDArray[np.float32],
    y: NDArray[np.float32],
    exact: bool,
) -> None:
    """x [rows, hidden], ids and weights [rows, slots] -> y [rows, hidden]."""

def rms_norm(
    x: NDArray[np.float32], weight: NDArray[np.float32], eps: float, y: NDArray[np.float32]
) -> None:
    """x, y [rows, n], weight [n]."""

def gated_rms_norm(
    x: NDArray[np.float32],
    gate: NDArray[np.float32],
    weight: NDArray[np.float32],
    n_groups: int,
    eps: float,
    y: NDArray[np.float32],
) -> None:
    """x, gate, y [rows, n], weight [n]; y may be x."""

def causal_conv1d(
    x: NDArray[np.float32],
    past: NDArray[np.float32],
    taps: NDArray[np.float32],
    bias: NDArray[np.float32],
    y: NDArray[np.float32],
    next: NDArray[np.float32],
) -> None:
    """x, y [rows, n], past and next [taps - 1, n], taps [taps, n], bias [n]."""

def state_space(
    x: NDArray[np.float32],
    b: NDArray[np.float32],
    c: NDArray[np.float32],
    dt: NDArray[np.float32],
    dt_bias: NDArray[np.float32],
    a_log: NDArray[np.float32],
    d: NDArray[np.float32],
    n_groups: int,
    state: NDArray[np.float32],
    y: NDArray[np.float32],
    next: NDArray[np.float32],
) -> None:
    """x, y [rows, heads * dim], b, c [rows, groups * size], dt [rows, heads].

    dt_bias, a_log, d [heads], state, next [heads, dim, size].
    """

def attention(
    q: NDArray[np.float32],
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    y: NDArray[np.float32],
) -> None:
    """q, y [rows, heads * dim], keys, values [past + rows, K/V heads, dim]."""

def route(
    logits: NDArray[np.float32],
    bias: NDArray[np.float32],
    n_groups: int,
    n_chosen_groups: int,
    normalise: bool,
    factor: float,
    ids: NDArray[np.int32],
    weights: NDArray[np.float32],
) -> None:
    """logits [rows, experts], bias [experts] -> ids, weights [rows, slots]."""

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
