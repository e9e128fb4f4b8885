"""What TensorRT prints while it compiles on a board: what refuses a plan, and what is kept."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from build_engine import cli, compile, plans
from build_engine.compile import Built, Message, Order, check_messages, compile_graph, gathered
from build_engine.graphs.onnx_ops import Graph
from edge.engines.bundle import Bundle
from edge.errors import BundleError

LOGS = Path(__file__).parent / "board_logs"


def logged(name: str) -> list[Message]:
    """The lines of a file; `[E]` marks an error."""
    lines = (LOGS / name).read_text().splitlines()
    kept = [line for line in lines if line and not line.startswith("#")]
    return [Message(line.removeprefix("[E] "), line.startswith("[E] ")) for line in kept]


HARMLESS, MEANING = logged("harmless.txt"), logged("meaning.txt")
ON_BOARD = Order("decoder", Path("decoder.onnx"), Path("decode.plan"), [])
STAND_IN = Order("decoder", Path("decoder.onnx"), Path("decode.plan"), [], "SM86")


@pytest.mark.parametrize("message", HARMLESS, ids=lambda message: message.text[:40])
def test_what_boards_print_refuses_no_plan(message: Message) -> None:
    check_messages(ON_BOARD, [message])


@pytest.mark.parametrize("message", MEANING, ids=lambda message: message.text[:40])
def test_another_meaning_refuses_the_plan(message: Message) -> None:
    with pytest.raises(BundleError, match=r"decoder\.onnx: is warned of: ") as caught:
        check_messages(ON_BOARD, [HARMLESS[0], message])
    assert message.text in str(caught.value)


@pytest.mark.parametrize("message", [*HARMLESS, *MEANING], ids=lambda message: message.text[:40])
def test_any_warning_refuses_a_check_without_a_gpu(message: Message) -> None:
    if "CUDA lazy loading" in message.text:  # about the process
        check_messages(STAND_IN, [message])
        return
    with pytest.raises(BundleError):
        check_messages(STAND_IN, [message])


def test_of_several_the_first_is_told_and_how_many_more_there_are() -> None:
    first, last = Message("input is\n unused"), Message("it broke", is_error=True)
    for found, said in (
        ([first], "is warned of: input is unused"),
        ([first, HARMLESS[0], last], "is warned of (and 1 more): input is unused"),
        ([last, first, first], "is warned of (and 2 more): it broke"),
    ):
        with pytest.raises(BundleError) as caught:
            check_messages(ON_BOARD, found)
        remedy = "report it with the versions of both"
        assert str(caught.value) == f"decoder.onnx: {said}; {remedy}"


def test_alike_warnings_are_kept_once() -> None:
    texts = [f"Skipping tactic {n} of size {n}\n due to memory at 0x{n:08x}" for n in range(300)]
    assert gathered(["DLA", *texts, "DLA"]) == (
        "DLA (2 times)",
        "Skipping tactic 0 of size 0 due to memory at 0x00000000 (300 times)",
    )
    many = gathered("x" * n for n in range(1, 400))
    assert len(many) == compile.MAX_KEPT_WARNINGS
    assert many[-1] == "and 368 other kinds"


class Severity(int):
    """TensorRT's are compared by their numbers, the worst first."""


class FakeTensorRT:
    """The module, as far as `compile_graph` goes, saying what it is told to say."""

    def __init__(self, messages: Sequence[Message], plan: bytes | None = b"plan") -> None:
        self.said, self.plan, self.log = messages, plan, None
        self.caches: list[bytes] = []
        self.limits: list[int] = []
        self.Builder = self._builder

    class ILogger:
        Severity = SimpleNamespace(
            INTERNAL_ERROR=Severity(0), ERROR=Severity(1), WARNING=Severity(2), INFO=Severity(3)
        )

    class IProgressMonitor:
        pass

    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=0)
    BuilderFlag = SimpleNamespace(TF32=0)
    MemoryPoolType = SimpleNamespace(WORKSPACE=0)

    def _builder(self, log: Any) -> Any:
        self.log = log
        config = SimpleNamespace(
            clear_flag=lambda flag: None,
            set_memory_pool_limit=lambda pool, n_bytes: self.limits.append(n_bytes),
            create_timing_cache=lambda data: data,
            set_timing_cache=self._set_timing_cache,
            get_timing_cache=lambda: SimpleNamespace(serialize=lambda: b"measured"),
        )
        return SimpleNamespace(
            get_plugin_registry=lambda: None,
            create_network=lambda flags: None,
            create_builder_config=lambda: config,
            build_serialized_network=self._build,
        )

    def _set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        self.caches.append(cache)
        if cache == b"of another":
            self.log.log(self.ILogger.Severity.ERROR, "Timing cache: version mismatch, ignored.")
        return cache != b"of another"

    def Runtime(self, log: Any) -> Any:  # noqa: N802
        engine = SimpleNamespace(
            num_optimization_profiles=2,
            get_device_memory_size_for_profile_v2=lambda profile: 100 + profile,
        )
        return SimpleNamespace(
            deserialize_cuda_engine=lambda plan: engine if bytes(plan) == b"plan" else None
        )

    def OnnxParser(self, network: Any, log: Any) -> Any:  # noqa: N802
        return SimpleNamespace(parse=lambda data, path: True)

    def _build(self, network: Any, config: Any) -> Any:
        levels = self.ILogger.Severity
        self.log.log(levels.INFO, "Global timing cache in use.")
        for message in self.said:
            self.log.log(levels.ERROR if message.is_error else levels.WARNING, message.text)
        return None if self.plan is None else np.frombuffer(self.plan, np.uint8)


