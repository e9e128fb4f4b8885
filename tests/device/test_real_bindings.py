"""cuda-python itself: what the fake stands for, and our calls through it into a libcuda in C."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_cuda import FakeDriver

FOLDER = Path(__file__).parent
CALLS = [name for name in vars(FakeDriver) if name.startswith("cu")]


@pytest.fixture(scope="module")
def driver():
    try:
        from cuda.bindings import driver
    except ModuleNotFoundError:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip("cuda-bindings is not installed")
    return driver


@pytest.fixture(scope="module")
def drive(driver, tmp_path_factory):
    """Run drive_bindings.py on the libcuda of this folder; what it printed, line by line."""
    folder = tmp_path_factory.mktemp("libcuda")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "the kernels need a compiler too"
    command = [compiler, "-shared", "-fPIC", "-w", "-o", folder / "libcuda.so.1"]
    subprocess.run([*command, FOLDER / "fake_libcuda.c"], check=True)

    def run(**environment: str) -> list[str]:
        variables = os.environ | {"LD_LIBRARY_PATH": str(folder)} | environment
        command = [sys.executable, FOLDER / "drive_bindings.py"]
        return subprocess.run(
            command, env=variables, check=True, capture_output=True, text=True, timeout=60
        ).stdout.splitlines()

    return run


@pytest.mark.parametrize("name", CALLS)
def test_the_fake_takes_what_cuda_python_takes(driver, name):
    signature = re.match(rf"{name}\((.*?)\)", getattr(driver, name).__doc__ or "")
    assert signature, f"cuda-python's {name} does not say what it takes"
    n_real = len([part for part in signature[1].split(",") if part.strip()])
    assert len(inspect.signature(getattr(FakeDriver, name)).parameters) - 1 == n_real


@pytest.mark.parametrize("kind", ["CUresult", "CUdevice_attribute", "CUstreamCaptureMode"])
def test_the_fake_numbers_as_cuda_python_does(driver, kind):
    for value in getattr(FakeDriver, kind):
        assert int(getattr(getattr(driver, kind), value.name)) == value


def test_every_call_arrives_as_it_was_meant(drive):
    *lines, refused, last = drive()
    assert lines == [
        "Orin (sm 8.7, 16 SMs) (3000000000, 4000000000)",
        "copies are right: True",
        "a capture does nothing: True",
        "a launch does it: True",
        "cuStreamSynchronize: gave CUDA_ERROR_INVALID_HANDLE (400); see the kernel's log (dmesg)",
        "cuGraphExecDestroy: gave CUDA_ERROR_INVALID_HANDLE (400); see the kernel's log (dmesg)",
    ]
    assert re.fullmatch(
        r"weights: needs 10\.00 GB, 3\.00 of 4\.00 GB are free, Linux has \d+\.\d\d GB available; "
        r"free what files hold \(.*drop_caches`\), stop other programs, or compile for a smaller "
        r"context",
        refused,
    )
    assert last == "done"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("100", "DeviceError GPU: the driver sees none (CUDA_ERROR_NO_DEVICE (100));"),
        ("801", "DeviceError CUDA driver: cuInit gave CUDA_ERROR_NOT_SUPPORTED (801);"),
        ("999", "DeviceError CUDA driver: cuInit gave CUDA_ERROR_UNKNOWN (999);"),
    ],
)
def test_the_probe_reads_what_cuinit_returns(drive, code, says):
    (line,) = drive(FAKE_CUINIT=code)
    assert line.startswith(says)


def test_the_probe_reads_that_there_is_no_driver(driver, drive, tmp_path):
    try:
        driver.cuInit(0)
        pytest.skip("this machine has a driver")
    except RuntimeError:
        pass
    (line,) = drive(LD_LIBRARY_PATH=str(tmp_path))
    assert line.startswith("DeviceError CUDA driver: libcuda.so.1 is not on this machine;")
