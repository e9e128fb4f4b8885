"""What TensorRT's builder does with a plugin in Python, through NVIDIA's own package for that.

`tensorrt.plugin` is NVIDIA's, of JetPack 7.2's release: it reads signatures, makes plugins, and
calls what was registered. The module `tensorrt` around it is a stand-in, as small and as strict as
can be: what that package does not use is not there. It cannot show that TensorRT builds or launches
a plugin: that is for a device.
"""

from __future__ import annotations

import contextlib
import enum
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from gpu_kernels.plugins import NAMESPACE, Node

PACKAGE = Path(sys.prefix) / "tensorrt_plugins" / "tensorrt_bindings"
"""Where `make .venv/.dev` puts it."""

DataType = enum.Enum(
    "DataType",
    ["FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8", "BF16", "INT64", "INT4", "FP4"],
)
TensorFormat = enum.Enum("TensorFormat", ["LINEAR", "CHW2", "HWC8"])
TensorRTPhase = enum.Enum("TensorRTPhase", ["BUILD", "RUNTIME"])
PluginArgType = enum.Enum("PluginArgType", ["INT"])
PluginArgDataType = enum.Enum("PluginArgDataType", ["INT8", "INT16", "INT32"])
QuickPluginCreationRequest = enum.Enum(
    "QuickPluginCreationRequest",
    ["UNKNOWN", "PREFER_JIT", "PREFER_AOT", "STRICT_JIT", "STRICT_AOT"],
)
PluginFieldType = enum.Enum(
    "PluginFieldType",
    ["FLOAT16", "FLOAT32", "FLOAT64", "INT8", "INT16", "INT32", "INT64", "CHAR", "UNKNOWN"],
)
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "SUM": lambda a, b: a + b,
    "PROD": lambda a, b: a * b,
    "MAX": max,
    "MIN": min,
    "SUB": lambda a, b: a - b,
    "EQUAL": lambda a, b: int(a == b),
    "LESS": lambda a, b: int(a < b),
    "FLOOR_DIV": lambda a, b: a // b,
    "CEIL_DIV": lambda a, b: -(-a // b),
}
DimensionOperation = enum.Enum("DimensionOperation", list(OPERATIONS))

Size = int | Callable[[int], int]
"""Of one axis: known, or by the number of tokens of a call."""


class IDimensionExpr:
    __slots__ = ("_at",)

    def __init__(self, size: Size) -> None:
        self._at = size

    def is_constant(self) -> bool:
        return isinstance(self._at, int)

    def get_constant_value(self) -> int:
        assert isinstance(self._at, int), "the value of what is not constant"
        return self._at

    def of(self, n_tokens: int) -> int:
        return self._at if isinstance(self._at, int) else self._at(n_tokens)


class IExprBuilder:
    __slots__ = ()

    def constant(self, value: int) -> IDimensionExpr:
        assert type(value) is int, "only a Python int is one for TensorRT"
        return IDimensionExpr(value)

    def operation(self, kind: Any, a: IDimensionExpr, b: IDimensionExpr) -> IDimensionExpr:
        compute = OPERATIONS[kind.name]
        if a.is_constant() and b.is_constant():
            return IDimensionExpr(compute(a.get_constant_value(), b.get_constant_value()))
        return IDimensionExpr(lambda n: compute(a.of(n), b.of(n)))


class DimsExprs(list[Any]):
    def __init__(self, n: int) -> None:
        super().__init__([None] * n)


class PluginTensorDesc:
    __slots__ = ("dims", "format", "scale", "type")

    def __init__(self) -> None:
        self.scale = 0.0


class DynamicPluginTensorDesc:
    __slots__ = ("desc", "max", "min", "opt")


@dataclass(frozen=True, slots=True)
class PluginField:
    name: str
    data: Any
    type: Any


class Logger:
    WARNING = 2

    def log(self, severity: int, message: str) -> None:
        assert "experimental" in message, "all that it has to say"


class Registry:
    """TensorRT's own is one for the whole process."""

    def __init__(self) -> None:
        self._creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> bool:
        self._creators[creator.name, creator.plugin_version, namespace] = creator
        return True

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return self._creators.get((name, version, namespace))


def _base(name: str) -> type:
    """A class of TensorRT's that is only derived from."""
    return type(name, (), {"__init__": lambda self: None})


