"""The checks that a GPU is given, on a fake one: that they pass there, and find what is wrong."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checks
import numpy as np
import pytest
from compile_here import ptx_version
from fake_cuda import Misuse
from fake_kernels import KernelDriver, write_folder
from gpu import Gpu
from gpu_interpreter import require_triton
from needed import must_be

from edge.engines.cuda import Cuda
from gpu_kernels.launch import FORMATS, KERNELS

HERE = Path(__file__).resolve().parent
SMALL = checks.Sizes(3, 2, 128, 128, 5, (30, 22), 8, 4)


@pytest.fixture
def gpu(tmp_path: Path) -> Iterator[Gpu]:
    require_triton()
    write_folder(tmp_path)
    driver = KernelDriver()
    opened = Gpu(Cuda(driver), tmp_path, flush_bytes=4096)
    yield opened
    opened.close()
    assert driver.leaks() == {}


def driver_of(gpu: Gpu) -> KernelDriver:
    driver = gpu.cuda._driver
    assert isinstance(driver, KernelDriver)
    return driver


@pytest.mark.parametrize("way", ["decode", "prefill"])
@pytest.mark.parametrize("name", FORMATS)
def test_experts(gpu: Gpu, name: str, way: str) -> None:
    assert checks.check_experts(gpu, name, way, SMALL) > 0


def test_frames(gpu: Gpu) -> None:
    checks.check_frames(gpu, SMALL)


def test_a_chain_in_a_graph(gpu: Gpu) -> None:
    checks.check_graph(gpu, SMALL)
    log = driver_of(gpu).log
    assert log.count("launch") == 3, "replayed"
    assert log.count("decode_up_nvfp4") == 4, "captured once, and once for each comparison"


def test_what_takes_how_long_is_measured(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every kernel, by the names that the report looks for."""
    monkeypatch.setattr("gpu.N_TIMED", 1)
    monkeypatch.setattr("gpu.N_REPEATS", 1)
    gpu.is_timed = True
    for name in FORMATS:
        for way in ("decode", "prefill"):
            checks.check_experts(gpu, name, way, SMALL)
    checks.check_frames(gpu, SMALL)
    assert gpu.seconds.keys() == KERNELS.keys()
    assert gpu.copied_bytes_s() > 0


class Wrong(KernelDriver):
    """Of one kernel the first output is a little off."""

    def __init__(self, kernel: str) -> None:
        super().__init__()
        self.kernel = kernel

    def cuLaunchKernel(self, function: str, *rest: Any) -> tuple[Any]:  # noqa: N802
        code = super().cuLaunchKernel(function, *rest)
        if function == self.kernel:
            values, _ = rest[-2]
            output = values[len(KERNELS[function].arguments) - KERNELS[function].n_outputs]
            kind = [*KERNELS[function].arguments.values()][-KERNELS[function].n_outputs]

            def spoil() -> None:
                block, part = self.span(output, 1)
                values = block.values[part.start :].view(
                    {"*fp16": np.float16, "*fp32": np.float32, "*i32": np.int32}[kind]
                )
                values[-1] += values.dtype.type(max(1, abs(values[-1]) / 50))

            self.give(rest[7], "spoil", spoil)
        return code


@pytest.mark.parametrize("kernel", [name for name in KERNELS if "int4" not in name])
def test_a_kernel_that_is_wrong_is_found(tmp_path: Path, kernel: str) -> None:
    require_triton()
    write_folder(tmp_path)
    gpu = Gpu(Cuda(Wrong(kernel)), tmp_path, flush_bytes=4096)

    def all_of_them() -> None:
        for way in ("decode", "prefill"):
            checks.check_experts(gpu, "nvfp4", way, SMALL)
        checks.check_frames(gpu, SMALL)

    with pytest.raises(AssertionError) as found:
        all_of_them()
    assert not isinstance(found.value, Misuse)


def test_a_launch_arrives_in_c_as_it_was_meant(tmp_path: Path) -> None:
    must_be(importlib.util.find_spec("cuda") is not None, "needs cuda-bindings: make .venv/.dev")
    source = HERE.parent / "device" / "fake_libcuda.c"
    command = ["cc", "-shared", "-fPIC", "-w", "-o", tmp_path / "libcuda.so.1", source]
    subprocess.run(command, check=True)
    found = subprocess.run(
        [sys.executable, HERE / "drive_bindings.py", tmp_path],
        env=os.environ
        | {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    # grid (4, 2, 3), block (5, 1, 1), 6 bytes shared
    launched = 4 + 10 * 2 + 100 * 3 + 1000 * 5 + 10000 + 100000 + 6 * 1000000
    said = f"Orin (sm 8.7, 16 SMs) 13000 {[launched] * 4}\n"
    assert (found.stdout, found.stderr) == (said, "")


@pytest.mark.parametrize(
    ("capability", "driver", "expected"),
    [(80, 11080, 78), (86, 12040, 84), (89, 12060, 85), (90, 12080, 87), (87, 13020, 88),
     (100, 12090, 88), (110, 13000, 90), (121, 13020, 90)],
)  # fmt: skip
def test_ptx_that_the_driver_takes(capability: int, driver: int, expected: int) -> None:
    assert ptx_version(capability, driver) == expected
