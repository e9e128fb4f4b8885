"""What is asked of TensorRT when a graph is compiled, and in which order."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from published_config import CONFIG

from build_engine import isolated, plans
from build_engine.compile import Built, Order, compile_graph
from build_engine.decoder_layout import bundle_layout, recipe_layout
from build_engine.footprint import decoded_bytes, scratch_bytes
from build_engine.graphs.decoder import DEVICE, DEVICE_FP8
from build_engine.graphs.onnx_ops import Graph
from build_engine.isolated import _build, require
from build_engine.profiles import Profile, profiles_of
from build_engine.recipe import load_recipe
from edge.engines.bundle import Bundle, Plans
from edge.errors import BundleError, ConfigurationError
from edge.model.spec import model_spec

PROFILES = [
    Profile("small", {"x": ((1, 4), (2, 4), (3, 4)), "y": ((1,), (5,), (9,))}),
    Profile("large", {"x": ((4, 4), (5, 4), (6, 4))}),
]
LAYERS = "Layers:\nmatmul reads x"


class Trt:
    """The module: writes down each call, and builds a plan of three bytes."""

    def __init__(self, **changes: Any) -> None:
        self.calls: list[Any] = []
        self.known_plugins: set[tuple[str, str, str]] = set()
        self.n_profiles = itertools.count()
        self.parses, self.strongly_typed = True, True
        self.says: list[tuple[str, str]] = []
        self.__dict__.update(changes)
        self.NetworkDefinitionCreationFlag = SimpleNamespace(
            **({"STRONGLY_TYPED": 3} if self.strongly_typed else {})
        )

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3)

    class IProgressMonitor:
        def __init__(self) -> None:
            self.begun = True

    BuilderFlag = SimpleNamespace(TF32="tf32")
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    ComputeCapability = SimpleNamespace(SM86="sm86", SM121="sm121")
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")

    def Builder(self, log: Any) -> Any:  # noqa: N802
        self.log = log
        registry = SimpleNamespace(
            get_creator=lambda *name: True if name in self.known_plugins else None
        )
        return SimpleNamespace(
            get_plugin_registry=lambda: registry,
            create_network=lambda flags: self.calls.append(("flags", flags)),
            create_builder_config=lambda: Config(self),
            create_optimization_profile=lambda: Shapes(self),
            build_serialized_network=self._build,
        )

    def OnnxParser(self, network: Any, log: Any) -> Any:  # noqa: N802
        error = SimpleNamespace(
            node_operator=lambda: "Relu", node_name=lambda: "Relu_7", desc=lambda: "no\n kernel"
        )

        def parse(data: bytes, path: str) -> bool:
            self.parsed = onnx.load_from_string(data)
            self.calls.append(("parse", path))
            return self.parses

        return SimpleNamespace(parse=parse, get_error=lambda i: [error][i])

    def Runtime(self, log: Any) -> Any:  # noqa: N802
        raise AssertionError("a stand-in's plan is for no GPU of this machine")

    def _build(self, network: Any, config: Any) -> Any:
        self.config = config
        for severity, text in self.says:
            self.log.log(getattr(self.ILogger.Severity, severity), text)
        return np.frombuffer(b"abc", np.uint8)


class Config:
    """Remembers also what is set on it."""

    def __init__(self, trt: Trt) -> None:
        object.__setattr__(self, "trt", trt)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        self.trt.calls.append((name, value if isinstance(value, int | str) else None))

    def clear_flag(self, flag: str) -> None:
        self.trt.calls.append(("clear_flag", flag))

    def set_compute_capability(self, capability: str, index: int) -> None:
        self.trt.calls.append(("capability", capability, index))

    def set_memory_pool_limit(self, pool: str, n_bytes: int) -> None:
        self.trt.calls.append((pool, n_bytes))

    def add_optimization_profile(self, shapes: Shapes) -> int:
        self.trt.calls.append(("profile", shapes.three))
        return next(self.trt.n_profiles)

    def create_timing_cache(self, data: bytes) -> bytes | None:
        self.trt.calls.append(("create cache", data))
        return None if data == b"unreadable" else data

    def set_timing_cache(self, cache: bytes, *, ignore_mismatch: bool) -> bool:
        self.trt.calls.append(("cache", cache, ignore_mismatch))
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: b"measured")


class Shapes:
    """One profile."""

    def __init__(self, trt: Trt) -> None:
        self.three: dict[str, Any] = {}

    def set_shape(self, name: str, *three: tuple[int, ...]) -> None:
        self.three[name] = three


def order(folder: Path, graph: Graph | None = None) -> Order:
    if graph is None:
        graph = Graph()
        graph.output(graph.op("Relu", graph.input("x", np.float32, [4])), "y", np.float32, [4])
    path = folder / "small.onnx"
    path.write_bytes(graph.model("small").SerializeToString())
    return Order("small", path, folder / "small.plan", PROFILES, "SM86")


def compiled(trt: Trt, made: Order, **more: Any) -> Built:
    return compile_graph(trt, made, more.pop("progress", lambda *_: None), **more)


def test_a_stand_in_is_asked_for_before_the_driver_would_be(tmp_path: Path) -> None:
    trt = Trt(says=[("INFO", "Total Activation Memory: 123 bytes"), ("INFO", "more")])
    built = compiled(trt, order(tmp_path))
    assert trt.calls == [
        ("flags", 1 << 3),
        ("parse", str(tmp_path / "small.onnx")),
        ("clear_flag", "tf32"),
        ("progress_monitor", None),
        ("num_compute_capabilities", 1),
        ("capability", "sm86", 0),
        ("profile", PROFILES[0].shapes),
        ("profile", PROFILES[1].shapes),
    ]
    assert (tmp_path / "small.plan").read_bytes() == b"abc"
    facts = dataclasses.replace(built, seconds=0, peak_bytes=0)
    assert facts == Built("small", ("small", "large"), 0, 3, 0, 0, (), (123,))
    assert 0 < built.seconds < 60
    assert 2**24 < built.peak_bytes < 2**36


def test_a_tensorrt_without_the_flag_of_types_is_not_asked_for_it(tmp_path: Path) -> None:
    trt = Trt(strongly_typed=False)
    compiled(trt, order(tmp_path))
    assert trt.calls[0] == ("flags", 0)


def test_what_one_build_said_is_not_the_next_ones(tmp_path: Path) -> None:
    lazy = "CUDA lazy loading is not enabled"
    trt = Trt(says=[("WARNING", lazy), ("INFO", "Total Activation Memory: 7 bytes")])
    for _ in range(2):
        built = compiled(trt, order(tmp_path))
        assert (built.n_warnings, built.warnings, built.scratch_bytes) == (1, (lazy,), (7,))


@pytest.mark.parametrize(
    ("severity", "refused"), [("INTERNAL_ERROR", True), ("WARNING", True), ("INFO", False)]
)
def test_what_is_worse_than_information_refuses_a_check(
    tmp_path: Path, severity: str, refused: bool
) -> None:
    trt = Trt(says=[(severity, "a"), (severity, "b")])
    if not refused:
        compiled(trt, order(tmp_path))
        return
    with pytest.raises(BundleError, match=r"small\.onnx: is warned of \(and 1 more\): a; "):
        compiled(trt, order(tmp_path))


def test_a_profile_that_is_not_taken_is_named(tmp_path: Path) -> None:
    trt = Trt(n_profiles=iter([0, -1]))
    with pytest.raises(BundleError, match=r"small\.onnx: does not take the profile large; "):
        compiled(trt, order(tmp_path))


def test_a_graph_that_does_not_parse_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        compiled(Trt(parses=False), order(tmp_path))
    said = "small.onnx: does not parse at Relu Relu_7: no kernel; report it with the versions of"
    assert str(caught.value).startswith(said)


def test_functions_are_put_in_place_and_plugins_are_asked_for_by_version(tmp_path: Path) -> None:
    """The plugins of a folder are registered before they are looked for."""
    body = Graph()
    inner = helper.make_node("squared", ["x"], ["y"], domain="edge")
    body._nodes.append(inner)
    function = body.function("edge", "MoE", ["x"], ["y"])
    graph = Graph()
    graph.output(
        graph.op("MoE", graph.input("x", np.float32, [4]), domain="edge"), "y", np.float32, [4]
    )
    made = order(tmp_path, graph)
    model = graph.model("small", [function])
    model.functions[0].opset_import.append(helper.make_opsetid("edge", 1))
    made.onnx.write_bytes(model.SerializeToString())
    with pytest.raises(ConfigurationError, match=r"^edge::squared: has no plugin; .*--kernels"):
        compiled(Trt(), made)
    trt = Trt()
    compiled(trt, made, load_plugins=lambda t: t.known_plugins.add(("squared", "1", "edge")))
    assert [node.op_type for node in trt.parsed.graph.node] == ["squared", "Identity"]
    assert not trt.parsed.functions


def test_a_plans_kernels_are_told_in_detail_where_they_are_wanted(tmp_path: Path) -> None:
    told: list[str] = []
    trt = Trt(says=[("INFO", LAYERS), ("INFO", "after")])
    compiled(trt, order(tmp_path), inspect=told.append)
    assert told == [LAYERS]
    assert ("profiling_verbosity", "detailed") in trt.calls
    compiled(Trt(), order(tmp_path), inspect=told.append)
    assert told == [LAYERS, ""]  # not another plan's


@pytest.mark.parametrize(("kept", "used"), [(b"good", b"good"), (b"unreadable", b""), (None, b"")])
def test_what_was_measured_is_taken_up_and_kept(
    tmp_path: Path, kept: bytes | None, used: bytes
) -> None:
    """A mismatch is never ignored: those times are of another GPU."""
    cache = tmp_path / "timing"
    if kept is not None:
        cache.write_bytes(kept)
    trt = Trt()
    compiled(trt, dataclasses.replace(order(tmp_path), timing_cache=cache))
    assert [call for call in trt.calls if call[0] == "cache"] == [("cache", used, False)]
    assert cache.read_bytes() == b"measured"


def test_progress_is_that_of_the_outermost_phase(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    trt = Trt()
    compiled(trt, order(tmp_path), progress=lambda *step: steps.append(step))
    monitor = trt.config.progress_monitor
    assert monitor.begun
    monitor.phase_start("build", None, 3)
    monitor.phase_start("tactics", "build", 50)
    assert monitor.step_complete("tactics", 7)
    assert monitor.step_complete("build", 0)
    assert monitor.step_complete("build", 5)  # some count past their end
    monitor.phase_finish("tactics")
    assert steps == [(0, 3), (1, 3), (3, 3)]
    monitor.phase_finish("build")
    assert steps[3:] == [(3, 3)]


def test_what_was_built_is_told_line_by_line() -> None:
    built = [
        Built("vision", ("live", "large"), 12.34, 5_600_000, 789_000_000, 3, ("w (3 times)",),
              (100_000, 2_500_000)),
        Built("decode", ("decode",), 0.01234, 40_000, 1_000_000_000, 0, (), (700_000,)),
    ]  # fmt: skip
    assert plans.table(built).splitlines() == [
        "graph    profiles          seconds  plan MB  scratch MB        peak RSS MB  warnings",
        "vision   live, large          12.3      5.6  0.1, 2.5                  789         3",
        "decode   decode                0.0      0.0  0.7                      1000         0",
        "vision: TensorRT warns: w (3 times)",
    ]
    told = plans.as_dict(built)
    assert list(told) == ["vision", "decode"]
    assert told["decode"] == {
        "graph": "decode", "profiles": ("decode",), "seconds": 0.012, "n_bytes": 40_000,
        "peak_bytes": 1_000_000_000, "n_warnings": 0, "warnings": (), "scratch_bytes": (700_000,),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((8, 6), DEVICE), ((8, 7), DEVICE), ((8, 9), DEVICE_FP8), ((11, 0), DEVICE_FP8)],
)
def test_gpus_from_8_9_on_multiply_fp8(capability: tuple[int, int], precision: Any) -> None:
    assert plans.Target("x", capability, "").precision == precision


def test_a_module_that_is_missing_is_named_whole() -> None:
    require("json.decoder", "")
    with pytest.raises(ConfigurationError, match=r"^no_such.module: is not installed; get it$"):
        require("no_such.module", "get it")


def test_the_gpu_of_this_machine_is_asked_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    device = SimpleNamespace(compute_capability="11.0")
    cuda = SimpleNamespace(device=lambda: device, close=lambda: closed.append(True))
    monkeypatch.setattr(plans, "open_cuda", lambda: cuda)
    assert plans.local_compute_capability() == (11, 0)
    device.compute_capability = "none"
    with pytest.raises(ValueError, match="none"):
        plans.local_compute_capability()
    assert closed == [True, True]


def built_in_a_process(made: Order, kernels: Path | None = None) -> list[Any]:
    """What the other process sends, as if it were this one."""
    sent: list[Any] = []
    _build(SimpleNamespace(send=sent.append), "fake_trt", made, kernels)  # type: ignore[arg-type]
    return sent


def test_the_other_process_sends_progress_and_then_what_it_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def compiled(trt: Any, made: Order, progress: Any, plugins: Any) -> Built:
        asked.append((trt, made, plugins))
        progress(1, 2)
        return Built("small", (), 0.0, 1, 2)

    trt = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "fake_trt", trt)
    monkeypatch.setattr(isolated, "compile_graph", compiled)
    made = order(tmp_path)
    assert built_in_a_process(made) == [(1, 2), Built("small", (), 0.0, 1, 2)]
    assert asked == [(trt, made, None)]


def test_plugins_come_from_the_folder_of_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = []

    def compiled(trt: Any, made: Order, progress: Any, plugins: Any) -> Built:
        plugins(trt)
        return Built("small", (), 0.0, 1, 2)

    trt, plugin = SimpleNamespace(), SimpleNamespace()
    monkeypatch.setitem(sys.modules, "fake_trt", trt)
    monkeypatch.setitem(sys.modules, "fake_trt.plugin", plugin)
    monkeypatch.setattr(isolated, "compile_graph", compiled)
    monkeypatch.setattr(
        isolated,
        "register_plugins",
        lambda trt, *, trtp, folder: registered.append((trt, trtp, folder)),
    )
    built_in_a_process(order(tmp_path), kernels=tmp_path)
    assert registered == [(trt, plugin, tmp_path)]


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ConfigurationError("a", "b", "c"), ConfigurationError, ("a", "b", "c")),
        (BundleError("a", "b", "c"), BundleError, ("a", "b", "c")),
        (
            RuntimeError("two\n lines"),
            BundleError,
            (
                "small.onnx",
                "fails with RuntimeError: two lines",
                "see where with --verbose, and report it",
            ),
        ),
    ],
)
def test_an_error_of_the_other_process_keeps_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: Any, said: Any
) -> None:
    def compiled(*_: Any) -> Built:
        raise error

    monkeypatch.setitem(sys.modules, "fake_trt", SimpleNamespace())
    monkeypatch.setattr(isolated, "compile_graph", compiled)
    (failed,) = built_in_a_process(order(tmp_path))
    assert (failed.kind, (failed.thing, failed.problem, failed.remedy)) == (kind, said)
    assert "in compiled" in failed.trace


def test_orders_are_of_every_graph_in_the_order_of_their_compilation(
    bundle: Callable[[str], Path], tmp_path: Path
) -> None:
    path = bundle("single")
    spec, layout = Bundle(path).manifest.spec, bundle_layout(path)
    for target in plans.TARGETS.values():
        made = plans.orders(spec, layout, path, tmp_path, target, plans.Options(300))
        profiles = profiles_of(spec, 300)
        assert [order.graph for order in made] == ["decode", "prefill", "vision", "audio"]
        for one in made:
            assert one.onnx == tmp_path / f"{one.graph}.onnx"
            assert one.plan == tmp_path / f"{one.graph}.plan"
            assert one.profiles == profiles[one.graph]
            assert (one.stand_in, one.timing_cache) == (None, None)
            assert one.workspace_bytes == 2 << 30  # so small a model needs no more
            model = onnx.load(one.onnx, load_external_data=False)
            assert model.graph.name == one.graph
        assert (tmp_path / "vision.onnx.data").stat().st_size > 0
    only = plans.orders(
        spec, layout, None, tmp_path, target, plans.Options(spec.decoder.max_tokens)
    )
    assert [order.graph for order in only] == ["decode", "prefill"]


def test_a_check_is_for_what_stands_for_the_target(
    bundle: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def compiled(module: str, made: Order, progress: Any, kernels: Path | None) -> Built:
        progress(1, 3)
        asked.append((module, made.graph, made.stand_in, made.timing_cache, kernels))
        assert made.onnx.is_file()
        return Built(made.graph, (), 0.0, 1, 2)

    needed, told = list[Any](), list[Any]()
    monkeypatch.setattr(plans, "compile_isolated", compiled)
    monkeypatch.setattr(plans, "require", lambda *words: needed.append(words))
    for name, stand_in in (("orin", "SM86"), ("thor", "SM121")):
        asked.clear()
        built = plans.check_bundle(
            bundle("single"), plans.TARGETS[name], plans.Options(256), lambda *s: told.append(s)
        )
        graphs = ["decode", "prefill", "vision", "audio"]
        assert [one.graph for one in built] == graphs
        assert asked == [("tensorrt_rtx", graph, stand_in, None, None) for graph in graphs]
    assert told[:4] == [(graph, 1, 3) for graph in graphs]
    assert {words[0] for words in needed} == {"tensorrt_rtx"}
    assert "pip install" in needed[0][1]


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """TensorRT is here, on an Orin; plans are four bytes."""
    calls: list[Any] = []

    def compiled(module: str, made: Order, progress: Any, kernels: Path | None) -> Built:
        calls.append((module, made, kernels))
        made.plan.write_bytes(b"plan")
        names = tuple(profile.name for profile in made.profiles)
        return Built(made.graph, names, 0.0, 4, 0, 0, (), tuple(range(7, 7 + len(names))))

    monkeypatch.setattr(plans, "compile_isolated", compiled)
    monkeypatch.setattr(plans, "load", lambda *_: SimpleNamespace(__version__="10.13.3"))
    monkeypatch.setattr(plans, "local_compute_capability", lambda: (8, 7))
    return calls


@pytest.mark.parametrize(("name", "target"), [("orin", "orin"), ("this-gpu", "this-gpu")])
def test_plans_are_described_in_the_manifest(
    bundle: Callable[[str], Path], tmp_path: Path, compiler: list[Any], name: str, target: str
) -> None:
    path = tmp_path / "b"
    shutil.copytree(bundle("single"), path)
    before = Bundle(path).manifest
    built = plans.compile_bundle(path, name, plans.Options(700), lambda *_: None)
    assert [one.graph for one in built] == ["decode", "prefill", "vision", "audio"]
    manifest = Bundle(path).manifest
    assert manifest.target == target
    assert manifest.plans == Plans(
        tensorrt="10.13.3",
        compute_capability="8.7",
        max_past_rows=700,
        scratch_bytes={
            f"{one.graph}.plan": dict(zip(one.profiles, one.scratch_bytes, strict=True))
            for one in built
        },
    )
    written = {f"{one.graph}.plan" for one in built}
    assert set(manifest.files) == set(before.files) | written
    assert {manifest.files[plan].n_bytes for plan in written} == {4}
    cache = tmp_path / ".b.10.13.3-sm8.7.timing"
    assert {(module, order.timing_cache, kernels) for module, order, kernels in compiler} == {
        ("tensorrt", cache, None)
    }
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_kernels_are_handed_on(
    bundle: Callable[[str], Path], tmp_path: Path, compiler: list[Any]
) -> None:
    """This bundle's experts are floats, which no kernel reads: that is said first."""
    path = tmp_path / "b"
    shutil.copytree(bundle("single"), path)
    options = plans.Options(256, kernels=tmp_path)
    with pytest.raises(BundleError, match="the kernels take nvfp4 and int4"):
        plans.compile_bundle(path, "orin", options, lambda *_: None)
    assert compiler == []
    assert Bundle(path).manifest == Bundle(bundle("single")).manifest


