"""A launch of gpu.py by cuda-python into the libcuda of tests/device: drive_bindings.py FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gpu
import numpy as np
from cuda.bindings import driver

from edge.engines.cuda import Cuda
from gpu_kernels.launch import Kernel

SUM = Kernel(
    "sum", ("", ""), {"x": "*i32", "n": "i32", "y": "*i32"}, 1, {}, lambda s: (s["n"], 2, s["z"])
)  # fmt: skip


def main(folder: Path) -> None:
    (folder / "sum.ptx").write_text("ptx")
    made = {"entry": "sum", "threads": 5, "shared_bytes": 6}
    (folder / "kernels.json").write_text(json.dumps({"sum": made}))
    gpu.KERNELS = {"sum": SUM}
    opened = gpu.Gpu(Cuda(driver), folder, flush_bytes=4096)
    function, threads, shared, _ = opened._kernels["sum"]
    opened._kernels["sum"] = (function, threads, shared, 5)  # with Triton's two
    x, y = np.arange(4, dtype=np.int32), np.zeros(4, np.int32)
    opened.launch(None, "sum", {"x": x, "n": 4, "y": y}, z=3)
    print(opened.cuda.device(), opened.cuda._call("cuDriverGetVersion"), (y - x).tolist())
    opened.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
