"""In which types a device's decoder multiplies, what it binds, and what it writes once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import onnx
import pytest
from graphs.decoder_session import DecoderSession
from graphs.random_decoder import divisible_checkpoint, layout_of
from published_config import CONFIG

from build_engine.checkpoint import Checkpoint
from build_engine.decoder_layout import recipe_layout
from build_engine.graphs.decoder import (
    DEVICE,
    DEVICE_FP8,
    REFERENCE,
    OnnxOps,
    Precision,
    decoder_model,
)
from build_engine.graphs.moe import kernels_function, moe_function, operator_name
from build_engine.graphs.weight_formats import Stored, bind, decoded, stored
from build_engine.recipe import load_recipe
from build_engine.stored import layout_of as layout_of_format
from edge.engines.formats import interleave_nvfp4, pack_nvfp4, unpack_nvfp4
from edge.engines.safetensors import Layout
from edge.errors import BundleError
from edge.model.spec import model_spec

BF16, E4M3 = (np.dtype(t) for t in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn))
KINDS = onnx.TensorProto
F32, F16, B16, I32, I8 = KINDS.FLOAT, KINDS.FLOAT16, KINDS.BFLOAT16, KINDS.INT32, KINDS.INT8


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return divisible_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def of_format(name: str, kind: str, shape: tuple[int, ...] = (32, 128)) -> Layout:
    """What a bundle holds of one linear."""
    if kind == "float32":
        return {name: (np.dtype(np.float32), shape)}
    parts = layout_of_format(kind, shape, BF16, has_input_scale=kind in ("fp8", "nvfp4"))  # type: ignore[arg-type]
    return {name + suffix: part for suffix, part in parts.items()}


def ops_of(layout: Layout, precision: Precision) -> OnnxOps:
    return OnnxOps(None, layout, precision)  # type: ignore[arg-type]


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Of every value."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*graph.input, *graph.output, *graph.value_info]
    return {v.name: v.type.tensor_type.elem_type for v in values}


def made(ops: OnnxOps, value: str) -> onnx.ModelProto:
    ops.graph.output(value, "y", np.float32, ["T", 32])
    return ops.graph.model("m")


def product(model: onnx.ModelProto) -> onnx.NodeProto:
    (node,) = [node for node in model.graph.node if node.op_type == "MatMul"]
    return node


@pytest.mark.parametrize(
    ("name", "kind", "precision", "multiplied"),
    [
        ("gate", "float32", DEVICE, F32),
        ("in_proj", "bf16", DEVICE, B16),
        ("in_proj", "w4a16", DEVICE, F16),
        ("in_proj", "int4", DEVICE, F16),
        ("in_proj", "fp8", DEVICE, F16),
        ("layers.1.shared_down", "w4a16", DEVICE, B16),  # squares may pass float16's range
        ("layers.1.shared_down", "fp8", DEVICE, B16),
        ("layers.1.shared_up", "w4a16", DEVICE, F16),
        ("in_proj", "nvfp4", DEVICE_FP8, F16),
        ("in_proj", "fp8", DEVICE_FP8, B16),  # between types that cannot be tables
        ("in_proj", "w4a16", REFERENCE, F32),
        ("in_proj", "bf16", REFERENCE, F32),
    ],
)
def test_a_product_is_of_a_type_that_holds_its_values(
    name: str, kind: str, precision: Precision, multiplied: int
) -> None:
    ops = ops_of(of_format(name, kind), precision)
    x = ops.graph.input("x", np.float32, ["T", 128])
    model = made(ops, ops.linear(x, name))
    assert types_of(model)[product(model).output[0]] == multiplied


def test_a_value_is_narrowed_once_for_all_who_read_it() -> None:
    layout = {**of_format("a", "bf16"), **of_format("b", "bf16"), **of_format("c", "w4a16")}
    ops = ops_of(layout, DEVICE)
    x = ops.graph.input("x", np.float32, ["T", 128])
    y = [ops.linear(x, name) for name in "abc"]
    model = made(ops, ops.add(ops.add(y[0], y[1]), y[2]))
    casts = [n.attribute[0].i for n in model.graph.node if n.op_type == "Cast" and "x" in n.input]
    assert casts == [B16, F16]


@pytest.mark.parametrize("kind", ["fp8", "int4", "w4a16", "nvfp4", "bf16", "float32"])
def test_what_is_stored_is_known_by_types_and_siblings(kind: str) -> None:
    found = stored(of_format("a", kind), "a")
    kinds = {"bf16": "bfloat16", "w4a16": "nvfp4"}
    expected = kinds.get(kind, kind)
    assert (found.name, found.kind, found.stack) == ("a", expected, ())
    assert (found.n, found.k) == (32, 128)
    assert found.has_input_scale is (kind in ("fp8", "nvfp4"))
    scales = {"fp8": ["a.scale"], "int4": ["a.block_scale"], "nvfp4": ["a.block_scale", "a.scale"]}
    assert list(found.tensors) == ["a", *scales.get(expected, [])]
    stacked = {n: (dtype, (5, *shape)) for n, (dtype, shape) in of_format("a", kind).items()}
    of_experts = stored(stacked, "a")
    assert (of_experts.stack, of_experts.n, of_experts.k) == ((5,), 32, 128)


def test_bytes_without_scales_are_of_no_format() -> None:
    with pytest.raises(BundleError, match="a: has the dtype uint8, of no known format"):
        stored({"a": (np.dtype(np.uint8), (4, 4))}, "a")


@pytest.mark.parametrize(
    ("dtype", "fp8", "bound"),
    [
        (np.uint8, False, I8), (np.uint8, True, I8), (E4M3, False, I8),
        (E4M3, True, KINDS.FLOAT8E4M3FN), (BF16, True, B16), (np.float32, False, F32),
    ],
)  # fmt: skip
def test_bytes_are_bound_as_int8(dtype: Any, fp8: bool, bound: int) -> None:
    ops = ops_of({}, DEVICE)
    assert bind(ops.graph, {"a": (np.dtype(dtype), (3, 4))}, "a", fp8=fp8) == "a"
    (found,) = ops.graph.model("m").graph.input
    assert found.type.tensor_type.elem_type == bound
    assert [d.dim_value for d in found.type.tensor_type.shape.dim] == [3, 4]


@pytest.mark.parametrize(("n", "stack"), [(16, ()), (24, ()), (8, ()), (40, (3,)), (16, (2,))])
def test_nvfp4_is_read_in_tiles_of_16_rows_and_a_last_one(n: int, stack: tuple[int, ...]) -> None:
    rng, k = np.random.default_rng(0), 32
    count = stack[0] if stack else 1
    packed = [pack_nvfp4(rng.standard_normal((n, k), np.float32), name="w") for _ in range(count)]
    kept = [interleave_nvfp4(one) for one in packed]
    codes, blocks, scales = (
        np.stack([np.asarray(getattr(one, part)) for one in kept])
        if stack
        else np.asarray(getattr(kept[0], part))
        for part in ("codes", "block_scale", "scale")
    )
    weights = {"w": codes, "w.block_scale": blocks, "w.scale": scales}
    layout = layout_of(weights)
    ops, weight = ops_of(layout, REFERENCE), stored(layout, "w")
    assert (weight.stack, weight.n, weight.k) == (stack, n, k)
    names = [bind(ops.graph, layout, name) for name in weight.tensors]
    ops.graph.output(decoded(ops.graph, weight, names), "y", np.float32, [*stack, n, k])
    got = DecoderSession(ops.graph.model("m"), weights)({})["y"]
    expected = np.stack([unpack_nvfp4(one) for one in packed])
    # the scales are multiplied in another order
    np.testing.assert_allclose(got, expected if stack else expected[0], rtol=3e-7)


def bindings(model: onnx.ModelProto, side: str) -> dict[str, tuple[int, list[int | str]]]:
    return {
        b.name: (
            b.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in b.type.tensor_type.shape.dim],
        )
        for b in getattr(model.graph, side)
    }


@pytest.mark.parametrize(("phase", "n"), [("decode", 1), ("prefill", "T")])
def test_a_device_binds_what_the_engine_gives(sized: Checkpoint, phase: Any, n: int | str) -> None:
    spec = sized.spec.decoder  # M E E *
    layout = recipe_layout(spec, load_recipe("w4a16"))
    model = decoder_model(spec, layout, DEVICE, phase=phase)
    assert model.graph.name == phase
    given = bindings(model, "input")
    heads = [spec.n_kv_heads, spec.head_dim]
    conv = [spec.conv_kernel - 1, spec.conv_dim]
    ssm = [spec.mamba_n_heads, spec.mamba_head_dim, spec.state_size]
    weights = set(layout) - {"embeddings"}  # of which rows are given
    assert {name: b for name, b in given.items() if name not in weights} == {
        "embeddings": (F16, [n, spec.hidden_size]), "past_len": (I32, [1]),
        "past_k.3": (F16, ["C", *heads]), "past_v.3": (F16, ["C", *heads]),
        "conv.0": (F16, conv), "ssm.0": (F32, ssm),
    }  # fmt: skip
    top = min(64, spec.vocab_size)
    assert bindings(model, "output") == {
        "logits": (F32, [1, spec.vocab_size]), "top_values": (F32, [1, top]),
        "top_ids": (I32, [1, top]), "new_k.3": (F16, [n, *heads]), "new_v.3": (F16, [n, *heads]),
        "new_conv.0": (F16, conv), "new_ssm.0": (F32, ssm),
    }  # fmt: skip


@pytest.mark.parametrize(("wanted", "given"), [(3, 3), (10_000, 512)])
def test_no_more_logits_are_chosen_than_there_are(
    sized: Checkpoint, wanted: int, given: int
) -> None:
    spec = msgspec.structs.replace(sized.spec.decoder, pattern="")
    layout = recipe_layout(spec, load_recipe("bf16"))
    model = decoder_model(spec, layout, REFERENCE, wanted)
    assert bindings(model, "output")["top_ids"] == (I32, [1, given])
    assert bindings(model, "output")["top_values"] == (F32, [1, given])


def test_layers_share_the_mask_and_operators_of_one_kind(sized: Checkpoint) -> None:
    spec = msgspec.structs.replace(sized.spec.decoder, pattern="**EE")
    layout = recipe_layout(spec, load_recipe("w4a16"))
    model = decoder_model(spec, layout, REFERENCE)
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["Less"] == 1
    assert counts["LessOrEqual"] == 1
    assert counts["MoE"] == 2
    assert [(f.domain, f.name) for f in model.functions] == [("edge", "MoE")]
    assert [b.name for b in model.graph.input].count("past_len") == 1


@pytest.mark.parametrize(
    ("up", "down", "name"),
    [
        ("nvfp4", "nvfp4", "MoE"), ("int4", "nvfp4", "MoE_int4_nvfp4"),
        ("nvfp4", "int4", "MoE_nvfp4_int4"), ("bfloat16", "bfloat16", "MoE_bfloat16_bfloat16"),
    ],
)  # fmt: skip
def test_an_operator_of_experts_is_named_by_their_formats(up: Any, down: Any, name: str) -> None:
    sides = [Stored(s, kind, (4,), 32, 32, False) for s, kind in (("up", up), ("down", down))]
    assert operator_name(*sides) == name
    function = moe_function(*sides)
    assert (function.domain, function.name, len(function.output)) == ("edge", name, 1)
    parts = {"nvfp4": 3, "int4": 2, "bfloat16": 1}
    inputs = ["x", "ids", "weights"]
    inputs += [f"{s.name}_{i}" for s in sides for i in range(parts[s.kind])]
    assert [*function.input] == inputs
    if "bfloat16" in (up, down):
        with pytest.raises(BundleError, match="up: is bfloat16, the kernels take nvfp4 and int4"):
            kernels_function("decode", *sides, 2)
        return
    chain = kernels_function("decode", *sides, 2)
    assert (chain.domain, chain.name) == ("edge", name)
    assert [*chain.output] == ["y"]
    assert [(o.domain, o.version) for o in chain.opset_import] == [("edge", 1)]
    words = ("codes", "block_scale", "scale")
    names = [f"{s.name}_{part}" for s in sides for part in words[: parts[s.kind]]]
    assert [*chain.input] == ["x", "ids", "weights", *names]
    for node in chain.node:
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert given.get("n_experts", 4) == 4
        assert given.get("n_slots", 2) == 2


def routed(spec: Any, gate: Any, bias: Any, x: Any) -> tuple[Any, Any]:
    layer = {"layers.0.gate": gate, "layers.0.gate_bias": bias}
    ops = OnnxOps(spec, layout_of(layer), REFERENCE)
    ids, weights = ops.route(ops.graph.input("x", np.float32, ["T", x.shape[1]]), 0)
    n = spec.n_experts_per_token
    ops.graph.output(ids, "ids", np.int32, ["T", n])
    ops.graph.output(weights, "weights", np.float32, ["T", n])
    got = DecoderSession(ops.graph.model("m"), layer)({"x": x})
    return got["ids"], got["weights"]


def router_of(spec: Any, **sizes: Any) -> Any:
    """With these sizes, and scores as they are."""
    plain = {"norm_topk_prob": False, "routed_scaling_factor": 1.0}
    return msgspec.structs.replace(spec, **plain | sizes)


def test_experts_that_nobody_wants_get_no_share_and_no_nan(sized: Checkpoint) -> None:
    spec = router_of(sized.spec.decoder, n_experts=4, n_experts_per_token=2, norm_topk_prob=True)
    x = np.ones((1, 8), np.float32)
    ids, weights = routed(spec, np.full((4, 8), -50, np.float32), np.zeros(4, np.float32), x)
    assert (ids.tolist(), weights.tolist()) == ([[0, 1]], [[0, 0]])


def test_a_bias_chooses_an_expert_and_does_not_weigh_it(sized: Checkpoint) -> None:
    spec = router_of(sized.spec.decoder, n_experts=4, n_experts_per_token=2)
    gate = np.float32([[0], [1], [2], [-1]])
    x = np.ones((1, 1), np.float32)
    ids, weights = routed(spec, gate, np.float32([0, 0, 0, 5]), x)
    assert ids.tolist() == [[3, 2]]
    np.testing.assert_allclose(weights, 1 / (1 + np.exp([[1.0, -2.0]])), rtol=1e-6)
    halved = router_of(
        spec, n_experts=4, n_experts_per_token=2, norm_topk_prob=True, routed_scaling_factor=0.5
    )
    _, shares = routed(halved, gate, np.float32([0, 0, 0, 5]), x)
    np.testing.assert_allclose(shares, 0.5 * weights / weights.sum(), rtol=1e-6)


@pytest.mark.parametrize(
    ("n_groups", "kept", "n_slots", "expected"),
    [
        (1, 1, 2, [0, 5]),
        (2, 1, 2, [5, 4]),  # 0.7 + 0.6 is more than 0.9 + 0.1
        (2, 2, 2, [0, 5]),
        (3, 1, 1, [5]),
        (3, 2, 3, [0, 5, 4]),
        (6, 2, 2, [0, 5]),  # groups of one count by it
    ],
)
def test_groups_of_experts_count_by_their_two_best(
    sized: Checkpoint, n_groups: int, kept: int, n_slots: int, expected: list[int]
) -> None:
    spec = router_of(
        sized.spec.decoder, n_experts=6, n_experts_per_token=n_slots, n_expert_groups=n_groups,
        n_expert_groups_per_token=kept,
    )  # fmt: skip
    scores = np.float64([0.9, 0.1, 0.05, 0.02, 0.6, 0.7])
    gate = np.log(scores / (1 - scores)).astype(np.float32)[:, None]
    ids, _ = routed(spec, gate, np.zeros(6, np.float32), np.ones((1, 1), np.float32))
    assert ids.tolist() == [expected]


def test_the_published_decoder_is_written_for_both_targets() -> None:
    """One block of each kind: what is bound as FP8 is FP8 only where the GPU multiplies it."""
    spec = msgspec.structs.replace(model_spec(CONFIG, {}).decoder, pattern="M*E")
    layout = recipe_layout(spec, load_recipe("nvfp4"))
    for precision, bound in ((DEVICE, I8), (DEVICE_FP8, KINDS.FLOAT8E4M3FN)):
        given = bindings(decoder_model(spec, layout, precision, kernels=True), "input")
        assert given["layers.0.in_proj"][0] == bound
        assert ("layers.0.in_proj.input_scale" in given) is precision.fp8
        assert given["layers.2.experts_up"][0] == I8
        assert given["layers.2.experts_up.block_scale"][0] == I8
