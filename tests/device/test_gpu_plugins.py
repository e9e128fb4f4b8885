"""The TensorRT plugins' definitions, by a stand-in for TensorRT.

TensorRT's own decorators need its libraries, whose licence is not ours to accept for whoever runs
this. The stand-in keeps what they are documented to ask of a definition: typed signatures, the
order of arguments, what each function returns. It cannot show that TensorRT builds or launches
the plugins: that is for a device.
"""

from __future__ import annotations

import enum
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge.errors import EngineError
from gpu_kernels.launch import COLUMNS, FORMATS, KERNELS, TILE
from gpu_kernels.plugins import PLUGINS, chain, register_plugins

DataType = enum.Enum("DataType", ["FLOAT", "HALF", "INT32", "INT8", "UINT8", "FP8"])
TRT_NAMES = {"FLOAT": "FP32", "HALF": "FP16"}
EXPERTS, SLOTS, TOKENS = 4, 2, 20


@dataclass
class TensorDesc:
    """Sizes are known in both forms here; TensorRT gives -1 in `shape` where one is not."""

    shape_expr: tuple[int, ...]
    dtype: DataType

    @property
    def shape(self) -> tuple[int, ...]:
        """The first size is a number of tokens, known at run time alone, but for a weight's."""
        weight = self.dtype in (DataType.UINT8, DataType.FP8) or len(self.shape_expr) == 3
        return self.shape_expr if weight else (-1, *self.shape_expr[1:])

    @property
    def ndim(self) -> int:
        return len(self.shape_expr)


@dataclass
class KernelLaunchParams:
    grid_x: Any = 1
    grid_y: Any = 1
    grid_z: Any = 1
    block_x: Any = 1
    shared_mem: Any = 0


@dataclass
class SymInt32:
    value: int


class SymIntExprs(list[SymInt32]):
    @classmethod
    def from_tuple(cls, values: list[SymInt32]) -> SymIntExprs:
        return cls(values)


@dataclass
class AutoTuneCombination:
    types: str
    formats: str


@dataclass
class Registry:
    """What was registered, with the checks that TensorRT makes."""

    described: dict[str, Callable[..., Any]] = field(default_factory=dict)
    tuned: dict[str, Callable[..., Any]] = field(default_factory=dict)
    launched: dict[str, Callable[..., Any]] = field(default_factory=dict)

    def module(self) -> SimpleNamespace:
        """As `tensorrt.plugin`."""
        return SimpleNamespace(
            TensorDesc=TensorDesc,
            KernelLaunchParams=KernelLaunchParams,
            SymInt32=SymInt32,
            SymIntExprs=SymIntExprs,
            AutoTuneCombination=AutoTuneCombination,
            from_shape_expr=lambda shape, dtype: TensorDesc(tuple(shape), dtype),
            register=self._register,
            autotune=lambda name: self._later(name, self.tuned, ["outputs"]),
            aot_impl=lambda name: self._later(name, self.launched, ["outputs", "tactic"]),
        )

    def _register(self, name: str) -> Callable[..., Any]:
        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            namespace, _, plugin = name.partition("::")
            assert namespace
            assert "." not in plugin
            signature = inspect.signature(function)
            kinds = [p.annotation for p in signature.parameters.values()]
            assert kinds == sorted(kinds, key=lambda kind: kind is not TensorDesc)  # tensors first
            assert set(kinds) <= {TensorDesc, int}
            assert set(signature.return_annotation.__args__) == {TensorDesc}
            self.described[name] = function
            return function

        return decorate

    def _later(self, name: str, to: dict[str, Callable[..., Any]], tail: list[str]) -> Any:
        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            registered = inspect.signature(self.described[name]).parameters
            names = [n for n, p in registered.items() if p.annotation is TensorDesc]
            if "tactic" in tail:
                names = list(registered)
            assert list(inspect.signature(function).parameters) == [*names, *tail]
            to[name] = function
            return function

        return decorate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table = {
        name: {"entry": f"entry_{name}", "threads": 32 * kernel.num_warps, "shared_bytes": 64}
        for name, kernel in KERNELS.items()
    }
    (tmp_path / "kernels.json").write_text(json.dumps(table))
    for name in KERNELS:
        (tmp_path / f"{name}.ptx").write_text(f"// {name}")
    return tmp_path


@pytest.fixture
def registry(folder: Path) -> Registry:
    made = Registry()
    register_plugins(SimpleNamespace(DataType=DataType), made.module(), folder)
    return made


