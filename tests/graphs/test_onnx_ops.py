"""The graph writer: what it writes is what onnxruntime computes, and is named as it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from build_engine.graphs.onnx_ops import END, ExternalData, Graph
from edge.engines.onnx_runtime import onnxruntime


def computed(graph: Graph, value: str, dtype: Any = np.float32, rank: int = 2, **given: Any) -> Any:
    graph.output(value, "out", dtype, [f"d{i}" for i in range(rank)])
    model = graph.model("piece")
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, given)[0]


X = np.arange(12, dtype=np.float32).reshape(3, 4) - 5


def with_x() -> tuple[Graph, str]:
    graph = Graph()
    return graph, graph.input("x", np.float32, ["rows", 4])


@pytest.mark.parametrize(
    ("axis", "start", "end", "expected"),
    [
        (0, 1, END, X[1:]),
        (1, 0, 2, X[:, :2]),
        (1, -1, END, X[:, -1:]),
        (0, 0, -1, X[:-1]),
    ],
)
def test_a_slice_is_numpys(axis: int, start: int, end: int, expected: Any) -> None:
    graph, x = with_x()
    assert (computed(graph, graph.slice(x, axis, start, end), x=X) == expected).all()
    graph, x = with_x()
    assert (computed(graph, graph.slice(x, 0, 1), x=X) == X[1:]).all()


def test_bounds_and_lengths_may_be_those_of_another_tensor() -> None:
    graph, x = with_x()
    y = graph.input("y", np.float32, ["n"])
    n = graph.size(y, 0)
    kept = graph.slice(x, 1, 0, n)
    out = computed(graph, graph.reshape(kept, n, -1), x=X, y=np.zeros(2, np.float32))
    assert (out == X[:, :2].reshape(2, 3)).all()


@pytest.mark.parametrize(
    ("shape", "expected"), [((2, -1), (2, 6)), ((0, 2, 2), (3, 2, 2)), ((-1,), (12,))]
)
def test_a_shape_of_numbers(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    graph, x = with_x()
    out = computed(graph, graph.reshape(x, *shape), rank=len(expected), x=X)
    assert out.shape == expected
    assert (out.reshape(-1) == X.reshape(-1)).all()
    assert [node.op_type for node in graph.model("m").graph.node] == ["Reshape", "Identity"]


@pytest.mark.parametrize("axis", [0, 1])
def test_a_size_is_one_axis(axis: int) -> None:
    graph, x = with_x()
    size = graph.cast(graph.size(x, axis), np.int32)
    assert computed(graph, size, np.int32, 1, x=X).tolist() == [X.shape[axis]]


def test_layers_are_what_their_names_say() -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.standard_normal((2, 4), np.float32), np.float32([10, 20])
    gain, shift = rng.standard_normal((2, 4), np.float32)
    eps = 0.5
    centred = X - X.mean(axis=1, keepdims=True)
    spread = np.sqrt(np.square(centred).mean(axis=1, keepdims=True) + eps)
    size = np.sqrt(np.square(X).mean(axis=1, keepdims=True) + eps)
    expected = {
        "linear": (lambda g, x: g.linear(x, weight), X @ weight.T),
        "biased": (lambda g, x: g.linear(x, weight, bias), X @ weight.T + bias),
        "layer_norm": (
            lambda g, x: g.layer_norm(x, gain, shift, eps), centred / spread * gain + shift
        ),
        "rms_norm": (lambda g, x: g.rms_norm(x, gain, eps), X / size * gain),
        "silu": (lambda g, x: g.silu(x), X / (1 + np.exp(-X))),
        "relu2": (lambda g, x: g.relu2(x), np.maximum(X, 0) ** 2),
        "transposed": (lambda g, x: g.transpose(x, 1, 0), X.T),
    }  # fmt: skip
    for name, (write, values) in expected.items():
        graph, x = with_x()
        out = computed(graph, write(graph, x), x=X)  # type: ignore[no-untyped-call]
        np.testing.assert_allclose(out, values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_constants_keep_their_dtype_order_and_rank() -> None:
    graph = Graph()
    values = [np.float32(3), np.arange(6).reshape(2, 3).T, np.zeros((0,), np.int64)]
    assert [graph.const(v) for v in values] == ["constant_0", "constant_1", "constant_2"]
    held = [onnx.numpy_helper.to_array(t) for t in graph.model("m").graph.initializer]
    for got, value in zip(held, values, strict=True):
        assert (got.dtype, got.shape) == (value.dtype, value.shape)
        assert (got == value).all()


def test_nodes_and_their_outputs_have_names_of_their_own() -> None:
    graph, x = with_x()
    first, second = graph.ops("Split", x, n_outputs=2, axis=1, num_outputs=2)
    assert (first, second) == ("Split_0_0", "Split_0_1")
    added = graph.op("Add", first, second)
    graph.output(added, "y", np.float32, ["rows", 2])
    model = graph.model("halves")
    assert [node.name for node in model.graph.node] == ["Split_0", "Add_1", "y"]
    assert model.graph.name == "halves"
    assert [b.name for b in model.graph.output] == ["y"]


def test_a_graph_is_of_opset_21_and_of_the_domains_of_its_functions() -> None:
    body = Graph()
    function = body.function("edge", "Twice", ["x"], [body.op("Add", "x", body.const(np.ones(1)))])
    graph, x = with_x()
    graph.output(graph.op("Twice", x, domain="edge"), "y", np.float32, ["rows", 4])
    model = graph.model("m", [function, function])
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 21), ("edge", 1)]
    assert model.ir_version == 10
    assert (model.graph.node[0].op_type, model.graph.node[0].domain) == ("Twice", "edge")
    assert (function.domain, function.name) == ("edge", "Twice")
    assert [(o.domain, o.version) for o in function.opset_import] == [("", 21)]
    assert [*function.input, *function.output] == ["x", "Add_0_0"]
    assert [n.op_type for n in function.node] == ["Constant", "Add"]
    assert [*function.node[0].output] == ["constant_0"]
    alone = Graph().model("empty")
    assert ([(o.domain, o.version) for o in alone.opset_import], alone.ir_version) == (
        [("", 21)], 10
    )  # fmt: skip


def test_no_binding_is_of_64_bits() -> None:
    graph, x = with_x()
    with pytest.raises(ValueError, match="n: TensorRT binds int32, not int64"):
        graph.input("n", np.int64, [1])
    with pytest.raises(ValueError, match="m: TensorRT binds int32, not int64"):
        graph.output(x, "m", np.int64, [1])


def test_large_constants_are_written_page_by_page(tmp_path: Path) -> None:
    path = tmp_path / "weights.data"
    small, large = np.zeros(1020, np.uint8), np.arange(1024, dtype=np.uint8)
    with ExternalData(path) as weights:
        graph = Graph(weights)
        for values in (large, small, large.reshape(32, 32).T, np.ones(5000, np.uint8), large):
            graph.const(values)
    tensors = graph.model("m").graph.initializer
    outside = [t for t in tensors if t.data_location == onnx.TensorProto.EXTERNAL]
    assert [t.name for t in outside] == [f"constant_{i}" for i in (0, 2, 3, 4)]
    assert not any(t.HasField("raw_data") for t in outside)
    where = [{e.key: e.value for e in t.external_data} for t in outside]
    assert [(int(w["offset"]), int(w["length"])) for w in where] == [
        (0, 1024), (4096, 1024), (8192, 5000), (16_384, 1024)
    ]  # fmt: skip
    assert {w["location"] for w in where} == {"weights.data"}
    data = path.read_bytes()
    assert len(data) == 16_384 + 1024
    assert data[4096:5120] == large.reshape(32, 32).T.tobytes()
    assert [*outside[1].dims] == [32, 32]
    assert outside[1].data_type == helper.np_dtype_to_tensor_dtype(np.dtype(np.uint8))
    with pytest.raises(ValueError, match="closed"):
        weights.append(large, "late")
