"""The routed experts as one operator, edge::MoE, with a body of standard operators.

The body decodes and computes every expert: it tells what the operator means and runs anywhere,
slowly. `kernels_function` is the same operator as the GPU's own kernels, each a plugin of TensorRT.
"""

from __future__ import annotations

import numpy as np
from onnx import FunctionProto, helper

from build_engine.graphs.onnx_ops import Graph
from build_engine.graphs.weight_formats import Stored, decoded
from edge.errors import BundleError
from gpu_kernels.launch import FORMATS
from gpu_kernels.plugins import NAMESPACE, Phase, chain

DOMAIN, OPERATOR = "edge", "MoE"


def operator_name(up: Stored, down: Stored) -> str:
    """MoE where both are NVFP4; else the formats are in it."""
    if up.kind == down.kind == "nvfp4":
        return OPERATOR
    return f"{OPERATOR}_{up.kind}_{down.kind}"


def moe_function(up: Stored, down: Stored) -> FunctionProto:
    """The operator for experts stored like these.

    Inputs:
        x: [T, hidden].
        ids: int32 [T, slots], the experts of each row.
        weights: float32 [T, slots].
        then the tensors of `up` [experts, width, hidden] and of `down` [experts, hidden, width]:
        for NVFP4 codes, block_scale and scale of each.
    Output:
        y: like x, the sum over a row's slots of weight * down(max(up(x), 0) ** 2).
    """
    graph, (n_experts,) = Graph(), up.stack
    sides = [
        [f"{side}_{part}" for part in range(len(weight.tensors))]
        for side, weight in (("up", up), ("down", down))
    ]
    # float32 inside: the square of a float16 above 255 would overflow
    x = graph.op("Unsqueeze", graph.cast("x", np.float32), np.array([0], np.int64))
    for weight, tensors in zip((up, down), sides, strict=True):
        matrix = graph.transpose(decoded(graph, weight, tensors), 0, 2, 1)
        x = graph.op("MatMul", x, matrix)  # [experts, T, n]
        x = graph.relu2(x) if weight is up else x
    last = np.array([2], np.int64)
    chosen = graph.op(
        "Equal", graph.op("Unsqueeze", "ids", last), np.arange(n_experts, dtype=np.int32)
    )
    shares = graph.op("Mul", graph.cast(chosen, np.float32), graph.op("Unsqueeze", "weights", last))
    shares = graph.op("ReduceSum", shares, np.array([1], np.int64), keepdims=0)  # [T, experts]
    shares = graph.op("Unsqueeze", graph.transpose(shares, 1, 0), last)
    y = graph.op("ReduceSum", graph.op("Mul", x, shares), np.array([0], np.int64), keepdims=0)
    y = graph.op("CastLike", y, "x")
    inputs = ["x", "ids", "weights", *sides[0], *sides[1]]
    return graph.function(DOMAIN, operator_name(up, down), inputs, [y])


def kernels_function(phase: Phase, up: Stored, down: Stored, n_slots: int) -> FunctionProto:
    """The operator for x in float16 as a chain of kernels: decode's is the shorter one.

    Inputs and output are those of `moe_function`.

    Args:
        phase: whose chain.
        n_slots: experts of a row.
    Raises:
        BundleError: there are no kernels for experts in this format.
    """
    for weight in (up, down):
        if weight.kind not in FORMATS:
            raise BundleError(
                weight.name,
                f"is {weight.kind}, the kernels take {' and '.join(FORMATS)}",
                "compile without --kernels, or quantize with another recipe",
            )
    nodes = []
    for node in chain(phase, up.kind, down.kind, up.stack[0], n_slots):
        made = helper.make_node(
            node.plugin, node.inputs, node.outputs, node.plugin, domain=NAMESPACE
        )
        attributes = {"plugin_namespace": NAMESPACE, "aot": 1, **node.attributes}
        made.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        nodes.append(made)
    parts = ("codes", "block_scale", "scale")
    weights = [
        f"{side}_{part}"
        for side, weight in (("up", up), ("down", down))
        for part in parts[: len(weight.tensors)]
    ]
    imports = [helper.make_opsetid(NAMESPACE, 1)]
    return helper.make_function(
        *(DOMAIN, operator_name(up, down), ["x", "ids", "weights", *weights], ["y"]), nodes, imports
    )
