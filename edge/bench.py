"""What this machine does with a bundle, beside what its memory allows: `edge bench`.

Decode reads every weight that a token meets once, so the bandwidth of memory is its limit. Both are
measured in turn, in one run: machines are noisy, their ratio is not.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge import _kernels
from edge.child import python
from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine
from edge.features.mel import log_mel
from edge.features.pixels import tubelet_patches, video_grid
from edge.model.spec import SAMPLE_RATE_HZ, DecoderSpec

READ_BYTES = 1 << 30
CONTEXT_TOKENS = 64
PREFILLS = (16, 64, 256)
CLIP_S = 30
FRAME = (720, 1280)


def bandwidth(n_threads: int, rounds: int) -> dict[str, float]:
    """Bytes a second that a plain pass over memory reads."""
    read = _reader(n_threads)
    return {"read_gb_s": round(READ_BYTES / median(_seconds(read, rounds)) / 1e9, 2)}


def decode(bundle: Bundle, n_threads: int, rounds: int) -> dict[str, float]:
    """Tokens a second of one sequence, and the share of the memory's bandwidth that they use."""
    engine = CpuEngine(bundle, n_threads)
    state = engine.new_state()
    rng = np.random.default_rng(0)
    vocab = engine.spec.decoder.vocab_size
    engine.prefill(state, engine.embed(rng.integers(0, vocab, CONTEXT_TOKENS, np.int32)))
    read = _reader(n_threads)
    spent: list[float] = []
    reads: list[float] = []
    for token in rng.integers(0, vocab, rounds):  # other tokens, other experts
        spent += _seconds(partial(engine.decode, state, int(token)), 1)
        reads += _seconds(read, 1)
    n_bytes = bytes_of_a_token(bundle.decoder_weights(), engine.spec.decoder)
    limit_s = n_bytes / (READ_BYTES / median(reads))
    return {
        "tokens_s": round(1 / median(spent), 2),
        "read_gb_s": round(READ_BYTES / median(reads) / 1e9, 2),
        "mb_a_token": round(n_bytes / 1e6, 1),
        "of_the_limit": round(limit_s / median(spent), 3),
    }


def prefill(bundle: Bundle, n_threads: int, rounds: int) -> dict[str, float]:
    """Tokens a second by the size of a prefill."""
    engine = CpuEngine(bundle, n_threads)
    rng = np.random.default_rng(0)
    found: dict[str, float] = {}
    for n in PREFILLS:
        rows = rng.standard_normal((n, engine.spec.decoder.hidden_size), np.float32)
        spent = _seconds(partial(_prefill_once, engine, rows), rounds)
        found[f"tokens_s_of_{n}"] = round(n / median(spent), 1)
    return found


def features(bundle: Bundle, n_threads: int, rounds: int) -> dict[str, float]:
    """Milliseconds of what comes before the encoders, and of the encoders."""
    engine = CpuEngine(bundle, n_threads)
    rng = np.random.default_rng(0)
    vision, n_mels = engine.spec.vision, engine.spec.audio.n_mels
    sound = rng.standard_normal(CLIP_S * SAMPLE_RATE_HZ).astype(np.float32) * 0.1
    frames = list(rng.integers(0, 256, (vision.tubelet_frames, *FRAME, 3), np.uint8))
    grid = video_grid(FRAME[1], FRAME[0], vision.video_target_patches)
    mel, patches = log_mel(sound, n_mels), tubelet_patches(frames, grid, vision)
    work: dict[str, Callable[[], object]] = {
        f"log_mel_of_{CLIP_S}_s_ms": lambda: log_mel(sound, n_mels),
        "patches_of_a_tubelet_ms": lambda: tubelet_patches(frames, grid, vision),
        "encode_a_tubelet_ms": lambda: engine.encode_tubelets(patches, grid),
        f"encode_{CLIP_S}_s_of_sound_ms": lambda: engine.encode_audio(mel),
    }
    return {name: round(1e3 * median(_seconds(call, rounds)), 2) for name, call in work.items()}


def load(bundle: Bundle, n_threads: int, rounds: int) -> dict[str, float]:
    """Seconds from a new process to its first token, and what is resident then."""
    found = [_first_token(bundle.path, n_threads) for _ in range(rounds)]
    n_bytes = sum(entry.n_bytes for entry in bundle.manifest.files.values())
    resident = median(gb for _, gb in found)
    return {
        "first_token_s": round(median(s for s, _ in found), 3),
        "resident_gb": round(resident, 3),
        "bundle_gb": round(n_bytes / 1e9, 3),
        "resident_beyond_bundle_gb": round(resident - n_bytes / 1e9, 3),
    }


BENCHES: Mapping[str, Callable[[Bundle, int, int], dict[str, float]]] = {
    "decode": decode,
    "prefill": prefill,
    "features": features,
    "load": load,
}
"""By name; `bandwidth` needs no bundle."""


def bytes_of_a_token(stored: Mapping[str, NDArray[Any]], spec: DecoderSpec) -> int:
    """Bytes of weights that one token meets: of the experts its share, of the table one row."""
    total = 0
    for name, values in stored.items():
        if ".experts_" in name:
            total += values.nbytes * spec.n_experts_per_token // spec.n_experts
        elif name == "embeddings":
            total += values.nbytes // spec.vocab_size
        else:
            total += values.nbytes
    return total


def _prefill_once(engine: CpuEngine, rows: NDArray[np.float32]) -> None:
    engine.prefill(engine.new_state(), rows)


def _reader(n_threads: int) -> Callable[[], object]:
    data = np.ones((1, READ_BYTES // 4), np.float32)
    return lambda: _kernels.amax(data, n_threads)


def _seconds(call: Callable[[], object], rounds: int) -> list[float]:
    spent = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return spent


FIRST_TOKEN = """
import time
from pathlib import Path
began = time.perf_counter()
import numpy as np
from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine
engine = CpuEngine(Bundle(Path(sys.argv[1]), check_hashes=False), int(sys.argv[2]))
engine.prefill(engine.new_state(), engine.embed(np.arange(8, dtype=np.int32)))
print(time.perf_counter() - began)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""


def _first_token(path: Path, n_threads: int) -> tuple[float, float]:
    command = python(FIRST_TOKEN, path, n_threads)
    seconds, resident = subprocess.check_output(command, text=True).split()
    return float(seconds), float(resident) * 1024 / 1e9