@contextlib.contextmanager
def tensorrt() -> Iterator[ModuleType]:
    """The module, with NVIDIA's `plugin` in it; nothing is left of it afterwards."""
    module = ModuleType("tensorrt")
    module.__path__ = [str(PACKAGE)]
    registry = Registry()
    names = {kind.__name__: kind for kind in (
        DataType, TensorFormat, TensorRTPhase, PluginArgType, PluginArgDataType, PluginFieldType,
        QuickPluginCreationRequest, DimensionOperation, IDimensionExpr, IExprBuilder, DimsExprs,
        PluginTensorDesc, DynamicPluginTensorDesc, PluginField, Logger,
    )}  # fmt: skip
    names |= {name: _base(name) for name in (
        "IPluginV3", "IPluginV3QuickCore", "IPluginV3QuickBuild", "IPluginV3QuickRuntime",
        "IPluginV3QuickAOTBuild", "IPluginCreatorV3Quick", "ISymExpr", "ITensor",
    )}  # fmt: skip
    vars(module).update(
        names,
        PluginFieldCollection=list,
        Dims=SimpleNamespace(MAX_DIMS=8),
        get_plugin_registry=lambda: registry,
    )
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_ours(name)}
    sys.modules["tensorrt"] = module
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its docstrings have backslashes
            importlib.import_module("tensorrt.plugin")
        yield module
    finally:
        for name in [name for name in sys.modules if _is_ours(name)]:
            del sys.modules[name]
        sys.modules.update(before)


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] == "tensorrt"


@dataclass(frozen=True)
class Tensor:
    """An input or output of a plugin."""

    shape: tuple[Size, ...]
    dtype: Any

    def of(self, n_tokens: int) -> tuple[int, ...]:
        """Its shape in a call."""
        return tuple(IDimensionExpr(size).of(n_tokens) for size in self.shape)


@dataclass(frozen=True)
class Launch:
    """What a plan keeps of a plugin."""

    kernel: str
    ptx: bytes
    parameters: dict[str, IDimensionExpr]
    scalars: list[IDimensionExpr]


class _Scalars(dict[int, Any]):
    nbSymExprs = 0  # noqa: N815  # TensorRT's word


def build(
    trt: Any, node: Node, inputs: Sequence[Tensor], as_data: Callable[[list[int]], Any] = np.array
) -> tuple[list[Tensor], Launch]:
    """Make a plugin of a node and ask it all that a builder asks.

    Args:
        trt: of `tensorrt`.
        as_data: an attribute's values -> the array that TensorRT gives for it.
    Returns:
        Its outputs, and how its kernel is launched.
    """
    creator = trt.get_plugin_registry().get_creator(node.plugin, "1", NAMESPACE)
    assert [field.name for field in creator.field_names] == list(node.attributes)
    fields = trt.PluginFieldCollection(
        PluginField(name, as_data([value]), PluginFieldType.INT64)
        for name, value in node.attributes.items()
    )
    request = QuickPluginCreationRequest.STRICT_AOT
    plugin = creator.create_plugin(node.plugin, NAMESPACE, fields, TensorRTPhase.BUILD, request)
    ranks = [len(tensor.shape) for tensor in inputs]
    dtypes = plugin.get_output_data_types([tensor.dtype for tensor in inputs], ranks)
    symbolic = [[IDimensionExpr(size) for size in tensor.shape] for tensor in inputs]
    shapes = plugin.get_output_shapes(symbolic, [], IExprBuilder())
    outputs = [
        Tensor(tuple(_size(expr) for expr in shape), dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    described = [_described(tensor) for tensor in (*inputs, *outputs)]
    supported = plugin.get_supported_format_combinations(described, len(inputs))
    assert [desc.type for desc in supported] == [t.dtype for t in (*inputs, *outputs)]
    assert {desc.format for desc in supported} == {TensorFormat.LINEAR}
    plugin.configure_plugin(described[: len(inputs)], described[len(inputs) :])
    plugin.set_tactic(next(iter(plugin.get_valid_tactics()), 0))
    parameters, scalars = SimpleNamespace(), _Scalars()
    plugin.get_launch_params(symbolic, described, len(inputs), parameters, scalars, IExprBuilder())
    kernel, ptx = plugin.get_kernel(
        [desc.desc for desc in described[: len(inputs)]],
        [desc.desc for desc in described[len(inputs) :]],
    )
    launch = {name: argument.expr for name, argument in vars(parameters).items()}
    assert all(scalars[i].dtype is PluginArgDataType.INT32 for i in range(scalars.nbSymExprs))
    values = [scalars[i].expr for i in range(scalars.nbSymExprs)]
    return outputs, Launch(kernel, ptx, launch, values)


def _size(expr: IDimensionExpr) -> Size:
    return expr.get_constant_value() if expr.is_constant() else expr.of


def _described(tensor: Tensor) -> DynamicPluginTensorDesc:
    desc, dynamic = PluginTensorDesc(), DynamicPluginTensorDesc()
    desc.type, desc.format = tensor.dtype, TensorFormat.LINEAR
    desc.dims = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
    dynamic.desc = desc
    dynamic.min, dynamic.opt, dynamic.max = tensor.of(1), tensor.of(20), tensor.of(256)
    return dynamic
