"""The decoder's graph against the cpu engine's exact mode, which writes and runs the same code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import onnx
import pytest
from graphs.byte_casts import byte_casts
from graphs.decoder_session import (
    Arrays,
    DecoderSession,
    relative_error,
    state_inputs,
    state_outputs,
)
from graphs.random_decoder import (
    divisible_checkpoint,
    layout_of,
    prefill,
    recipe_weights,
)
from make_tiny_checkpoint import PRESETS
from onnx.inliner import inline_local_functions

from build_engine import plans
from build_engine.bundle import build_bundle
from build_engine.checkpoint import Checkpoint
from build_engine.decoder_layout import bundle_layout, recipe_layout
from build_engine.graphs.decoder import (
    DEVICE,
    DEVICE_FP8,
    REFERENCE,
    OnnxOps,
    Precision,
    decoder_model,
)
from build_engine.graphs.onnx_ops import Graph
from build_engine.graphs.scan import Scan, _softplus, scan
from build_engine.graphs.weight_formats import Stored, decoded, stored
from build_engine.quantize import Job, quantize
from build_engine.recipe import known_recipes, load_recipe
from edge.engines.bundle import Bundle
from edge.engines.cpu import CpuEngine
from edge.engines.engine import MAX_PREFILL_TOKENS
from edge.engines.reference_ops import ReferenceOps
from edge.engines.state import DecoderState
from edge.errors import BundleError
from gpu_kernels.plugins import Phase

TOLERANCE = 2e-5
"""Relative to an output's largest value. Measured: 7e-6 over all presets, recipes and cases."""
HALF_TOLERANCE = 5e-3
"""Measured: 1.2e-3."""
CASES = [
    (0, 1, 1),
    (0, 256, 2),
    (1, 1, 17),
    (1, 256, 1),
    (300, 512, 1),
    (300, 300, 2),
    (0, 1, MAX_PREFILL_TOKENS),
    (300, 512, MAX_PREFILL_TOKENS),
]
"""Tokens of the past, rows bound for them, tokens of the call."""
PAST_LENGTHS = sorted({case[0] for case in CASES})


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return divisible_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def worst_case(
    graph: DecoderSession,
    new_state: Callable[[int], DecoderState],
    advance: Callable[[DecoderState, Any], Any],
    spec: Any,
    cases: list[tuple[int, int, int]] = CASES,
    dtype: Any = np.float32,
) -> float:
    """Largest relative error of any output of any case."""
    rng, worst = np.random.default_rng(0), 0.0
    for n_past, n_bound, n in cases:
        state = new_state(n_past)
        rows = rng.standard_normal((n, spec.hidden_size)).astype(dtype)
        inputs = {"embeddings": rows, **state_inputs(spec, state, n_bound, rng)}
        got = graph(
            {k: v.astype(dtype) if k[:4] in ("past", "conv") and k != "past_len" else v
             for k, v in inputs.items()}
        )  # fmt: skip
        expected: Arrays = {"logits": advance(state, rows.astype(np.float32))}
        expected |= state_outputs(state, n_past)
        errors = {name: relative_error(got[name], values) for name, values in expected.items()}
        assert set(got) == {*expected, "top_values", "top_ids"}
        order = np.argsort(-got["logits"][0], kind="stable")[: got["top_ids"].shape[1]]
        assert (got["top_ids"][0] == order).all()
        assert (got["top_values"][0] == got["logits"][0, order]).all()
        worst = max(worst, *errors.values())
    return worst


def bundle_error(path: Path, cases: list[tuple[int, int, int]] = CASES) -> float:
    """Of a bundle's graph, against its engine."""
    opened = Bundle(path)
    engine = CpuEngine(opened, exact=True)
    spec = engine.spec.decoder

    def new_state(n_past: int) -> DecoderState:
        state = engine.new_state()
        if n_past:
            rows = np.random.default_rng(n_past).standard_normal((n_past, spec.hidden_size))
            engine.prefill(state, rows.astype(np.float32))
        return state

    worst = 0.0
    for phase, its_cases in by_phase(cases).items():
        model = decoder_model(spec, bundle_layout(path), REFERENCE, phase=phase)
        onnx.checker.check_model(model, full_check=True)
        graph = DecoderSession(model, opened.decoder_weights())
        found = worst_case(
            graph, new_state, lambda state, rows: engine.prefill(state, rows)[None], spec, its_cases
        )
        worst = max(worst, found)
    return worst


