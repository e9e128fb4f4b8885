"""What TensorRT may refuse of bytes: the type UINT8, and a cast from a byte to an integer."""

from __future__ import annotations

import onnx
from onnx import ModelProto
from onnx.inliner import inline_local_functions

KINDS = onnx.TensorProto
FLOATS = (KINDS.FLOAT, KINDS.FLOAT16, KINDS.BFLOAT16)


def byte_casts(model: ModelProto) -> list[str]:
    """Tensors that are UINT8, and casts from a byte to what is no float, functions included."""
    whole = inline_local_functions(model)
    has_plugins = {node.domain for node in whole.graph.node} != {""}
    graph = onnx.shape_inference.infer_shapes(whole, strict_mode=not has_plugins).graph
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.output, *graph.value_info)
    }
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    found = [name for name, kind in kinds.items() if kind == KINDS.UINT8]
    for node in graph.node:
        if node.op_type == "Cast" and node.attribute[0].i not in FLOATS:
            assert node.input[0] in kinds, f"{node.input[0]} is of an unknown type"
            found += [node.name] if kinds[node.input[0]] in (KINDS.INT8, KINDS.UINT8) else []
    return found
