"""A small ONNX graph writer, and the few layers that every graph of the model is made of."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from onnx import FunctionProto, ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from edge.types import Float32

OPSET, IR_VERSION = 21, 10
END = np.iinfo(np.int64).max
"""A slice's end that means "to the last"."""
EXTERNAL_FROM_BYTES = 1024
DATA_ALIGNMENT_BYTES = 4096

Argument = str | NDArray[Any] | np.generic
"""A node's input: the name of a tensor, or values that become an initializer."""


class ExternalData:
    """The file beside a graph that takes its weights as they are written: none stays in memory.

    A protobuf message ends at 2 GB. Used as a context, which closes the file.
    """

    def __init__(self, path: Path) -> None:
        self._name, self._file = path.name, path.open("wb")

    def append(self, values: NDArray[Any], name: str) -> TensorProto:
        """Write values at the next page, so that they can be mapped; returns what names them."""
        self._file.seek(-self._file.tell() % DATA_ALIGNMENT_BYTES, os.SEEK_CUR)
        tensor = TensorProto(name=name, dims=values.shape, raw_data=b"")
        tensor.data_type = helper.np_dtype_to_tensor_dtype(values.dtype)
        set_external_data(tensor, self._name, self._file.tell(), length=values.nbytes)
        tensor.ClearField("raw_data")
        self._file.write(np.ascontiguousarray(values).view(np.uint8).data)
        return tensor

    def __enter__(self) -> ExternalData:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


class Graph:
    """Collects nodes in the order in which they are written; tensors are known by name."""

    def __init__(self, weights: ExternalData | None = None) -> None:
        """Begin an empty graph.

        Args:
            weights: takes the large constants; None keeps them in the graph.
        """
        self._weights = weights
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []

    def input(self, name: str, dtype: DTypeLike, shape: Sequence[int | str]) -> str:
        """Declare a binding; a dimension given by name is dynamic."""
        self._inputs.append(_binding(name, dtype, shape))
        return name

    def output(self, value: str, name: str, dtype: DTypeLike, shape: Sequence[int | str]) -> None:
        """Give `value` to the caller as the binding `name`."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=name))
        self._outputs.append(_binding(name, dtype, shape))

    def const(self, values: NDArray[Any] | np.generic) -> str:
        """Hold values in the graph, in their own dtype."""
        name = f"constant_{len(self._initializers)}"
        if self._weights and values.nbytes >= EXTERNAL_FROM_BYTES:
            tensor = self._weights.append(np.asarray(values), name)
        else:  # asarray, because ascontiguousarray would make a scalar one-dimensional
            tensor = numpy_helper.from_array(np.asarray(values, order="C"), name)
        self._initializers.append(tensor)
        return name

    def ops(
        self, kind: str, *arguments: Argument, n_outputs: int, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Write one node with several outputs."""
        inputs = [a if isinstance(a, str) else self.const(a) for a in arguments]
        name = f"{kind}_{len(self._nodes)}"
        outputs = [f"{name}_{i}" for i in range(n_outputs)]
        node = helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes)
        self._nodes.append(node)
        return outputs

    def op(self, kind: str, *arguments: Argument, domain: str = "", **attributes: Any) -> str:
        """Write one node with one output."""
        return self.ops(kind, *arguments, n_outputs=1, domain=domain, **attributes)[0]

    def cast(self, x: str, dtype: DTypeLike) -> str:
        """Convert to another type."""
        return self.op("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def size(self, x: str, axis: int) -> str:
        """Length of one axis, as an int64 tensor of shape (1,)."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def reshape(self, x: str, *shape: int | str) -> str:
        """Reshape; a length may be a number, 0 (as before), -1 (the rest) or a `size`."""
        if all(isinstance(length, int) for length in shape):
            return self.op("Reshape", x, np.array(shape, np.int64))
        lengths = [s if isinstance(s, str) else np.array([s], np.int64) for s in shape]
        return self.op("Reshape", x, self.op("Concat", *lengths, axis=0))

    def transpose(self, x: str, *order: int) -> str:
        """Permute the axes."""
        return self.op("Transpose", x, perm=order)

    def slice(self, x: str, axis: int, start: int | str, end: int | str = END) -> str:
        """Take `start` to `end` of one axis; a bound may be a number or a `size`."""
        bounds = [b if isinstance(b, str) else np.array([b], np.int64) for b in (start, end)]
        return self.op("Slice", x, *bounds, np.array([axis], np.int64))

    def linear(self, x: str, weight: Float32, bias: Float32 | None = None) -> str:
        """x @ weight.T + bias, with the weight (out, in) as the checkpoint holds it."""
        y = self.op("MatMul", x, weight.T)
        return y if bias is None else self.op("Add", y, bias)

    def layer_norm(self, x: str, weight: Float32, bias: Float32, eps: float) -> str:
        """LayerNorm over the last axis."""
        return self.op("LayerNormalization", x, weight, bias, epsilon=eps)

    def rms_norm(self, x: str, weight: Float32 | str, eps: float) -> str:
        """RMSNorm over the last axis."""
        mean = self.op("ReduceMean", self.op("Mul", x, x), np.array([-1], np.int64), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, np.float32(eps)))
        return self.op("Mul", self.op("Div", x, root), weight)

    def silu(self, x: str) -> str:
        """x * sigmoid(x)."""
        return self.op("Mul", x, self.op("Sigmoid", x))

    def relu2(self, x: str) -> str:
        """relu(x) squared."""
        positive = self.op("Relu", x)
        return self.op("Mul", positive, positive)

    def model(self, name: str, functions: Sequence[FunctionProto] = ()) -> ModelProto:
        """The finished graph.

        Args:
            functions: definitions of the nodes that are not of the standard domain.
        """
        graph = helper.make_graph(
            self._nodes, name, self._inputs, self._outputs, self._initializers
        )
        domains = sorted({function.domain for function in functions})
        imports = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(d, 1) for d in domains)]
        return helper.make_model(
            graph, opset_imports=imports, ir_version=IR_VERSION, functions=functions
        )

    def function(
        self, domain: str, name: str, inputs: Sequence[str], outputs: Sequence[str]
    ) -> FunctionProto:
        """The finished nodes as the body of the operator `domain`::`name`."""
        constants = [
            helper.make_node("Constant", [], [tensor.name], value=tensor, name=tensor.name)
            for tensor in self._initializers
        ]
        imports = [helper.make_opsetid("", OPSET)]
        return helper.make_function(domain, name, inputs, outputs, constants + self._nodes, imports)


def _binding(name: str, dtype: DTypeLike, shape: Sequence[int | str]) -> Any:
    if np.dtype(dtype) == np.int64:
        raise ValueError(f"{name}: TensorRT binds int32, not int64")
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, kind, shape)
