"""The expert kernels as TensorRT plugins, compiled ahead of time: the device form of `edge::MoE`.

TensorRT's quickly deployable plugins launch one kernel each, so that a node `edge::MoE` becomes a
chain: `chain` says which plugins, in which order, and what each reads. Decode's chain is short and
right for any number of tokens; prefill's reads each expert once however many tokens take it, and is
right for one token, too, so that a network with both profiles may have it alone.

Their ids are `edge::NAME` with the names of the launch table; in ONNX a node has NAME as its type
and the attributes plugin_namespace = "edge" and aot = True. Nothing here imports TensorRT: its
module and `tensorrt.plugin` come as arguments.
"""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import EngineError
from gpu_kernels.launch import COLUMNS, KERNELS, ROWS, TILE, Kernel, ceil_div

NAMESPACE = "edge"
Shape = tuple[Any, ...]

# TensorRT's data types by Triton's: packed codes and E4M3 scales are bound as bytes, which for it
# are INT8; UINT8 may feed no plugin.
_DTYPES = {
    "*fp16": ("HALF",),
    "*fp32": ("FLOAT",),
    "*i32": ("INT32",),
    "*u32": ("INT8",),
    "*u8": ("FP8", "INT8"),
}
_AUTOTUNE_NAMES = {"HALF": "FP16", "FLOAT": "FP32"}


@dataclass(frozen=True)
class Plugin:
    """One kernel as a plugin.

    Args:
        kernel: its name in the launch table.
        ranks: dimensions of each input.
        outputs: shapes of the inputs by name, and attributes -> shapes of the outputs.
        sizes: the same -> sizes by name, those of the kernel's arguments and of its grid.
        attributes: integers that the node has; they reach the kernel as sizes.
    """

    kernel: str
    ranks: Mapping[str, int]
    outputs: Callable[[Mapping[str, Any]], Sequence[Shape]]
    sizes: Callable[[Mapping[str, Any]], dict[str, Any]]
    attributes: tuple[str, ...] = ()

    @property
    def inputs(self) -> list[str]:
        """Names of the kernel's addresses that are read."""
        addresses = [a for a, kind in KERNELS[self.kernel].arguments.items() if kind[0] == "*"]
        return addresses[: -KERNELS[self.kernel].n_outputs]


@dataclass(frozen=True)
class Node:
    """A plugin in a chain: which tensors it reads and makes."""

    plugin: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, int]