def weight(format_name: str, n: int, k: int) -> dict[str, TensorDesc]:
    blocks = (EXPERTS, n, k // COLUMNS[format_name])
    if format_name == "int4":
        return {
            "codes": TensorDesc((EXPERTS, n // 2, k), DataType.UINT8),
            "block_scale": TensorDesc(blocks, DataType.FLOAT),
        }
    return {
        "codes": TensorDesc((EXPERTS, n, k // 2), DataType.UINT8),
        "block_scale": TensorDesc(blocks, DataType.FP8),
        "scale": TensorDesc((EXPERTS,), DataType.FLOAT),
    }


def moe(up: str, down: str, width: int, hidden: int) -> dict[str, TensorDesc]:
    """The inputs of `edge::MoE`, by the names that `chain` gives them."""
    return {
        "x": TensorDesc((TOKENS, hidden), DataType.HALF),
        "ids": TensorDesc((TOKENS, SLOTS), DataType.INT32),
        "weights": TensorDesc((TOKENS, SLOTS), DataType.FLOAT),
        **{f"up_{part}": desc for part, desc in weight(up, width, hidden).items()},
        **{f"down_{part}": desc for part, desc in weight(down, hidden, width).items()},
    }


@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize(("up", "down"), [("nvfp4", "nvfp4"), ("int4", "int4"), ("int4", "nvfp4")])
def test_a_chain_runs_from_x_to_y(registry: Registry, phase: str, up: str, down: str) -> None:
    width, hidden = 384, 256
    tensors = moe(up, down, width, hidden)
    for node in chain(phase, up, down, EXPERTS, SLOTS):
        kernel, name = KERNELS[node.plugin], f"edge::{node.plugin}"
        inputs = [tensors[i] for i in node.inputs]
        outputs = registry.described[name](*inputs, **node.attributes)
        assert len(outputs) == len(node.outputs) == kernel.n_outputs
        tensors |= dict(zip(node.outputs, outputs, strict=True))
        (combination,) = registry.tuned[name](*inputs, outputs)
        kinds = [TRT_NAMES.get(d.dtype.name, d.dtype.name) for d in (*inputs, *outputs)]
        assert combination.types.split(", ") == kinds
        entry, ptx, parameters, scalars = registry.launched[name](
            *inputs, *node.attributes.values(), outputs, 0
        )
        assert (entry, ptx) == (f"entry_{node.plugin}", f"// {node.plugin}")
        assert parameters.block_x == 32 * kernel.num_warps
        sizes = [a for a, kind in kernel.arguments.items() if kind == "i32"]
        known = {
            "n": width if "_up_" in node.plugin else hidden,
            "k": hidden if "_up_" in node.plugin else width,
            "n_slots": SLOTS, "n_experts": EXPERTS, "n_pairs": TOKENS * SLOTS, "n_tokens": TOKENS,
        }  # fmt: skip
        assert [s.value for s in scalars] == [known[a] for a in sizes]
        assert (parameters.grid_x, parameters.grid_y, parameters.grid_z) == kernel.grid(known)
    assert tensors["y"] == TensorDesc((TOKENS, hidden), DataType.HALF)
    if phase == "prefill":
        assert tensors["hidden_scale"].shape_expr == (TOKENS * SLOTS, width // TILE)


@pytest.mark.parametrize("name", PLUGINS)
def test_every_plugin_is_in_a_chain(name: str) -> None:
    nodes = {n.plugin for f in FORMATS for p in ("decode", "prefill") for n in chain(p, f, f, 4, 2)}
    assert name in nodes


BAD = {
    "dtype": ("x", TensorDesc((TOKENS, 64), DataType.FLOAT), "x: is .*FLOAT; bind it as HALF"),
    "rank": ("ids", TensorDesc((TOKENS,), DataType.INT32), "ids: has 1 dimensions"),
    "rows": (
        "up_block_scale", TensorDesc((EXPERTS, 40, 4), DataType.FP8), "40 rows, no multiple of 16"
    ),
    "columns": ("x", TensorDesc((TOKENS, 72), DataType.HALF), "72 columns, no multiple of 16"),
    "codes": (
        "up_codes", TensorDesc((EXPERTS, 48, 16), DataType.UINT8), r"48 rows .* \(4, 48, 32\)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_a_kernel_cannot_take_is_refused(registry: Registry, what: str) -> None:
    name, desc, message = BAD[what]
    tensors = moe("nvfp4", "nvfp4", 48, 64) | {name: desc}
    node = chain("decode", "nvfp4", "nvfp4", EXPERTS, SLOTS)[0]
    inputs = [tensors[i] for i in node.inputs]
    with pytest.raises(EngineError, match=message):
        registry.launched["edge::decode_up_nvfp4"](*inputs, (), 0)


def test_int4_takes_blocks_of_128_columns(registry: Registry) -> None:
    tensors = moe("int4", "int4", 192, 128)
    node = chain("prefill", "int4", "int4", EXPERTS, SLOTS)[2]
    tensors |= {
        "hidden": TensorDesc((40, 192), DataType.HALF),
        "hidden_scale": TensorDesc((40, 3), DataType.FLOAT),
        "order": TensorDesc((40,), DataType.INT32),
        "begins": TensorDesc((5,), DataType.INT32),
    }
    with pytest.raises(EngineError, match=r"192 columns, no multiple of 128; .*without plugins"):
        registry.launched["edge::prefill_down_int4"](*[tensors[i] for i in node.inputs], (), 0)


def test_a_folder_without_the_kernels_says_how_to_make_them(folder: Path, tmp_path: Path) -> None:
    trt = SimpleNamespace(DataType=DataType)
    (folder / "combine.ptx").unlink()
    with pytest.raises(EngineError, match="has no kernel combine; compile the kernels"):
        register_plugins(trt, Registry().module(), folder)
    with pytest.raises(EngineError, match="does not exist; compile the kernels"):
        register_plugins(trt, Registry().module(), tmp_path / "nothing")