def test_plans_that_fail_half_way_leave_the_bundle_as_it_was(
    bundle: Callable[[str], Path],
    tmp_path: Path,
    compiler: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "b"
    shutil.copytree(bundle("single"), path)
    plans.compile_bundle(path, "orin", plans.Options(256), lambda *_: None)
    before = Bundle(path).manifest
    done = plans.compile_isolated

    def fails(module: str, made: Order, progress: Any, kernels: Path | None) -> Built:
        if made.graph == "vision":
            raise BundleError("vision.onnx", "is refused", "report it")
        return done(module, made, progress, kernels)

    monkeypatch.setattr(plans, "compile_isolated", fails)
    with pytest.raises(BundleError, match="is refused"):
        plans.compile_bundle(path, "orin", plans.Options(512), lambda *_: None)
    assert Bundle(path).manifest == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize(("name", "here"), [("orin", (11, 0)), ("thor", (8, 7)), ("thor", (11, 1))])
def test_plans_for_another_gpu_are_refused(
    bundle: Callable[[str], Path],
    compiler: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    here: tuple[int, int],
) -> None:
    monkeypatch.setattr(plans, "local_compute_capability", lambda: here)
    wanted = {"orin": "8.7", "thor": "11.0"}[name]
    with pytest.raises(ConfigurationError) as caught:
        plans.compile_bundle(bundle("single"), name, plans.Options(256), lambda *_: None)
    said = f"--target {name}: is sm {wanted}, this GPU is sm {here[0]}.{here[1]}; compile on the"
    assert str(caught.value).startswith(said)
    assert compiler == []


def test_a_quarter_more_than_the_estimate_is_allowed_and_2_gib_at_least() -> None:
    spec = model_spec(CONFIG, {})
    layout = recipe_layout(spec.decoder, load_recipe("orin"))
    orin = plans.TARGETS["orin"]
    for context in (1, 30_000, 50_000, spec.decoder.max_tokens):
        estimated = scratch_bytes(spec, decoded_bytes(layout, orin.precision), context)
        allowed = plans.workspace_bytes(spec, layout, orin, context)
        assert allowed == max(2 << 30, estimated + estimated // 4)
