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

import msgspec
import numpy as np
import pytest
from graphs.random_decoder import divisible_checkpoint
from published_config import CONFIG

from build_engine import cli, plans
from build_engine.bundle import save_manifest
from build_engine.checkpoint import Checkpoint
from build_engine.compile import Built, Order, compile_graph
from build_engine.decoder_layout import bundle_layout, recipe_layout
from build_engine.graphs.decoder import DEVICE, DEVICE_FP8, Precision, decoder_model
from build_engine.graphs.onnx_ops import Graph
from build_engine.isolated import ElsewhereError, compile_isolated
from build_engine.profiles import Profile, decoder_profiles, vision_profiles
from build_engine.recipe import load_recipe
from edge.engines.bundle import Bundle, Plans
from edge.engines.cpu import CpuEngine
from edge.engines.hashing import file_entry
from edge.engines.tensorrt import PLANS
from edge.errors import BundleError, ConfigurationError
from edge.features.pixels import video_grid
from edge.model.spec import model_spec
from gpu_kernels.plugins import Phase

RECIPES = [
    ("orin", "bf16"),
    ("orin", "orin"),
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


def order(
    checkpoint: Checkpoint,
    recipe: str,
    precision: Precision,
    folder: Path,
    phase: Phase = "prefill",
) -> Order:
    spec = checkpoint.spec.decoder
    model = decoder_model(spec, recipe_layout(spec, load_recipe(recipe)), precision, phase=phase)
    path = folder / f"{phase}.onnx"
    path.write_bytes(model.SerializeToString())
    profiles = [profile for profile in decoder_profiles(spec, 512) if profile.name == phase]
    return Order(phase, path, folder / f"{phase}.plan", profiles, "SM86")


@pytest.mark.usefixtures("tensorrt_rtx")
@pytest.mark.parametrize(("target", "recipe"), RECIPES)
def test_the_decoder_of_every_recipe_compiles(
    sized: Checkpoint, tmp_path: Path, target: str, recipe: str
) -> None:
    for phase in plans.PHASES:
        made = order(sized, recipe, plans.TARGETS[target].precision, tmp_path, phase)
        (built,) = plans.check([made], plans.TARGETS[target], lambda *_: None)
        assert built.profiles == (phase,)
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
    assert list(figures) == ["decode", "prefill", "vision", "audio"]
    assert all(figure["n_warnings"] == 0 for figure in figures.values())
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == before


@pytest.mark.usefixtures("tensorrt_rtx")
def test_a_picture_takes_the_memory_of_its_patches(
    bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    """Not that of as many rows of the widest grid: here 5 times as much, 2.5 GB when published."""
    path = bundle("wide")
    spec, target = Bundle(path).manifest.spec, plans.TARGETS["orin"]
    made = plans.orders(spec, bundle_layout(path), path, tmp_path, target, plans.Options(512))
    (vision,) = (order for order in made if order.graph == "vision")
    least, typical, _ = vision.profiles[0].shapes["patches"]
    rows = 4096
    most = (1, rows, least[2])
    sides = {
        name: (*vision.profiles[0].shapes[name][:2], (rows // 16, spec.vision.position_grid))
        for name in ("row_weights", "column_weights")
    }
    profile = Profile("large", {"patches": (least, typical, most), **sides})
    order = dataclasses.replace(vision, profiles=[profile])
    (built,) = plans.check([order], target, lambda *_: None)
    width = 5 * spec.vision.hidden_size + spec.vision.mlp_size
    per_patch = built.scratch_bytes[0] / (4 * width * rows)
    assert 0 < per_patch < 5  # measured: 3.3, and 15.9 where the grid's height was inferred


def test_the_live_path_has_a_profile_of_its_own() -> None:
    """Every tubelet that a camera can give is in it; the largest picture is in the other."""
    vision = model_spec(CONFIG, {}).vision
    live, large = (profile.shapes["patches"][2][1] for profile in vision_profiles(vision))
    assert (live, large) == (3328, vision.max_patches)
    target = vision.video_target_patches
    sizes = [(w, h) for w in (64, 640, 1920, 3840) for h in (64, 480, 1080, 2160)]
    grids = [video_grid(w, h, target) for w, h in [*sizes, (4000, 20), (20, 4000)]]
    assert max(rows * columns for rows, columns in grids) <= live


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
    assert "prefill.onnx" in said
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
    with pytest.raises(BundleError, match=r"small\.onnx: fails with DecodeError: ") as caught:
        compile_isolated("tensorrt_rtx", made, no_progress)
    assert "\n" not in str(caught.value)
    assert "onnx.load(order.onnx" in str(caught.value.__cause__)  # where, in the other process


def test_what_tensorrt_lacks_is_said_by_its_name(
    tensorrt_rtx: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As JetPack 6's TensorRT does, this one has no plugins in Python."""
    made = Order("small", tmp_path / "small.onnx", tmp_path / "small.plan", [])
    said = r"fails with ModuleNotFoundError: No module named 'tensorrt_rtx\w*\.plugin'"
    with pytest.raises(BundleError, match=rf"small\.onnx: {said}; see where with --verbose"):
        compile_isolated("tensorrt_rtx", made, no_progress, tmp_path)
    assert not capfd.readouterr().err


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    """A module whose import ends the process stands for one that the kernel ends."""
    made = Order("small", tmp_path / "small.onnx", tmp_path / "small.plan", [])
    with pytest.raises(BundleError, match=r"small\.onnx: ended the process .*exit code 7"):
        compile_isolated("graphs.ends_the_process", made, no_progress)


def test_verbose_tells_where_an_error_came_from(
    bundle: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails_elsewhere(*_: Any) -> None:
        raise BundleError("x.onnx", "fails", "report it") from ElsewhereError("Traceback: there")

    monkeypatch.setattr(cli, "check_bundle", fails_elsewhere)
    arguments = ["compile", str(bundle("single")), "--target", "orin", "--check"]
    assert cli.main(arguments) == 78
    assert capsys.readouterr().err == "build-engine: x.onnx: fails; report it\n"
    assert cli.main([*arguments, "--verbose"]) == 78
    assert capsys.readouterr().err.startswith("Traceback: there\nbuild-engine: x.onnx")


@pytest.mark.parametrize(
    ("version", "refused"),
    [("10.3.0", True), ("10.8.0.43", True), ("9.10", True), ("10.9.0.34", False), ("11.1", False)],
)
def test_a_tensorrt_that_is_too_old_is_refused_first(
    bundle: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    version: str,
    refused: bool,
) -> None:
    name = f"tensorrt_{version.replace('.', '_')}"
    (tmp_path / f"{name}.py").write_text(f"__version__ = {version!r}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plans, "COMPILER", name)
    monkeypatch.setattr(plans, "local_compute_capability", lambda: (8, 6))
    said = fails(capsys, str(bundle("single")), "--target", "orin")
    if refused:
        assert f"TensorRT {version}: is too old: plans need 10.9; flash JetPack 7.2" in said
    else:
        assert "this GPU is sm 8.6" in said


def test_a_folder_without_tensorrt_is_none(
    bundle: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """As the type stubs leave one."""
    (tmp_path / "tensorrt_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plans, "COMPILER", "tensorrt_folder")
    said = fails(capsys, str(bundle("single")), "--target", "orin")
    assert "tensorrt_folder: is not installed; install JetPack's" in said


def test_a_tensorrt_that_does_not_load_says_why(
    bundle: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    why = "libnvinfer.so.10: cannot open shared object file"
    (tmp_path / "tensorrt_broken.py").write_text(f"raise ImportError({why!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plans, "COMPILER", "tensorrt_broken")
    said = fails(capsys, str(bundle("single")), "--target", "orin")
    assert f"tensorrt_broken: cannot be imported (ImportError: {why}); install JetPack's" in said


def test_what_was_measured_is_kept_by_tensorrt_and_gpu(
    bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(bundle("single"), path)
    monkeypatch.setattr(plans, "check_tensorrt", lambda version: None)
    monkeypatch.syspath_prepend(tmp_path)
    caches = set()

    def compiled(module: str, order: Order, progress: Any, kernels: Path | None) -> Built:
        caches.add(order.timing_cache)
        order.plan.write_bytes(b"plan")
        return Built(order.graph, ("any",), 0.0, 4, 0, scratch_bytes=(12,))

    monkeypatch.setattr(plans, "compile_isolated", compiled)
    for version, capability in (("10.13.3.9", (8, 7)), ("10.16.2.10", (8, 7)), ("11.1", (11, 0))):
        name = f"tensorrt_{version.replace('.', '_')}"
        (tmp_path / f"{name}.py").write_text(f"__version__ = {version!r}\n")
        monkeypatch.setattr(plans, "COMPILER", name)
        monkeypatch.setattr(plans, "local_compute_capability", lambda sm=capability: sm)
        plans.compile_bundle(path, "this-gpu", plans.Options(512), lambda *_: None)
        found = Bundle(path).manifest.plans
        assert found is not None
        assert found.tensorrt == version
    assert {cache.name for cache in caches} == {
        ".bundle.10.13.3.9-sm8.7.timing",
        ".bundle.10.16.2.10-sm8.7.timing",
        ".bundle.11.1-sm11.0.timing",
    }


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
    monkeypatch.setattr(plans, "check_tensorrt", lambda version: None)
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
    (path / "decoder.plan").write_bytes(b"of an older builder")
    manifest = Bundle(path).manifest
    files = manifest.files | {"decoder.plan": file_entry(path / "decoder.plan")}
    save_manifest(msgspec.structs.replace(manifest, files=files), path)
    monkeypatch.setattr(plans, "COMPILER", "tensorrt_rtx")
    monkeypatch.setattr(plans, "check_tensorrt", lambda version: None)
    monkeypatch.setattr(plans, "local_compute_capability", lambda: (8, 7))

    def for_a_stand_in(module: str, order: Order, progress: Any, kernels: Path | None) -> Built:
        order = dataclasses.replace(order, stand_in="SM86", timing_cache=None)
        return compile_isolated(module, order, progress, kernels)

    def at_once(module: str, order: Order, progress: Any, kernels: Path | None) -> Built:
        order.plan.write_bytes(b"another")
        return Built(order.graph, ("any",), 0.0, 7, 0, scratch_bytes=(12,))

    sizes, scratch = [], []
    for compiled in (for_a_stand_in, at_once):  # the second over the first
        monkeypatch.setattr(plans, "compile_isolated", compiled)
        plans.compile_bundle(path, "orin", plans.Options(512), lambda *_: None)
        manifest = Bundle(path).manifest
        sizes.append([manifest.files[name].n_bytes for name in PLANS])
        assert {name for name in manifest.files if name.endswith(".plan")} == set(PLANS)
        assert not (path / "decoder.plan").exists()
        version = str(tensorrt_rtx.__version__)
        assert manifest.plans == Plans(version, "8.7", 512, manifest.plans.scratch_bytes)
        scratch.append(manifest.plans.scratch_bytes)
        assert manifest.target == "orin"
    assert min(sizes[0]) > 1e6
    assert sizes[1] == [7, 7, 7, 7]
    profiles = plans.profiles_of(manifest.spec, 512)
    assert {name: set(found) for name, found in scratch[0].items()} == {
        f"{graph}.plan": {profile.name for profile in each} for graph, each in profiles.items()
    }
    assert all(n > 0 for found in scratch[0].values() for n in found.values())
    assert scratch[1] == {name: {"any": 12} for name in PLANS}
    assert CpuEngine(Bundle(path)).decode  # such a bundle is the cpu engine's still
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]
    (path / "decode.plan").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"decode\.plan: has 5 bytes"):
        Bundle(path)


@pytest.mark.parametrize("n_tokens", [0, -5, 262_145])
def test_a_context_that_the_model_does_not_have_is_refused(
    bundle: Callable[[str], Path], n_tokens: int
) -> None:
    options = plans.Options(n_tokens)
    with pytest.raises(ConfigurationError, match=rf"--context: is {n_tokens}; give 1\.\.262144"):
        plans.check_bundle(bundle("single"), plans.TARGETS["orin"], options, lambda *_: None)
