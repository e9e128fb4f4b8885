"""A float32 graph for a device: its products of matrices in 16 bits, all else as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from build_engine.graphs.onnx_ops import EXTERNAL_FROM_BYTES, ExternalData

PRODUCT = "MatMul"
"""Not Conv: TensorRT may have no kernel for a depthwise one in bfloat16, and all convolutions
together hold less than 1 % of the encoders' weights."""


def narrowed(
    model: ModelProto, folder: Path, weights: ExternalData, dtype: np.dtype[Any]
) -> ModelProto:
    """The same bindings, norms, softmax, sums and residual; half the bytes of weights.

    Args:
        model: standard operators; its large constants are in files of `folder`.
        weights: takes the constants, one by one.
        dtype: of products; bfloat16 has float32's range, which squared activations may need.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == PRODUCT]
    narrow = {name for node in products for name in node.input if name in constants}
    wide = {
        name
        for node in model.graph.node
        if node.op_type != PRODUCT
        for name in node.input
        if name in constants
    }
    tensors, nodes, casts = list[TensorProto](), list[NodeProto](), dict[str, str]()
    for name, tensor in constants.items():
        values = numpy_helper.to_array(tensor, str(folder))
        if name in wide:
            tensors.append(_held(values, name, weights))
        if name in narrow:
            casts[name] = f"{name}_narrow"
            tensors.append(_held(values.astype(dtype), casts[name], weights))
    for node in model.graph.node:
        if node.op_type != PRODUCT:
            nodes.append(node)
            continue
        for name in node.input:
            if name not in casts:
                casts[name] = f"{name}_narrow"
                nodes.append(_cast(name, casts[name], dtype))
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [casts[name] for name in node.input]
        copy.output[:] = [f"{node.output[0]}_product"]
        nodes += [copy, _cast(copy.output[0], node.output[0], np.dtype(np.float32))]
    graph = helper.make_graph(
        nodes, model.graph.name, model.graph.input, model.graph.output, tensors
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _held(values: np.ndarray[Any, Any], name: str, weights: ExternalData) -> TensorProto:
    if values.nbytes >= EXTERNAL_FROM_BYTES:
        return weights.append(values, name)
    return numpy_helper.from_array(values, name)


def _cast(name: str, to: str, dtype: np.dtype[Any]) -> NodeProto:
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    return helper.make_node("Cast", [name], [to], name=to, to=kind)