def _experts(format_name: str) -> list[Plugin]:
    weight = {"codes": 3, "block_scale": 3, **({"scale": 1} if format_name == "nvfp4" else {})}
    routes = {"ids": 2, "weights": 2}
    sorted_pairs = {"order": 1, "begins": 1}

    def rows(shape: Mapping[str, Any]) -> Any:
        return shape["block_scale"][1]

    def prefill(tokens_by_slots: Any, k: Any) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        return lambda s: {
            "n": rows(s),
            "k": k(s),
            "n_slots": tokens_by_slots(s),
            "n_experts": s["block_scale"][0],
        }

    return [
        Plugin(
            f"decode_up_{format_name}",
            {"x": 2, "ids": 2, **weight},
            lambda s: [(*s["ids"], rows(s))],
            lambda s: {
                "n": rows(s), "k": s["x"][1], "n_slots": s["ids"][1], "n_tokens": s["ids"][0]
            },
        ),
        Plugin(
            f"decode_down_{format_name}",
            {"hidden": 3, **routes, **weight},
            lambda s: [(s["ids"][0], rows(s))],
            lambda s: {
                "n": rows(s), "k": s["hidden"][2], "n_slots": s["ids"][1], "n_tokens": s["ids"][0]
            },
        ),
        Plugin(
            f"prefill_up_{format_name}",
            {"x": 2, **sorted_pairs, **weight},
            lambda s: [(s["order"][0], rows(s)), (s["order"][0], ceil_div(rows(s), TILE))],
            prefill(lambda s: s["order"][0] // s["x"][0], lambda s: s["x"][1]),
        ),
        Plugin(
            f"prefill_down_{format_name}",
            {"hidden": 2, "hidden_scale": 2, **sorted_pairs, "weights": 2, **weight},
            lambda s: [(s["order"][0], rows(s))],
            prefill(lambda s: s["weights"][1], lambda s: s["hidden"][1]),
        ),
    ]  # fmt: skip


_PLUGINS = [
    *_experts("nvfp4"),
    *_experts("int4"),
    Plugin(
        "sort_pairs",
        {"ids": 2},
        lambda s: [(s["ids"][0] * s["ids"][1],), (s["n_experts"] + 1,)],
        lambda s: {
            "n_pairs": s["ids"][0] * s["ids"][1], "n_experts": s["n_experts"],
            "n_tokens": s["ids"][0], "n_slots": s["ids"][1],
        },
        ("n_experts",),
    ),
    Plugin(
        "combine",
        {"parts": 2},
        lambda s: [(s["parts"][0] // s["n_slots"], s["parts"][1])],
        lambda s: {
            "n": s["parts"][1], "n_slots": s["n_slots"],
            "n_tokens": s["parts"][0] // s["n_slots"],
        },
        ("n_slots",),
    ),
]  # fmt: skip
PLUGINS = {plugin.kernel: plugin for plugin in _PLUGINS}


def chain(phase: str, up: str, down: str, n_experts: int, n_slots: int) -> tuple[Node, ...]:
    """What replaces one node `edge::MoE`.

    Its inputs are called x, ids, weights, up_codes, up_block_scale, up_scale, down_codes,
    down_block_scale and down_scale here, and its output y; a bundle's INT4 weight has no scale.

    Args:
        phase: "decode" (1 token, up to 8) or "prefill".
        up, down: "nvfp4" or "int4", the formats of the two stacks.
        n_experts, n_slots: of the model.
    """

    def weight(side: str, format_name: str) -> tuple[str, ...]:
        parts = ("codes", "block_scale", *(("scale",) if format_name == "nvfp4" else ()))
        return tuple(f"{side}_{part}" for part in parts)

    ups, downs = weight("up", up), weight("down", down)
    if phase == "decode":
        return (
            Node(f"decode_up_{up}", ("x", "ids", *ups), ("hidden",), {}),
            Node(f"decode_down_{down}", ("hidden", "ids", "weights", *downs), ("y",), {}),
        )
    order, hidden = ("order", "begins"), ("hidden", "hidden_scale")
    return (
        Node("sort_pairs", ("ids",), order, {"n_experts": n_experts}),
        Node(f"prefill_up_{up}", ("x", *order, *ups), hidden, {}),
        Node(f"prefill_down_{down}", (*hidden, *order, "weights", *downs), ("parts",), {}),
        Node("combine", ("parts",), ("y",), {"n_slots": n_slots}),
    )


def register_plugins(trt: Any, trtp: Any, folder: Path) -> None:
    """Register every plugin with the compiled kernels of one board.

    Args:
        trt, trtp: the modules `tensorrt` and `tensorrt.plugin`.
        folder: of `build.write_kernels`, for the board that this is.

    Raises:
        EngineError: the folder lacks a kernel.
    """
    table = _compiled(folder)
    for plugin in PLUGINS.values():
        _register(trt, trtp, plugin, table[plugin.kernel], folder)


def _compiled(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / "kernels.json"
    remedy = "compile the kernels: python scripts/compile_gpu_kernels.py --out FOLDER"
    if not path.is_file():
        raise EngineError(path, "does not exist", remedy)
    table: dict[str, dict[str, Any]] = json.loads(path.read_text())
    for name in PLUGINS:
        if name not in table or not (folder / f"{name}.ptx").is_file():
            raise EngineError(folder, f"has no kernel {name}", remedy)
    return table


def _register(
    trt: Any, trtp: Any, plugin: Plugin, compiled: Mapping[str, Any], folder: Path
) -> None:
    kernel, n_inputs = KERNELS[plugin.kernel], len(plugin.inputs)
    identity = f"{NAMESPACE}::{plugin.kernel}"
    output_types = [k for k in kernel.arguments.values() if k[0] == "*"][n_inputs:]

    def describe(*inputs: Any, **attributes: npt.NDArray[np.int64]) -> tuple[Any, ...]:
        check_inputs(trt, plugin, inputs)
        shapes = {n: d.shape_expr for n, d in zip(plugin.inputs, inputs, strict=True)}
        made = plugin.outputs({**shapes, **{n: one(v) for n, v in attributes.items()}})
        dtypes = [getattr(trt.DataType, _DTYPES[kind][0]) for kind in output_types]
        return tuple(
            trtp.from_shape_expr(shape, dtype=dtype)
            for shape, dtype in zip(made, dtypes, strict=True)
        )

    def autotune(*descriptors: Any) -> list[Any]:
        # Linear memory and the types that the network has: nothing is converted on the way.
        everything = (*descriptors[:n_inputs], *descriptors[-1])
        names = [desc.dtype.name for desc in everything]
        return [
            trtp.AutoTuneCombination(", ".join(_AUTOTUNE_NAMES.get(n, n) for n in names), "LINEAR")
        ]

    def launch(*arguments: Any) -> tuple[str, str, Any, Any]:
        inputs, attributes = arguments[:n_inputs], [one(v) for v in arguments[n_inputs:-2]]
        check_inputs(trt, plugin, inputs)
        known = {
            name: tuple(_size(desc, i) for i in range(len(desc.shape)))
            for name, desc in zip(plugin.inputs, inputs, strict=True)
        }
        check_weight(plugin, known)
        sizes = plugin.sizes({**known, **dict(zip(plugin.attributes, attributes, strict=True))})
        parameters = trtp.KernelLaunchParams()
        parameters.grid_x, parameters.grid_y, parameters.grid_z = kernel.grid(sizes)
        parameters.block_x = compiled["threads"]
        parameters.shared_mem = compiled["shared_bytes"]
        scalars = [trtp.SymInt32(sizes[a]) for a, kind in kernel.arguments.items() if kind == "i32"]
        ptx = (folder / f"{plugin.kernel}.ptx").read_text()
        return compiled["entry"], ptx, parameters, trtp.SymIntExprs.from_tuple(scalars)

    # TensorRT reads a plugin's interface from its functions' signatures. An attribute is an array,
    # because its conversion of one to `int` fails with numpy 2.4 and later.
    tensors = [_parameter(name, trtp.TensorDesc) for name in plugin.inputs]
    attributes = [_parameter(name, npt.NDArray[np.int64]) for name in plugin.attributes]
    result = types.GenericAlias(tuple, (trtp.TensorDesc,) * kernel.n_outputs)
    outputs = _parameter("outputs", result)
    _sign(describe, [*tensors, *attributes], result)
    _sign(autotune, [*tensors, outputs], list[trtp.AutoTuneCombination])
    launched = tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]
    _sign(launch, [*tensors, *attributes, outputs, _parameter("tactic", int)], launched)
    trtp.register(identity)(describe)
    trtp.autotune(identity)(autotune)
    trtp.aot_impl(identity)(launch)


def one(attribute: npt.NDArray[np.int64]) -> int:
    """The only value of a node's attribute, which TensorRT gives as an array of length 1."""
    (value,) = np.ravel(attribute).tolist()
    return int(value)


def check_inputs(trt: Any, plugin: Plugin, inputs: Sequence[Any]) -> None:
    """Refuse inputs of another type or rank than the kernel reads.

    Raises:
        EngineError: naming the input.
    """
    kernel = KERNELS[plugin.kernel]
    for name, desc in zip(plugin.inputs, inputs, strict=True):
        allowed = _DTYPES[kernel.arguments[name]]
        if desc.dtype not in [getattr(trt.DataType, one) for one in allowed]:
            raise EngineError(
                f"{plugin.kernel}.{name}", f"is {desc.dtype}", f"bind it as {' or '.join(allowed)}"
            )
        if desc.ndim != plugin.ranks[name]:
            raise EngineError(
                f"{plugin.kernel}.{name}",
                f"has {desc.ndim} dimensions",
                f"this kernel takes {plugin.ranks[name]}",
            )


def check_weight(plugin: Plugin, shapes: Mapping[str, Shape]) -> None:
    """Refuse a stack of weights whose shape the kernel cannot take.

    Args:
        plugin: whose input it is.
        shapes: of the inputs by name; a weight's are known when an engine is built.

    Raises:
        EngineError: naming the size.
    """
    if "codes" not in shapes:
        return
    kernel = KERNELS[plugin.kernel]
    n, k = shapes["block_scale"][1], plugin.sizes(shapes)["k"]
    columns = COLUMNS[_format(kernel)]
    for name, size, multiple in (("rows", n, ROWS), ("columns", k, columns)):
        if size % multiple:
            raise EngineError(
                f"{plugin.kernel}.codes",
                f"has {size} {name}, no multiple of {multiple}",
                "leave this model's experts to the plain operators: build without plugins",
            )
    experts = shapes["block_scale"][0]
    expected = {
        "codes": (experts, n, k // 2) if _format(kernel) == "nvfp4" else (experts, n // 2, k),
        "block_scale": (experts, n, k // columns),
    }
    for name, shape in expected.items():
        if tuple(shapes[name]) != shape:
            raise EngineError(
                f"{plugin.kernel}.{name}",
                f"has the shape {tuple(shapes[name])}",
                f"a weight of {n} rows and {k} columns has {shape}",
            )


def _format(kernel: Kernel) -> str:
    return str(kernel.constants["FORMAT"])


def _size(desc: Any, axis: int) -> Any:
    """One size of an input: a number where it is known, else TensorRT's expression for it."""
    return desc.shape[axis] if desc.shape[axis] >= 0 else desc.shape_expr[axis]


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)


def _sign(function: Any, parameters: Sequence[inspect.Parameter], result: Any) -> None:
    function.__signature__ = inspect.Signature(parameters, return_annotation=result)
