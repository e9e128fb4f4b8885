"""`make test-gpu`: on a CUDA GPU of compute capability 8.0 or later, at the published sizes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import checks
import msgspec
import pytest
from gpu import Gpu
from published_config import CONFIG, GENERATION_CONFIG

from edge import board_report, demo
from edge.engines.choose import open_cuda
from edge.errors import EdgeError
from edge.model.spec import model_spec
from gpu_kernels.launch import COLUMNS, FORMATS, KERNELS

SPEC = model_spec(CONFIG, GENERATION_CONFIG)
SMALLEST_CAPABILITY = (8, 0)
FRAME, PREFILL_TOKENS = (1920, 1080), 256
"""As the report of scripts/compile_gpu_kernels.py counts bytes."""


def width_of(name: str) -> int:
    """Of an expert: the published one, rounded up to what the format takes."""
    return -(-SPEC.decoder.expert_size // COLUMNS[name]) * COLUMNS[name]


def sizes_of(name: str) -> checks.Sizes:
    d, vision = SPEC.decoder, SPEC.vision
    return checks.Sizes(
        *(d.n_experts, d.n_experts_per_token, d.hidden_size, width_of(name), PREFILL_TOKENS),
        *(FRAME, vision.video_target_patches, vision.patch_size),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels, compiled for the GPU that is here."""
    try:
        cuda = open_cuda()
    except EdgeError as error:
        pytest.skip(f"needs a CUDA GPU: {error}")
    device, driver = cuda.device(), cuda._call("cuDriverGetVersion")
    cuda.close()
    print(f"\n{device}, driver {driver}")
    capability = tuple(map(int, device.compute_capability.split(".")))
    if capability < SMALLEST_CAPABILITY:
        pytest.skip(f"needs a GPU of sm 8.0 or later, here is {device}")
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs triton, which compiles the kernels: make .venv/.dev")
    made = tmp_path_factory.mktemp("kernels")
    script = Path(__file__).with_name("compile_here.py")
    words = (script, made, 10 * capability[0] + capability[1], driver)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    run = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return made


@pytest.fixture(scope="module")
def gpu(folder: Path) -> Iterator[Gpu]:
    opened = Gpu(open_cuda(), folder)
    opened.is_timed = True
    yield opened
    opened.close()


@pytest.mark.parametrize("way", ["decode", "prefill"])
@pytest.mark.parametrize("name", FORMATS)
def test_experts(gpu: Gpu, name: str, way: str) -> None:
    error = checks.check_experts(gpu, name, way, sizes_of(name))
    print(f"{name} {way}: {error:.1e} of the largest value from the CPU's kernels")


def test_frames(gpu: Gpu) -> None:
    checks.check_frames(gpu, sizes_of("nvfp4"))


def test_a_chain_in_a_cuda_graph(gpu: Gpu) -> None:
    checks.check_graph(gpu, sizes_of("nvfp4"))


def test_share_of_the_memory_s_bandwidth(gpu: Gpu) -> None:
    """After all others: prints what they took."""
    import compile_gpu_kernels as counted  # and with it Triton, not to interpret

    assert (counted.FRAME, counted.PREFILL_TOKENS) == (FRAME, PREFILL_TOKENS)
    most = gpu.copied_bytes_s()
    print(f"\na copy reaches {most / 1e9:.0f} GB/s")
    rows = {}
    for name, kernel in KERNELS.items():
        if name not in gpu.seconds:
            continue  # only that test was asked for
        wider = msgspec.structs.replace(
            SPEC.decoder, expert_size=width_of(str(kernel.constants.get("FORMAT", "nvfp4")))
        )
        n_bytes = counted.call_bytes(kernel, msgspec.structs.replace(SPEC, decoder=wider))
        share = n_bytes / gpu.seconds[name] / most
        rows[name] = {"us": gpu.seconds[name] * 1e6, "mb": n_bytes / 1e6, "share": share}
        print(f"{name:20} {rows[name]['us']:9.1f} us {rows[name]['mb']:8.2f} MB {share:7.1%}")
        assert 0 < share < 1.1, "more than memory gives: it did not run, or is timed wrongly"
    print(json.dumps({"copy_gb_s": most / 1e9, "kernels": rows}))


def test_the_tensorrt_engine(folder: Path, tmp_path: Path) -> None:
    """The steps of a board's report that are about plans, without kernels and with."""
    spec = importlib.util.find_spec("tensorrt")
    if spec is None or spec.origin is None:  # a folder of type stubs
        pytest.skip("needs TensorRT 10.9 or later, with its Python module")
    wanted = ("quantize", "bundle", "GPU", "compile", "verify", "kernels")
    steps = board_report.steps(demo.files().checkpoint, tmp_path, folder)
    for result in board_report.carried_out(
        step for step in steps if step.name in wanted or step.name.endswith("with them")
    ):
        print(f"{result.verdict:9} {result.name:18} {result.seconds:.1f} s")
        print(*result.output, sep="\n")
        assert result.verdict == "ok", result
