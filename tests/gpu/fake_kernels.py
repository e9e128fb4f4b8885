"""A fake GPU that runs kernels in Triton's interpreter, on the memory at the given addresses."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
from fake_cuda import CUresult, FakeDriver, Misuse
from gpu_interpreter import Tensor, interpreted

from gpu_kernels.launch import ALIGNMENT_BYTES, KERNELS

THREADS, SHARED_BYTES = 64, 128
DTYPES = {"fp16": np.float16, "fp32": np.float32, "i32": np.int32, "u32": np.uint32, "u8": np.uint8}
N_SCRATCH = 2


class KernelDriver(FakeDriver):
    """The driver's calls for modules and kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.modules = interpreted()

    def cuDriverGetVersion(self) -> tuple[Any, int]:  # noqa: N802
        return CUresult.CUDA_SUCCESS, 13020

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, str]:  # noqa: N802
        if not image.endswith(b"\0"):
            raise Misuse("PTX without its end")
        return CUresult.CUDA_SUCCESS, image.decode().split()[1]

    def cuModuleGetFunction(self, module: str, name: bytes) -> tuple[Any, str]:  # noqa: N802
        if name != f"entry_{module}".encode():
            raise Misuse(f"{module} has no {name!r}")
        return CUresult.CUDA_SUCCESS, module

    def cuLaunchKernel(  # noqa: N802
        self, function: str, x: int, y: int, z: int, bx: int, by: int, bz: int,
        shared: int, stream: int, parameters: Any, extra: Any,
    ) -> tuple[Any]:  # fmt: skip
        kernel, (values, kinds) = KERNELS[function], parameters
        if (bx, by, bz, shared, extra) != (THREADS, 1, 1, SHARED_BYTES, 0):
            raise Misuse("not the block that was compiled")
        declared = [*kernel.arguments.values(), *["*"] * N_SCRATCH]
        wanted = [ctypes.c_void_p if kind[0] == "*" else ctypes.c_int for kind in declared]
        if kinds != tuple(wanted) or any(values[len(kernel.arguments) :]):
            raise Misuse(f"parameters of {kinds}")

        def work() -> None:
            given: dict[str, Any] = {}
            n_read = len(kernel.arguments) - kernel.n_outputs
            for i, (name, kind) in enumerate(kernel.arguments.items()):
                value = values[i]
                if kind[0] == "*":
                    block, part = self.span(value, 1)
                    if i < n_read and not block.written.all():
                        raise Misuse(f"{function} reads {name} before it is written")
                    if name not in kernel.any_address and value % ALIGNMENT_BYTES:
                        raise Misuse(f"{name} lies at {value:#x}")
                    block.written[:] = True
                    value = Tensor(block.values[part.start :].view(DTYPES[kind[1:]]))
                given[name] = value
            module, name = kernel.function
            getattr(self.modules[module], name)[x, y, z](**given, **kernel.constants)

        self.give(stream, function, work)
        return (self._code("cuLaunchKernel"),)


def write_folder(folder: Path) -> None:
    """What `build.write_kernels` writes, as far as a launch reads it."""
    table = {}
    for name, kernel in KERNELS.items():
        n_parameters = len(kernel.arguments) + N_SCRATCH
        parameters = ",\n".join("    .param .u64 p" for _ in range(n_parameters))
        (folder / f"{name}.ptx").write_text(f"// {name}\n.entry entry_{name}(\n{parameters}\n)\n")
        made = {"threads": THREADS, "shared_bytes": SHARED_BYTES}
        table[name] = {"entry": f"entry_{name}", **made}
    (folder / "kernels.json").write_text(json.dumps(table))
