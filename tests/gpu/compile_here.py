"""Compile the GPU kernels for any GPU: compile_here.py FOLDER CAPABILITY DRIVER, such as 86 12080.

In a process of its own: Triton decides once whether it interprets.
"""

from __future__ import annotations

import sys
from pathlib import Path

NEWEST = {False: 88, True: 90}
"""PTX version that Triton's two assemblers take; the second is for sm 10.0 and later."""


def ptx_version(capability: int, driver: int) -> int:
    """The newest that the driver takes, times ten.

    Args:
        capability: times ten.
        driver: what cuDriverGetVersion says, such as 12080 for CUDA 12.8, whose PTX is 8.7.
    """
    major, minor = driver // 1000, driver % 1000 // 10
    is_one_behind = major == 12 and minor > 5  # CUDA 12.6 brought no new one
    return min((major - 4) * 10 + minor - is_one_behind, NEWEST[capability >= 100])


if __name__ == "__main__":
    from gpu_kernels import build

    folder, capability, driver = sys.argv[1:]
    build.BOARDS["here"] = (int(capability), ptx_version(int(capability), int(driver)))
    for name, took in build.write_kernels(Path(folder), "here").items():
        print(name, took)
