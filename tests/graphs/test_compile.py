"""Every graph through TensorRT's own parser and builder, for GPUs of the targets' generations.

TensorRT-RTX compiles ahead of time, without a GPU or a driver. Nothing is executed: a pass says
that a graph is well formed, strongly typed, and has kernels for SM86 (for Orin) or SM121 (Thor).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from graphs.random_decoder import divisible_checkpoint

from build_engine import cli, plans
from build_engine.checkpoint import Checkpoint
from build_engine.compile import Built, Order, compile_graph
from build_engine.decoder_layout import recipe_layout
from build_engine.graphs.decoder import DEVICE, DEVICE_FP8, Precision, decoder_model
from build_engine.graphs.onnx_ops import Graph
from build_engine.isolated import compile_isolated
from build_engine.profiles import decoder_profiles
from build_engine.recipe import load_recipe
from edge.engines.bundle import Bundle, Plans
from edge.engines.cpu import CpuEngine
from edge.errors import BundleError, ConfigurationError

RECIPES = [
    ("orin", "bf16"),
    ("orin", "int4"),
    ("orin", "w4a16"),
    ("orin", "w4a16-all"),
    ("thor", "bf16"),
    ("thor", "fp8"),
    ("thor", "nvfp4"),
    ("thor", "nvfp4-all"),
]


@pytest.fixture(scope="session")
def tensorrt_rtx() -> ModuleType:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        why = "needs TensorRT-RTX: make .venv/.dev"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return importlib.import_module("tensorrt_rtx")


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return divisible_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def no_progress(done: int, total: int) -> None:
    """Builds in tests are silent."""


def order(checkpoint: Checkpoint, recipe: str, precision: Precision, folder: Path) -> Order:
    spec = checkpoint.spec.decoder
    model = decoder_model(spec, recipe_layout(spec, load_recipe(recipe)), precision)
    path = folder / "decoder.onnx"
    path.write_bytes(model.SerializeToString())
    return Order("decoder", path, folder / "decoder.plan", decoder_profiles(spec, 512), "SM86")


@pytest.mark.usefixtures("tensorrt_rtx")
@pytest.mark.parametrize(("target", "recipe"), RECIPES)
def test_the_decoder_of_every_recipe_compiles(
    sized: Checkpoint, tmp_path: Path, target: str, recipe: str
) -> None:
    made = order(sized, recipe, plans.TARGETS[target].precision, tmp_path)
    (built,) = plans.check([made], plans.TARGETS[target], lambda *_: None)
    assert built.profiles == ("decode", "prefill")
    assert built.n_bytes == made.plan.stat().st_size
    # kernels and small tables, no weight: a plan with them would pass it
    assert built.n_bytes < 20e6


@pytest.mark.usefixtures("tensorrt_rtx")
def test_a_bundle_is_checked_and_left_as_it_was(
    bundle: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = bundle("wide")
    before = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    assert cli.main(["compile", str(path), "--target", "thor", "--check", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert list(figures) == ["decoder", "vision", "audio"]
    assert all(figure["n_warnings"] == 0 for figure in figures.values())
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == before


def refusal(trt: ModuleType, made: Order) -> str:
    with pytest.raises(BundleError) as caught:
        compile_graph(trt, made, no_progress)
    assert not made.plan.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def small_order(graph: Graph, folder: Path) -> Order:
    path = folder / "small.onnx"
    path.write_bytes(graph.model("small").SerializeToString())
    return Order("small", path, folder / "small.plan", [], "SM86")


def test_a_type_that_the_gpu_lacks_is_refused(
    tensorrt_rtx: ModuleType, sized: Checkpoint, tmp_path: Path
) -> None:
    said = refusal(tensorrt_rtx, order(sized, "fp8", DEVICE_FP8, tmp_path))
    assert "decoder.onnx" in said
    assert "fp8_e4m3" in said


def test_a_warning_is_refused(tensorrt_rtx: ModuleType, tmp_path: Path) -> None:
    graph = Graph()
    graph.output(graph.op("Relu", graph.input("x", np.float32, [4])), "y", np.float32, [4])
    graph.input("forgotten", np.float32, [4])
    assert "Unused Input: forgotten" in refusal(tensorrt_rtx, small_order(graph, tmp_path))


def test_a_graph_that_does_not_parse_is_named(tensorrt_rtx: ModuleType, tmp_path: Path) -> None:
    graph = Graph()
    x = graph.input("x", np.int32, [4])
    graph.output(graph.op("BitShift", x, x, direction="LEFT"), "y", np.int32, [4])
    said = refusal(tensorrt_rtx, small_order(graph, tmp_path))
    assert "small.onnx: does not parse at BitShift BitShift_0" in said


def test_every_operator_that_lacks_its_plugin_is_named(
    tensorrt_rtx: ModuleType, sized: Checkpoint, tmp_path: Path
) -> None:
    made = order(sized, "nvfp4", DEVICE, tmp_path)
    layout = recipe_layout(sized.spec.decoder, load_recipe("nvfp4"))
    model = decoder_model(sized.spec.decoder, layout, DEVICE, kernels=True)
    made.onnx.write_bytes(model.SerializeToString())
    kernels = "edge::combine, edge::prefill_down_nvfp4, edge::prefill_up_nvfp4, edge::sort_pairs"
    with pytest.raises(ConfigurationError, match=f"{kernels}: has no plugin"):
        compile_graph(tensorrt_rtx, made, no_progress)


def test_progress_and_errors_come_from_the_other_process(
    tensorrt_rtx: ModuleType, tmp_path: Path
) -> None:
    graph, steps = Graph(), list[tuple[int, int]]()
    graph.output(graph.op("Relu", graph.input("x", np.float32, [4])), "y", np.float32, [4])
    made = small_order(graph, tmp_path)
    built = compile_isolated("tensorrt_rtx", made, lambda *step: steps.append(step))
    assert built.n_bytes == made.plan.stat().st_size
    assert steps[-1][0] == steps[-1][1] > 0
    made.onnx.write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"small\.onnx: ended the process"):
        compile_isolated("tensorrt_rtx", made, no_progress)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["compile", *arguments]) == 78
    (line,) = capsys.readouterr().err.splitlines()
    return str(line)


def test_a_machine_without_a_gpu_says_so(
    bundle: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = str(bundle("single"))
    if importlib.util.find_spec("tensorrt") is None:
        assert "tensorrt: is not installed; install JetPack's" in fails(
            capsys, path, "--target", "orin"
        )
    monkeypatch.setattr(plans, "local_compute_capability", lambda: (8, 6))
    monkeypatch.setattr(plans, "COMPILER", "json")
    said = fails(capsys, path, "--target", "orin")
    assert "--target orin: is sm 8.7, this GPU is sm 8.6; compile on the device" in said
    said = fails(capsys, path, "--target", "this-gpu", "--check")
    assert "--check --target this-gpu: has nothing to stand for it" in said


def test_plans_are_put_into_the_bundle(
    tensorrt_rtx: ModuleType,
    bundle: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole way, with TensorRT-RTX in TensorRT's place and a fixed GPU in that of this one."""
    path = tmp_path / "bundle"
    shutil.copytree(bundle("single"), path)
    monkeypatch.setattr(plans, "COMPILER", "tensorrt_rtx")
    monkeypatch.setattr(plans, "local_compute_capability", lambda: (8, 7))

    def for_a_stand_in(module: str, order: Order, progress: Any, kernels: Path | None) -> Built:
        order = dataclasses.replace(order, stand_in="SM86", timing_cache=None)
        return compile_isolated(module, order, progress, kernels)

    def at_once(module: str, order: Order, progress: Any, kernels: Path | None) -> Built:
        order.plan.write_bytes(b"another")
        return Built(order.graph, (), 0.0, 7, 0)

    sizes = []
    for compiled in (for_a_stand_in, at_once):  # the second over the first
        monkeypatch.setattr(plans, "compile_isolated", compiled)
        plans.compile_bundle(path, "orin", plans.Options(512), lambda *_: None)
        manifest = Bundle(path).manifest
        sizes.append([manifest.files[f"{g}.plan"].n_bytes for g in ("vision", "audio", "decoder")])
        version = str(tensorrt_rtx.__version__)
        assert manifest.plans == Plans(version, "8.7", 512)
        assert manifest.target == "orin"
    assert min(sizes[0]) > 1e6
    assert sizes[1] == [7, 7, 7]
    assert CpuEngine(Bundle(path)).decode  # such a bundle is the cpu engine's still
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]
    (path / "decoder.plan").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"decoder\.plan: has 5 bytes"):
        Bundle(path)


@pytest.mark.parametrize("n_tokens", [0, -5, 262_145])
def test_a_context_that_the_model_does_not_have_is_refused(
    bundle: Callable[[str], Path], n_tokens: int
) -> None:
    options = plans.Options(n_tokens)
    with pytest.raises(ConfigurationError, match=rf"--context: is {n_tokens}; give 1\.\.262144"):
        plans.check_bundle(bundle("single"), plans.TARGETS["orin"], options, lambda *_: None)