def by_phase(cases: list[tuple[int, int, int]]) -> dict[Phase, list[tuple[int, int, int]]]:
    """Decode's graph has the cases of one token; prefill's is right for these, too."""
    found: dict[Phase, list[tuple[int, int, int]]] = {"prefill": cases}
    decode = [case for case in cases if case[2] == 1]
    return found | ({"decode": decode} if decode else {})


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_bundle_of_every_preset(bundle: Callable[[str], Path], preset: str) -> None:
    assert bundle_error(bundle(preset)) <= TOLERANCE


def test_a_quantized_bundle(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    recipe, source = load_recipe("w4a16-all"), Checkpoint(checkpoint("grouped"))
    quantize(Job(source, recipe, (), tmp_path / "quantized"), lambda *_: None)
    build_bundle(tmp_path / "quantized", tmp_path / "bundle", "cpu", lambda *_: None)
    assert bundle_layout(tmp_path / "bundle") == recipe_layout(source.spec.decoder, recipe)
    assert bundle_error(tmp_path / "bundle", CASES[2:5]) <= TOLERANCE


def recipe_error(
    checkpoint: Checkpoint,
    recipe: str,
    precision: Precision,
    cases: list[tuple[int, int, int]] = CASES,
    **more: Any,
) -> float:
    spec = checkpoint.spec.decoder
    weights = recipe_weights(checkpoint, load_recipe(recipe)) | more

    def new_state(n_past: int) -> DecoderState:
        state = DecoderState.empty(spec)
        rng = np.random.default_rng(n_past)
        if n_past:
            prefill(
                spec, weights, state, rng.standard_normal((n_past, spec.hidden_size), np.float32)
            )
        return state

    graph = DecoderSession(decoder_model(spec, layout_of(weights), precision), weights)
    return worst_case(
        graph,
        new_state,
        lambda state, rows: prefill(spec, weights, state, rows),
        spec,
        cases,
        precision.activation,
    )


@pytest.mark.parametrize("recipe", known_recipes())
def test_every_recipe(sized: Checkpoint, recipe: str) -> None:
    assert recipe_error(sized, recipe, REFERENCE, CASES[2:6]) <= TOLERANCE


def test_in_float16(sized: Checkpoint) -> None:
    """With a router that rounding cannot sway: else an expert changes now and then."""
    spec = sized.spec.decoder
    biases = {
        f"layers.{layer}.gate_bias": np.random.default_rng(layer)
        .permutation(spec.n_experts)
        .astype(np.float32)
        for layer in spec.layers("E")
    }
    # ONNX Runtime has no bfloat16 products
    precision = dataclasses.replace(DEVICE, wide=np.dtype(np.float16))
    assert recipe_error(sized, "w4a16", precision, CASES[2:6], **biases) <= HALF_TOLERANCE


@pytest.mark.parametrize("with_input_scale", [True, False])
def test_an_fp8_linear_quantizes_its_input_where_a_scale_is_known(with_input_scale: bool) -> None:
    rng, e4m3 = np.random.default_rng(0), np.dtype(ml_dtypes.float8_e4m3fn)
    codes = rng.standard_normal((40, 64), np.float32).astype(e4m3)
    weights = {"w": codes, "w.scale": np.float32(0.02), "w.input_scale": np.float32(0.005)}
    if not with_input_scale:
        del weights["w.input_scale"]
    layout = {name: (values.dtype, values.shape) for name, values in weights.items()}
    ops = OnnxOps(None, layout, dataclasses.replace(REFERENCE, fp8=True))  # type: ignore[arg-type]
    y = ops.linear(ops.graph.input("x", np.float32, ["T", 64]), "w")
    ops.graph.output(y, "y", np.float32, ["T", 40])
    x = rng.standard_normal((5, 64), np.float32)
    x[0, 0] = 5  # past 448 input scales: it saturates
    session = DecoderSession(ops.graph.model("linear"), weights, fp8=True)
    seen = x
    if with_input_scale:
        # ml_dtypes has no saturation of its own
        seen = np.clip(x / np.float32(0.005), -448, 448).astype(e4m3).astype(np.float32)
        seen = seen * np.float32(0.005)
    expected = seen @ codes.astype(np.float32).T * np.float32(0.02)
    assert relative_error(session({"x": x})["y"], expected) <= 1e-5


@pytest.mark.parametrize(("recipe", "precision"), [("int4", DEVICE), ("fp8", DEVICE)])
def test_orin_sees_no_type_that_it_lacks(
    sized: Checkpoint, recipe: str, precision: Precision
) -> None:
    spec = sized.spec.decoder
    model = decoder_model(spec, recipe_layout(spec, load_recipe(recipe)), precision)
    kinds = onnx.TensorProto
    lacking = {kinds.FLOAT8E4M3FN, kinds.FLOAT4E2M1}
    bound = {b.type.tensor_type.elem_type for b in model.graph.input}
    assert not bound & lacking
    fp8 = decoder_model(spec, recipe_layout(spec, load_recipe("fp8")), DEVICE_FP8)
    assert {b.type.tensor_type.elem_type for b in fp8.graph.input} & lacking


@pytest.mark.parametrize("kernels", [False, True], ids=["operators", "kernels"])
@pytest.mark.parametrize("board", plans.TARGETS)
@pytest.mark.parametrize("recipe", known_recipes())
def test_bytes_are_int8_and_become_integers_by_way_of_floats(
    sized: Checkpoint, recipe: str, board: str, kernels: bool
) -> None:
    spec, precision = sized.spec.decoder, plans.TARGETS[board].precision
    layout = recipe_layout(spec, load_recipe(recipe))
    if kernels and layout["layers.1.experts_up"][0] != np.uint8:
        with pytest.raises(BundleError, match="the kernels take nvfp4 and int4"):
            decoder_model(spec, layout, precision, kernels=kernels)
        return
    model = decoder_model(spec, layout, precision, kernels=kernels)
    bound = {b.name: b.type.tensor_type.elem_type for b in model.graph.input}
    packed = {name for name, (dtype, _) in layout.items() if dtype == np.uint8}
    assert {bound[name] for name in packed} <= {onnx.TensorProto.INT8}
    assert byte_casts(model) == []


def test_a_cast_from_a_byte_is_found() -> None:
    """The test of the test above: the two things that it looks for."""
    graph = Graph()
    graph.output(graph.cast(graph.input("a", np.int8, [4]), np.int32), "i", np.int32, [4])
    graph.output(graph.cast(graph.input("b", np.uint8, [4]), np.float32), "f", np.float32, [4])
    assert byte_casts(graph.model("bytes")) == ["b", "Cast_0"]


def test_every_byte_is_decoded() -> None:
    """Those above 127 are negative numbers where they are bound."""
    codes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    scales = np.delete(np.arange(256, dtype=np.uint8), [0x7F, 0xFF])
    graph = Graph()
    table = decoded(
        graph,
        Stored("w", "fp8", (), 2, 127, has_input_scale=False),
        [graph.input("w", np.int8, [2, 127]), graph.input("s", np.float32, [])],
    )
    graph.output(table, "fp8", np.float32, [2, 127])
    low_high = decoded(
        graph,
        Stored("c", "int4", (), 32, 128, has_input_scale=False),
        [graph.input("c", np.int8, [16, 128]), graph.input("t", np.float32, [32, 1])],
    )
    graph.output(low_high, "int4", np.float32, [32, 128])
    wide = np.tile(codes, 8)
    weights = {
        "w": scales.reshape(2, 127), "s": np.float32(1),
        "c": wide, "t": np.ones((32, 1), np.float32),
    }  # fmt: skip
    got = DecoderSession(graph.model("decode"), weights)({})
    e4m3 = scales.reshape(2, 127).view(ml_dtypes.float8_e4m3fn)
    assert (got["fp8"] == e4m3.astype(np.float32)).all()
    signed = np.stack([wide & 15, wide >> 4], 1).reshape(32, 128).astype(np.int8)
    assert (got["int4"] == np.where(signed > 7, signed - 16, signed)).all()


@pytest.mark.parametrize("recipe", known_recipes())
def test_holds_no_weight_and_binds_no_int64(sized: Checkpoint, recipe: str) -> None:
    spec = sized.spec.decoder
    layout = recipe_layout(spec, load_recipe(recipe))
    model = decoder_model(spec, layout, DEVICE_FP8)
    onnx.checker.check_model(model, full_check=True)
    assert sum(len(t.raw_data) for t in model.graph.initializer) < 1 << 16
    bindings = [*model.graph.input, *model.graph.output]
    assert onnx.TensorProto.INT64 not in {b.type.tensor_type.elem_type for b in bindings}
    used = {name for node in model.graph.node for name in node.input}
    assert {b.name for b in model.graph.input} <= used
    assert {node.domain for node in model.graph.node} == {"", "edge"}
    asked = {b.name for b in model.graph.input} & set(layout)
    unused = {n for n in set(layout) - asked if not n.endswith(".input_scale")}
    assert not unused


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize(
    ("recipe", "formats"), [("nvfp4", ("nvfp4", "nvfp4")), ("int4", ("int4", "nvfp4"))]
)
def test_experts_as_kernels(
    sized: Checkpoint, recipe: str, formats: tuple[str, str], phase: Phase
) -> None:
    """Each operator becomes a chain of plugins that reads what the operator read."""
    spec = sized.spec.decoder
    layout = recipe_layout(spec, load_recipe(recipe))
    operators = decoder_model(spec, layout, DEVICE)
    plain = [node for node in operators.graph.node if node.domain == "edge"]
    model = inline_local_functions(decoder_model(spec, layout, DEVICE, kernels=True, phase=phase))
    nodes = [node for node in model.graph.node if node.domain == "edge"]
    up, down = formats
    names = [f"decode_up_{up}", f"decode_down_{down}"]
    if phase == "prefill":
        names = ["sort_pairs", f"prefill_up_{up}", f"prefill_down_{down}", "combine"]
    n_up, n = names.index(f"{phase}_up_{up}"), len(names)
    assert [node.op_type for node in nodes] == len(plain) * names
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    for node in nodes:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert (attributes["plugin_namespace"], attributes["aot"]) == (b"edge", 1)
    for i, operator in enumerate(plain):
        chain = nodes[n * i : n * i + n]
        made = {name for node in chain for name in node.output}
        read = {name for node in chain for name in node.input} - made
        assert read == set(operator.input)
        n_tensors = 3 if up == "nvfp4" else 2
        weights = [*operator.input[3:]]
        assert [*chain[n_up].input[-n_tensors:]] == weights[:n_tensors]
        assert [*chain[n_up + 1].input[n_tensors - len(weights) :]] == weights[n_tensors:]
        assert [*chain[-1].output] == [*operator.output]


def test_experts_without_kernels_are_refused(sized: Checkpoint) -> None:
    spec = sized.spec.decoder
    layout = recipe_layout(spec, load_recipe("bf16"))
    with pytest.raises(BundleError, match="experts_up: is bfloat16, the kernels take"):
        decoder_model(spec, layout, DEVICE, kernels=True)


def run_scan(spec: Any, values: dict[str, Any]) -> Any:
    """y of the scan alone: of the graph, and of the reference with its float64 sums."""
    graph, n = Graph(), len(values["x"])
    inputs = [graph.input(k, np.float32, v.shape) for k, v in values.items()]
    causal = graph.const(np.tri(n, dtype=bool))
    y, after = scan(graph, spec, Scan(*inputs), causal)
    graph.output(y, "y", np.float32, values["x"].shape)
    graph.output(after, "after", np.float32, values["state"].shape)
    got = DecoderSession(graph.model("scan"), {})(values)
    names = {"dt_bias": "dt_bias", "A_log": "a_log", "D": "d"}
    weights = {f"layers.0.{name}": values[at] for name, at in names.items()}
    state = DecoderState(0, {}, {}, {0: values["state"]})
    ops = ReferenceOps(spec, weights, state)  # type: ignore[arg-type]
    expected = ops.ssd(values["x"], values["b"], values["c"], values["dt"], 0)
    return relative_error(got["y"], expected), relative_error(got["after"], state.ssm[0])


@pytest.fixture
def scanned(sized: Checkpoint) -> tuple[Any, dict[str, Any]]:
    """Sizes, and inputs of the scan over 256 tokens."""
    spec, rng, n = sized.spec.decoder, np.random.default_rng(0), 256
    heads, group_width = spec.mamba_n_heads, spec.n_groups * spec.state_size
    shape = (heads, spec.mamba_head_dim, spec.state_size)
    return spec, {
        "x": rng.standard_normal((n, spec.d_inner), np.float32),
        "b": rng.standard_normal((n, group_width), np.float32),
        "c": rng.standard_normal((n, group_width), np.float32),
        "dt": np.full((n, heads), -4, np.float32),
        "state": rng.standard_normal(shape, np.float32),
        "dt_bias": np.zeros(heads, np.float32),
        "a_log": np.log(rng.uniform(1, 16, heads)).astype(np.float32),
        "d": np.zeros(heads, np.float32),
    }


def test_small_decays_survive_large_ones_before_them(scanned: tuple[Any, dict[str, Any]]) -> None:
    spec, values = scanned
    values["dt"][:128] = 300
    # measured: 1.1e-4; 5e-2 with one plain float32 sum
    assert max(run_scan(spec, values)) <= 5e-4


@pytest.mark.parametrize("dt", [-30.0, -12.0, -9.0, -5.001, -4.999, 0.0, 20.0, 100.0])
def test_the_time_step_keeps_its_digits(scanned: tuple[Any, dict[str, Any]], dt: float) -> None:
    spec, values = scanned
    values["dt"][:], values["state"][:] = dt, 0
    assert max(run_scan(spec, values)) <= 2e-5


def test_softplus_keeps_its_digits_where_it_is_small() -> None:
    """Measured: 1.2e-7 below -5, 5.7e-6 above; without the series' third term 1.5e-5 at -5."""
    x = np.concatenate([np.linspace(-85, -5.0001, 2000), np.linspace(-5, 100, 2000)])
    graph = Graph()
    rows = graph.input("x", np.float32, x.shape)
    graph.output(_softplus(graph, rows), "y", np.float32, x.shape)
    got = DecoderSession(graph.model("softplus"), {})({"x": x.astype(np.float32)})["y"]
    error = np.abs(got / np.logaddexp(0, x.astype(np.float32).astype(np.float64)) - 1)
    assert error[:2000].max() < 5e-7
    assert error[2000:].max() < 1e-5


def test_a_router_that_wants_no_expert_gives_none_weight(sized: Checkpoint) -> None:
    """Scores of which none is above 0: transformers divides by their sum and 1e-20."""
    spec = msgspec.structs.replace(sized.spec.decoder, norm_topk_prob=True)
    names: dict[str, tuple[int, ...]] = {
        "layers.0.gate": (spec.n_experts, 8),
        "layers.0.gate_bias": (spec.n_experts,),
    }
    layout = {name: (np.dtype(np.float32), shape) for name, shape in names.items()}
    ops = OnnxOps(spec, layout, REFERENCE)
    ids, weights = ops.route(ops.graph.input("x", np.float32, [2, 8]), 0)
    chosen = [2, spec.n_experts_per_token]
    ops.graph.output(ids, "ids", np.int32, chosen)
    ops.graph.output(weights, "weights", np.float32, chosen)
    held = {name: np.full(shape, -100, np.float32) for name, shape in names.items()}
    got = DecoderSession(ops.graph.model("route"), held)({"x": np.ones((2, 8), np.float32)})
    np.testing.assert_array_equal(got["weights"], np.zeros(chosen))


def test_an_unknown_or_missing_weight_is_named(sized: Checkpoint) -> None:
    spec = sized.spec.decoder
    layout = dict(recipe_layout(spec, load_recipe("bf16")))
    layout["head"] = np.dtype(np.int8), layout["head"][1]
    with pytest.raises(BundleError, match="head: has the dtype int8, of no known format"):
        decoder_model(spec, layout, REFERENCE)
    del layout["head"]
    with pytest.raises(BundleError, match=r"head: is not in decoder\.safetensors"):
        stored(layout, "head")
