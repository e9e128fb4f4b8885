"""Compile the GPU kernels for Orin and Thor, without a GPU, and say what they cost.

    python scripts/compile_gpu_kernels.py                       # the report alone
    python scripts/compile_gpu_kernels.py --board thor --out gpu_kernels_thor
    python scripts/compile_gpu_kernels.py --kernels decode_up_nvfp4 prefill_up_nvfp4

Ends with 1 where a kernel spills registers. The last line is JSON. All times are arithmetic over
bytes and instructions, and nothing was measured: a floor, which no program can be faster than.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "kernels" / "gpu"))

from published_config import CONFIG, GENERATION_CONFIG

from build_engine.boards import BOARDS as MODULES
from build_engine.footprint import decode_bytes
from build_engine.recipe import load_recipe
from edge.features.pixels import video_grid
from edge.model.spec import ModelSpec, model_spec
from gpu_kernels.build import Compiled, compile_kernel, inner_loop, write_kernels
from gpu_kernels.launch import COLUMNS, KERNELS, ROWS, TILE, Kernel

PREFILL_TOKENS = 256
FRAME = (1920, 1080)
RECIPES = ("nvfp4", "w4a16", "int4")
BITS = {"nvfp4": 4.5, "int4": 4.25}


@dataclass(frozen=True)
class Board:
    """What limits a kernel: bytes by memory, instructions by the multiprocessors.

    Source: NVIDIA's data sheets; AGX Orin 64 GB has 2048 cores at 1.3 GHz, T5000 2560 at 1.57 GHz,
    128 of them a multiprocessor, which issues 4 instructions of 32 threads in a clock.
    """

    module: str
    multiprocessors: int
    clock_hz: float

    @property
    def instructions_s(self) -> float:
        """Instructions of one thread, in a second."""
        return self.multiprocessors * 4 * 32 * self.clock_hz

    @property
    def bytes_s(self) -> float:
        return float(MODULES[self.module].bandwidth_bytes_s)


BOARDS = {
    "orin": Board("agx-orin-64", 16, 1.3e9),
    "thor": Board("thor-128", 20, 1.57e9),
}
PUBLISHED = (
    ("thor", "TensorRT Edge-LLM 0.9, this model, NVFP4", 72.0, "NVIDIA's performance table, 71-73"),
    ("thor", "vLLM, this model, NVFP4", 63.3, "published by its users"),
    ("thor", "llama.cpp, this model, Q4_K_M", 61.7, "published by its users"),
    ("orin", "TensorRT Edge-LLM, Qwen3-30B-A3B, INT4", 56.7, "NVIDIA's performance table"),
    ("orin", "llama.cpp, this model, Q4_K_M", 39.1, "published by its users"),
)
"""Tokens a second of one sequence; others' figures, on the boards themselves, not measured here."""


def call_bytes(kernel: Kernel, spec: ModelSpec) -> int:
    """Bytes that one call reads and writes: 1 token, or prefill of 256, or one 1080p frame.

    A prefill is counted with every expert taken, each read once; a frame's taps once each.
    """
    d = spec.decoder
    up, down = (d.expert_size, d.hidden_size), (d.hidden_size, d.expert_size)
    decode, slots = kernel.name.startswith("decode"), d.n_experts_per_token
    pairs = slots if decode else slots * PREFILL_TOKENS
    tokens = 1 if decode else PREFILL_TOKENS
    tiles = 2 + 4 / TILE  # bytes of a hidden value of prefill, with its share of a scale
    if "FORMAT" in kernel.constants:
        n, k = up if "_up_" in kernel.name else down
        experts = slots if decode else d.n_experts
        weight = experts * n * k * BITS[str(kernel.constants["FORMAT"])] / 8
        hidden = pairs * d.expert_size * (4 if decode else tiles)
        rest = {"up": tokens * k * 2, "down": tokens * n * 2 if decode else pairs * n * 4}
        return int(weight + hidden + rest["up" if "_up_" in kernel.name else "down"])
    if kernel.name == "combine":
        return pairs * d.hidden_size * 4 + tokens * d.hidden_size * 2
    if kernel.name == "sort_pairs":
        return 8 * pairs + 4 * (d.n_experts + 1)
    vision = spec.vision
    rows, columns = video_grid(*FRAME, vision.video_target_patches)
    if kernel.name == "dissimilarity":
        return rows * columns // vision.merge**2 * (2 * 2 * d.hidden_size + 4)
    width, height = FRAME
    planes = 3 * height * columns * vision.patch_size * 4
    if kernel.name == "patchify":
        return planes + 3 * rows * columns * vision.patch_size**2 * 2
    return planes + int(width * height * (1.5 if kernel.constants["NV12"] else 3))


