"""Kernels compiled ahead of time on a machine without a GPU: PTX and cubin for each board.

The device's driver compiles a plugin's PTX, so that its version must not be newer than the driver:
8.8 (CUDA 12.9) for Orin, 9.0 (CUDA 13.0) for Thor; JetPack 7.2 has CUDA 13.2 on both.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from gpu_kernels.launch import KERNELS, Kernel
from gpu_kernels.ptx import without_scratch

BOARDS = {"orin": (87, 88), "thor": (110, 90)}
"""Compute capability, and the PTX version that its JetPack's driver takes, times ten."""


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes.

    Args:
        registers: of a thread.
        spill_bytes: stored to and loaded from memory for want of registers.
        shared_bytes: of a program.
        threads: of a program.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    threads: int


@dataclass(frozen=True)
class Compiled:
    """One kernel for one board."""

    entry: str
    target: str
    ptx: str
    cubin: bytes
    resources: Resources


def compile_kernel(kernel: Kernel, board: str) -> Compiled:
    """Compile one kernel.

    Raises:
        RuntimeError: the PTX is not what the launch table says, ptxas refuses it, or makes other
            machine code of it than of Triton's own.
    """
    capability, ptx_version = BOARDS[board]
    module, name = kernel.function
    function = getattr(importlib.import_module(f"gpu_kernels.{module}"), name)
    signature = dict.fromkeys(function.arg_names, "constexpr") | dict(kernel.arguments)
    aligned = [
        ((function.arg_names.index(argument),), [["tt.divisibility", 16]])
        for argument, kind in kernel.arguments.items()
        if (kind.startswith("*") and argument not in kernel.any_address)
        or argument in kernel.multiples_of_16
    ]
    source = ASTSource(
        function, signature=signature, constexprs=dict(kernel.constants), attrs=dict(aligned)
    )
    options = {
        "num_warps": kernel.num_warps,
        "num_stages": kernel.num_stages,
        "ptx_version": ptx_version,
        # Said, because Triton's default changes: products and sums become one rounding.
        "enable_fp_fusion": True,
    }
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    if made.metadata.global_scratch_size or made.metadata.profile_scratch_size:
        raise RuntimeError(f"{kernel.name}: needs scratch memory, which no launch gives it")
    ptx = without_scratch(made.asm["ptx"], len(kernel.arguments))
    found = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{kernel.name}: its PTX names no target")
    cubin, log = _assembled(ptx, capability, found[1])
    if machine_code(cubin) != machine_code(made.asm["cubin"]):
        raise RuntimeError(f"{kernel.name}: is other code without Triton's scratch parameters")
    resources = Resources(
        registers=int(_number(r"Used (\d+) registers", log)),
        spill_bytes=sum(int(n) for n in re.findall(r"(\d+) bytes spill", log)),
        shared_bytes=made.metadata.shared,
        threads=32 * kernel.num_warps,
    )
    return Compiled(made.metadata.name, found[1], ptx, cubin, resources)


def write_kernels(folder: Path, board: str) -> dict[str, Resources]:
    """Compile all kernels for one board into a folder: NAME.ptx, NAME.cubin and kernels.json.

    kernels.json says of each kernel its entry point, threads and shared memory, which with
    `launch.KERNELS` is all that a launch needs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    resources, table = {}, {}
    for name, kernel in KERNELS.items():
        made = compile_kernel(kernel, board)
        (folder / f"{name}.ptx").write_text(made.ptx)
        (folder / f"{name}.cubin").write_bytes(made.cubin)
        resources[name] = made.resources
        table[name] = {"entry": made.entry, "target": made.target, **asdict(made.resources)}
    (folder / "kernels.json").write_text(json.dumps(table, indent=1) + "\n")
    return resources


def machine_code(cubin: bytes) -> list[str]:
    """Instructions and labels, a line each, by Triton's own disassembler."""
    nvdisasm = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = subprocess.run(
            [nvdisasm, "-c", file.name], capture_output=True, text=True, check=True
        )
    lines = (line.strip() for line in run.stdout.splitlines())
    return [line for line in lines if re.match(r"\.L_x_\d+:|/\*[0-9a-f]{4,}\*/", line)]


def inner_loop(cubin: bytes) -> int:
    """Instructions of the longest loop that has no loop in it.

    Of the machine code: a loop is a jump to a label above it.
    """
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    n = 0
    for line in machine_code(cubin):
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = n
        else:
            n += 1
            jump = re.search(r"BRA.*?(\.L_x_\d+)", line)
            if jump and jump[1] in labels:
                loops.append((labels[jump[1]], n))
    inner = [
        end - begin
        for begin, end in loops
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in loops)
    ]
    return max(inner)


def _assembled(ptx: str, capability: int, target: str) -> tuple[bytes, str]:
    """PTX -> cubin, and what ptxas says of registers and spills.

    Raises:
        RuntimeError: ptxas refuses the PTX.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        options = ["-v", "--regAllocOptLevel=2", f"--gpu-name={target}", "-", "-o", file.name]
        run = subprocess.run(
            [get_ptxas(capability).path, *options],
            input=ptx,
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise RuntimeError(f"ptxas refuses the PTX for {target}: {run.stderr}")
        return Path(file.name).read_bytes(), run.stderr


def _number(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"ptxas said nothing like {pattern!r}: {text}")
    return found[1]
