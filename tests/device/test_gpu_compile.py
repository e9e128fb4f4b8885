"""The kernels compile for both boards without spilling; the compiler says so, nothing runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gpu_interpreter import require_triton

from gpu_kernels.launch import KERNELS, SCRATCH_ARGUMENTS

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "compile_gpu_kernels.py"
# One of each kind; the script without arguments compiles all.
FAST = ["decode_down_nvfp4", "prefill_up_nvfp4", "prefill_down_int4", "resize_width_nv12"]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    require_triton()
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT, "--kernels", *FAST],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    last: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return last


def test_no_kernel_spills(report: dict[str, Any]) -> None:
    assert [(row["kernel"], row["board"]) for row in report["kernels"]] == [
        (name, board) for board in ("orin", "thor") for name in FAST
    ]
    for row in report["kernels"]:
        assert row["spill_bytes"] == 0, row
        assert 0 < row["registers"] * row["threads"] <= 32768, row  # two programs a multiprocessor
        assert row["shared_bytes"] <= 48 * 1024, row  # more would have to be asked for
        assert row["target"] == {"orin": "sm_87", "thor": "sm_110a"}[row["board"]]


def test_decode_kernels_wait_for_memory_not_for_themselves(report: dict[str, Any]) -> None:
    rows = [row for row in report["kernels"] if row["kernel"] == "decode_down_nvfp4"]
    assert len(rows) == 2
    for row in rows:
        assert row["issue_us"] < row["memory_us"], row


def test_the_launch_table_lists_inputs_then_sizes_then_outputs() -> None:
    """The order in which TensorRT passes them."""
    assert SCRATCH_ARGUMENTS == 2
    for kernel in KERNELS.values():
        kinds = [kind[0] for kind in kernel.arguments.values()]
        n = kernel.n_outputs
        n_sizes = kinds.count("i")
        expected = ["*"] * (len(kinds) - n - n_sizes) + ["i"] * n_sizes + ["*"] * n
        assert kinds == expected, kernel.name
        assert set(kernel.multiples_of_16) <= set(kernel.arguments)
