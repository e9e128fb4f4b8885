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

from gpu_kernels.launch import KERNELS
from gpu_kernels.ptx import without_scratch

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "compile_gpu_kernels.py"


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    require_triton()
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-W", "error", SCRIPT],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    last: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return last


def test_every_kernel_compiles_without_spilling(report: dict[str, Any]) -> None:
    assert [(row["kernel"], row["board"]) for row in report["kernels"]] == [
        (name, board) for board in ("orin", "thor") for name in KERNELS
    ]
    for row in report["kernels"]:
        assert row["spill_bytes"] == 0, row
        assert 0 < row["registers"] * row["threads"] <= 32768, row  # two programs a multiprocessor
        assert row["shared_bytes"] <= 48 * 1024, row  # more would have to be asked for
        assert row["target"] == {"orin": "sm_87", "thor": "sm_110a"}[row["board"]]


PTX = """.visible .entry combine(
\t.param .u64 .ptr .global .align 1 combine_param_0,
\t.param .u32 combine_param_1,
\t.param .u64 .ptr .global .align 1 combine_param_2,
\t.param .u64 .ptr .global .align 1 combine_param_3
)
.reqntid 128
{
\tld.param.b64 \t%rd4, [combine_param_0];
\tst.global.b32 \t[%rd4], 0;
)
}
"""
"""One address, one size, and Triton's two."""


def test_tensorrt_is_given_ptx_with_the_declared_arguments_only() -> None:
    lines = PTX.splitlines(keepends=True)
    kept = "".join([*lines[:2], lines[2].replace(",", ""), *lines[5:]])
    assert without_scratch(PTX, 2) == kept
    for n in (1, 3, 4):
        with pytest.raises(RuntimeError, match=f"4 parameters in PTX, not {n + 2}"):
            without_scratch(PTX, n)
    for scratch in ("combine_param_2", "combine_param_3"):
        with pytest.raises(RuntimeError, match=f"reads its scratch memory: .*{scratch}"):
            without_scratch(PTX.replace("[combine_param_0]", f"[{scratch}]"), 2)


def test_decode_kernels_wait_for_memory_not_for_themselves(report: dict[str, Any]) -> None:
    rows = [row for row in report["kernels"] if row["kernel"] == "decode_down_nvfp4"]
    assert len(rows) == 2
    for row in rows:
        assert row["issue_us"] < row["memory_us"], row


def test_the_published_model_decodes_no_faster_than_its_bytes(report: dict[str, Any]) -> None:
    floors = {(row["board"], row["recipe"]): row for row in report["decode"]}
    for row in report["published"]:
        if "this model" in row["what"]:
            assert row["tokens_s"] < floors[row["board"], "int4"]["tokens_s"], row
    # 23 layers of 6 experts of 2 x 1856 x 2688 weights of 4.5 bits
    experts = 23 * 6 * 2 * 1856 * 2688 * 4.5 / 8
    assert experts < floors["thor", "nvfp4"]["bytes_per_token"]


def test_the_launch_table_lists_inputs_then_sizes_then_outputs() -> None:
    """The order in which TensorRT passes them."""
    for kernel in KERNELS.values():
        kinds = [kind[0] for kind in kernel.arguments.values()]
        n = kernel.n_outputs
        n_sizes = kinds.count("i")
        expected = ["*"] * (len(kinds) - n - n_sizes) + ["i"] * n_sizes + ["*"] * n
        assert kinds == expected, kernel.name
        assert set(kernel.multiples_of_16) <= set(kernel.arguments)