def instructions_per_weight(kernel: Kernel, made: Compiled, k: int) -> float:
    """Instructions of the inner loop for each weight; a row's last turn may have few."""
    fixed = kernel.constants
    if kernel.name.startswith("decode"):
        rows, columns = ROWS, fixed["BLOCK"] * COLUMNS[str(fixed["FORMAT"])]
    else:
        rows, columns = fixed["BLOCK_N"], fixed["BLOCK_K"]
    turns = -(-k // columns)
    issued: float = inner_loop(made.cubin) * made.resources.threads * turns / (rows * k)
    return issued


def kernel_row(name: str, board: str, made: Compiled, spec: ModelSpec) -> dict[str, Any]:
    """One line of the report; without times where this model cannot have such a weight."""
    kernel, limits, d = KERNELS[name], BOARDS[board], spec.decoder
    row = {"kernel": name, "board": board, **asdict(made.resources), "target": made.target}
    if "_down_int4" in name and d.expert_size % COLUMNS["int4"]:
        return row
    n_bytes = call_bytes(kernel, spec)
    row |= {"bytes": n_bytes, "memory_us": n_bytes / limits.bytes_s * 1e6}
    if "FORMAT" in kernel.constants:
        k = d.hidden_size if "_up_" in name else d.expert_size
        per_weight = instructions_per_weight(kernel, made, k)
        experts = d.n_experts_per_token if name.startswith("decode") else d.n_experts
        count = experts * d.expert_size * d.hidden_size
        row |= {
            "instructions_per_weight": per_weight,
            "issue_us": count * per_weight / limits.instructions_s * 1e6,
        }
    return row


def decode_rows(spec: ModelSpec) -> list[dict[str, Any]]:
    """The whole model's decode, by memory alone, for an empty context."""
    rows = []
    for board, limits in BOARDS.items():
        for recipe in RECIPES:
            n_bytes = decode_bytes(spec.decoder, load_recipe(recipe))
            rows.append(
                {
                    "board": board, "recipe": recipe, "bytes_per_token": n_bytes,
                    "floor_ms": n_bytes / limits.bytes_s * 1e3,
                    "tokens_s": limits.bytes_s / n_bytes,
                }
            )  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--board", choices=BOARDS, help="this board only")
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--out", type=Path, help="write PTX, cubin and kernels.json; needs --board")
    options = parser.parse_args()
    spec = model_spec(CONFIG, GENERATION_CONFIG)
    if options.out:
        if not options.board:
            parser.error("--out needs --board")
        write_kernels(options.out, options.board)
    kernels = []
    print(
        f"{'kernel':<20} {'board':<5} {'target':<8} regs spill shared threads "
        "MB/call  memory us  instr/weight  issue us"
    )
    for board in [options.board] if options.board else list(BOARDS):
        for name in options.kernels:
            row = kernel_row(name, board, compile_kernel(KERNELS[name], board), spec)
            kernels.append(row)
            times = f"{row['bytes'] / 1e6:7.2f} {row['memory_us']:10.1f}" if "bytes" in row else ""
            if "issue_us" in row:
                times += f" {row['instructions_per_weight']:13.2f} {row['issue_us']:9.1f}"
            print(
                f"{name:<20} {board:<5} {row['target']:<8} {row['registers']:4d} "
                f"{row['spill_bytes']:5d} {row['shared_bytes']:6d} {row['threads']:7d} "
                f"{times}",
                flush=True,
            )
    floors = decode_rows(spec)
    print("\ndecode of the whole model: floor by memory, and what others published")
    for row in floors:
        print(
            f"{row['board']:<5} {row['recipe']:<6} {row['bytes_per_token'] / 1e9:6.3f} GB "
            f"{row['floor_ms']:6.2f} ms  at most {row['tokens_s']:6.1f} tokens/s"
        )
    for board, what, speed, source in PUBLISHED:
        print(f"{board:<5} {what}: {speed} tokens/s ({source})")
    print(
        json.dumps(
            {
                "kernels": kernels,
                "decode": floors,
                "published": [
                    {"board": b, "what": w, "tokens_s": t, "source": s} for b, w, t, s in PUBLISHED
                ],
            }
        )
    )
    return int(any(row["spill_bytes"] for row in kernels))


if __name__ == "__main__":
    sys.exit(main())
