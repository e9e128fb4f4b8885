"""How fast frames become patches and sound becomes log-mel, beside others in one run.

    python scripts/bench_features.py [--threads 2] [--rounds 25]

Needs scipy, which the extra `oracle` brings. The comparison with transformers' processor also needs
that extra's transformers and torch, torchvision and pillow, and is left out without them. Every
round runs each side once, in turn; the table shows medians; the last line is JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.fft

from edge.features.mel import LogMelStream, log_mel, mel_filter_bank
from edge.features.pixels import image_patches
from edge.model.spec import SAMPLE_RATE_HZ, VisionSpec
from edge.types import Float32, UInt8

N_MELS = 128
FRAME = (720, 1280)
HOUR_S, CLIP_S = 3600, 30
BLOCK = SAMPLE_RATE_HZ // 10
# Patches at most, and the grid that the processor then chooses: its default, and a small one.
LIMITS = {(46, 80): {}, (18, 32): {"min_num_patches": 256, "max_num_patches": 576}}
SPEC = VisionSpec(
    hidden_size=1280,
    n_layers=32,
    n_heads=16,
    mlp_size=5120,
    patch_size=16,
    position_grid=128,
    n_prefix_tokens=10,
    projector_size=20480,
    norm_mean=(0.48145466, 0.4578275, 0.40821073),
    norm_std=(0.26862954, 0.26130258, 0.27577711),
    min_patches=1024,
    max_patches=13312,
    video_target_patches=1024,
    tubelet_frames=2,
    video_pruning_rate=0.7,
)
Sides = dict[str, Callable[[], Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()

    print(f"{options.threads} threads, medians of {options.rounds} interleaved rounds\n")
    print(f"{'':<34}{'other ms':>10}{'ours ms':>10}{'ratio':>8}{'largest difference':>21}")
    figures = {
        "threads": options.threads,
        "rounds": options.rounds,
        "log_mel_30_s": bench_log_mel(options.threads, options.rounds),
        "frame_to_patches": bench_patches(options.threads, options.rounds),
        "append_100_ms": bench_append(),
    }
    print(f"\n{json.dumps(figures)}")


def bench_log_mel(n_threads: int, n_rounds: int) -> dict[str, float]:
    """30 s beside scipy's float32 transform and a dense product."""
    samples = noise(CLIP_S)
    bank = np.ascontiguousarray(mel_filter_bank(N_MELS).T)
    window = np.pad(np.hanning(400), 56).astype(np.float32)

    def with_scipy() -> Float32:
        emphasised = samples.copy()
        emphasised[1:] -= np.float32(0.97) * samples[:-1]
        padded = np.pad(emphasised, 256)
        frames = np.lib.stride_tricks.sliding_window_view(padded, 512)[::160][:-1] * window
        spectrum = scipy.fft.rfft(frames, axis=1, workers=n_threads)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32, copy=False)
        log = np.log(power @ bank + np.float32(2**-24))
        mel: Float32 = (log - log.mean(0)) / (log.std(0, ddof=1) + np.float32(1e-5))
        return mel

    sides: Sides = {
        "scipy": with_scipy,
        "omni_edge": lambda: log_mel(samples, N_MELS, n_threads),
    }
    return row("log-mel of 30 s, scipy float32", sides, n_rounds)


def bench_patches(n_threads: int, n_rounds: int) -> dict[str, Any]:
    """A 1280x720 frame beside transformers' processor."""
    missing = [
        name
        for name in ("torch", "torchvision", "transformers", "PIL")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        print(f"frame to patches: left out, there is no {', '.join(missing)}")
        return {}
    processor_of = transformers_processor(n_threads)
    y, x, c = np.ogrid[: FRAME[0], : FRAME[1], :3]
    frame = ((37 * y + 61 * x + 89 * c + x * y // 64) % 256).astype(np.uint8)
    rows = {}
    for grid, limits in LIMITS.items():
        process = processor_of(limits)

        def ours(grid: tuple[int, int] = grid) -> Float32:
            return image_patches(frame, grid, SPEC, n_threads)

        def other(process: Callable[[UInt8], Float32] = process) -> Float32:
            return process(frame)

        size = f"{16 * grid[1]}x{16 * grid[0]}"
        sides: Sides = {"transformers": other, "omni_edge": ours}
        rows[size] = row(f"1280x720 to {size}, transformers", sides, n_rounds)
    return rows


def transformers_processor(n_threads: int) -> Callable[[dict[str, int]], Any]:
    """limits -> (frame -> patches)."""
    import torch

    # Of another build than torch's, torchvision lacks its compiled operators, and announcing their
    # shapes fails; the processor needs none of them.
    register_fake = torch.library.register_fake

    def register(op: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::"):
            return lambda function: function
        return register_fake(op, *args, **kwargs)

    torch.library.register_fake = register  # type: ignore[assignment]
    torch.set_num_threads(n_threads)
    from transformers.models.nemotron_h_omni.image_processing_nemotron_h_omni import (
        NemotronH_Omni_Reasoning_V3ImageProcessor as Processor,
    )

    def processor(limits: dict[str, int]) -> Callable[[UInt8], Float32]:
        process = Processor(**limits)

        def patches(frame: UInt8) -> Float32:
            pixels = torch.from_numpy(frame).permute(2, 0, 1)
            found: Float32 = process(pixels, return_tensors="pt")["pixel_values"].numpy()
            return found

        return patches

    return processor


def bench_append() -> dict[str, float]:
    """100 ms to a stream that has heard an hour, beside a new one: a clip of each."""
    old, new = LogMelStream(N_MELS), LogMelStream(N_MELS)
    for _ in range(HOUR_S // CLIP_S):
        old.push(noise(CLIP_S))
    block = noise(1)[:BLOCK]
    sides: Sides = {
        "after_an_hour": lambda: old.push(block),
        "at_the_start": lambda: new.push(block),
    }
    n_rounds = CLIP_S * 10 - 2  # one warms up; a full clip's normalisation is not an append
    return row("append 100 ms, after an hour / new", sides, n_rounds)


def row(name: str, sides: Sides, n_rounds: int, tolerance: float = 1e-3) -> dict[str, float]:
    """Time two sides in turn, print and return medians, first / second, largest difference."""
    first, second = sides
    difference = largest_difference(sides[first](), sides[second]())  # also warms both up
    if difference > tolerance:
        raise SystemExit(f"{name}: the results differ by {difference:.1e}, more than {tolerance}")
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(n_rounds):
        for side, run in sides.items():
            start = time.perf_counter()
            run()
            times[side].append(1e3 * (time.perf_counter() - start))
    median = {side: statistics.median(values) for side, values in times.items()}
    ratio = median[first] / median[second]
    times_ms = f"{median[first]:>10.3f}{median[second]:>10.3f}"
    print(f"{name:<34}{times_ms}{ratio:>8.2f}{difference:>21.1e}", flush=True)
    figures = {f"{side}_ms": round(value, 4) for side, value in median.items()}
    return {**figures, "ratio": round(ratio, 2), "largest_difference": difference}


def largest_difference(one: Any, other: Any) -> float:
    """Of two arrays, or of two equally long lists of them."""
    pairs = zip(one, other, strict=True)
    return max((float(np.abs(mine - theirs).max()) for mine, theirs in pairs), default=0.0)


def noise(seconds: int) -> Float32:
    return np.random.default_rng(0).normal(0, 0.1, seconds * SAMPLE_RATE_HZ).astype(np.float32)


if __name__ == "__main__":
    main()