def order(folder: Path) -> Order:
    graph = Graph()
    graph.output(graph.op("Relu", graph.input("x", np.float32, [4])), "y", np.float32, [4])
    path = folder / "decoder.onnx"
    path.write_bytes(graph.model("small").SerializeToString())
    return Order("decoder", path, folder / "decode.plan", [])


def test_a_plan_is_built_over_all_that_boards_print(tmp_path: Path) -> None:
    built = compile_graph(FakeTensorRT([*HARMLESS, *HARMLESS]), order(tmp_path), lambda *_: None)
    assert built.n_warnings == 2 * len(HARMLESS)
    assert built.warnings[0] == f"{HARMLESS[0].text} (2 times)"
    assert built.warnings == gathered(message.text for message in [*HARMLESS, *HARMLESS])
    assert built.scratch_bytes == (100, 101)  # as the plan says, not the compiler's log
    assert (tmp_path / "decode.plan").read_bytes() == b"plan"


@pytest.mark.parametrize("known", [b"of another", b"its own", None])
def test_what_was_measured_before_never_costs_the_plan(tmp_path: Path, known: bytes | None) -> None:
    path = tmp_path / "timing"
    if known is not None:
        path.write_bytes(known)
    trt = FakeTensorRT([])
    made = dataclasses.replace(order(tmp_path), timing_cache=path)
    assert compile_graph(trt, made, lambda *_: None).n_warnings == 0
    assert trt.caches[-1] == (known if known == b"its own" else b"")
    assert path.read_bytes() == b"measured"


def test_a_plan_may_need_as_much_scratch_memory_as_its_order_says(tmp_path: Path) -> None:
    trt = FakeTensorRT([])
    wanted = dataclasses.replace(order(tmp_path), workspace_bytes=5 << 30)
    compile_graph(trt, wanted, lambda *_: None)
    assert trt.limits == [5 << 30]


def test_a_plan_that_is_not_taken_back_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="gives a plan that TensorRT refuses"):
        compile_graph(FakeTensorRT([], b"another"), order(tmp_path), lambda *_: None)


def test_a_plan_of_another_meaning_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="Unused Input: position_ids"):
        compile_graph(FakeTensorRT([*HARMLESS, MEANING[0]]), order(tmp_path), lambda *_: None)
    assert not (tmp_path / "decode.plan").exists()


def test_no_plan_is_told_with_the_errors_not_with_the_first_warning(tmp_path: Path) -> None:
    node = Message("Error Code 10: Internal Error (Could not find any implementation)", True)
    trt = FakeTensorRT([*HARMLESS, node], plan=None)
    with pytest.raises(BundleError, match=r"gives no plan: .*out of memory.*any implementation"):
        compile_graph(trt, order(tmp_path), lambda *_: None)
    with pytest.raises(BundleError, match="gives no plan: TensorRT gives no reason"):
        compile_graph(FakeTensorRT(HARMLESS[:1], plan=None), order(tmp_path), lambda *_: None)


def test_warnings_reach_the_manifest_and_the_reader(
    bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(bundle("single"), path)
    monkeypatch.setattr(plans, "COMPILER", "tensorrt_rtx")
    monkeypatch.setattr(plans, "check_tensorrt", lambda version: None)
    monkeypatch.setattr(plans, "local_compute_capability", lambda: (8, 7))
    warnings = ("DLA requests all profiles have same min, max, and opt value. (2 times)",)

    def compiled(module: str, order: Order, progress: Any, kernels: Path | None) -> Built:
        order.plan.write_bytes(b"plan")
        on_vision = order.graph == "vision"
        return Built(order.graph, (), 0.0, 4, 0, 2 * on_vision, warnings if on_vision else ())

    monkeypatch.setattr(plans, "compile_isolated", compiled)
    arguments = ["compile", str(path), "--target", "orin"]
    assert cli.main(arguments) == 0
    assert f"vision: TensorRT warns: {warnings[0]}" in capsys.readouterr().out.splitlines()
    described = Bundle(path).manifest.plans
    assert described is not None
    assert described.warnings == {"vision": warnings}
    assert cli.main([*arguments, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["vision"]["warnings"] == list(warnings)
    assert figures["vision"]["n_warnings"] == 2
