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
from edge.features.pixels import bicubic_axis, video_grid
from edge.model.spec import ModelSpec, model_spec
from gpu_kernels.build import Compiled, compile_kernel, inner_loop, write_kernels
from gpu_kernels.launch import COLUMNS, KERNELS, ROWS, Kernel
from gpu_kernels.traffic import expert_shapes, moved_bytes

PREFILL_TOKENS = 256
FRAME = (1920, 1080)


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


def call_bytes(kernel: Kernel, spec: ModelSpec) -> int:
    """Bytes that one call moves: 1 token, or prefill of 256, or one 1080p frame."""
    return sum(moved_bytes(kernel.name, call_shapes(kernel, spec)).values())


def call_shapes(kernel: Kernel, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of the addresses of such a call."""
    d, vision = spec.decoder, spec.vision
    if kernel.function[0] == "experts":
        tokens = 1 if kernel.name.startswith("decode") else PREFILL_TOKENS
        n, k = d.hidden_size, d.expert_size
        n, k = (k, n) if "_up_" in kernel.name else (n, k)
        return expert_shapes(kernel.name, tokens, d.n_experts_per_token, d.n_experts, n, k)
    rows, columns = video_grid(*FRAME, vision.video_target_patches)
    places, side = rows * columns // vision.merge**2, vision.patch_size
    (width, height), (n_columns, n_rows) = FRAME, (columns * side, rows * side)
    axis = (height, n_rows) if kernel.name == "patchify" else (width, n_columns)
    taps = bicubic_axis(*axis)[1].shape
    shapes = {
        "pixels": (height, width if kernel.constants.get("NV12") else 3 * width),
        "chroma": (height // 2, width),
        "planes": (3, height, n_columns),
        "first": taps[:1],
        "weights": taps,
        "gain": (3,),
        "offset": (3,),
        "patches": (rows * columns, 3 * side**2),
        **dict.fromkeys(("tubelet", "before"), (places, d.hidden_size)),
        "result": (places,),
    }
    return {a: shapes[a] for a, kind in kernel.arguments.items() if kind.startswith("*")}


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
    print(json.dumps({"kernels": kernels}))
    return int(any(row["spill_bytes"] for row in kernels))


if __name__ == "__main__":
    sys.exit(main())
