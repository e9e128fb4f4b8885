"""The TensorRT plugins' definitions, asked by NVIDIA's own package all that a builder asks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from needed import must_be
from plugin_builder import PACKAGE, DataType, PluginTensorDesc, Tensor, build, tensorrt

from edge.errors import EngineError
from gpu_kernels.launch import COLUMNS, FORMATS, KERNELS, TILE
from gpu_kernels.plugins import PLUGINS, Node, chain, register_plugins

EXPERTS, SLOTS = 4, 2


def tokens(n: int) -> int:
    return n


def pairs(n: int) -> int:
    return n * SLOTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("kernels")
    table = {
        name: {"entry": f"entry_{name}", "threads": 32 * kernel.num_warps, "shared_bytes": 64}
        for name, kernel in KERNELS.items()
    }
    (made / "kernels.json").write_text(json.dumps(table))
    for name in KERNELS:
        (made / f"{name}.ptx").write_text(f"// {name}")
    return made


@pytest.fixture(scope="module")
def trt(folder: Path) -> Iterator[ModuleType]:
    """TensorRT's stand-in, with all plugins registered."""
    must_be(PACKAGE.is_dir(), "needs NVIDIA's Python of TensorRT's plugins: make .venv/.dev")
    with tensorrt() as module:
        register_plugins(module, module.plugin, folder)
        yield module


def weight(format_name: str, n: int, k: int) -> dict[str, Tensor]:
    blocks = (EXPERTS, n, k // COLUMNS[format_name])
    if format_name == "int4":
        return {
            "codes": Tensor((EXPERTS, n // 2, k), DataType.INT8),
            "block_scale": Tensor(blocks, DataType.FLOAT),
        }
    return {
        "codes": Tensor((EXPERTS, n, k // 2), DataType.INT8),
        "block_scale": Tensor(blocks, DataType.INT8),
        "scale": Tensor((EXPERTS,), DataType.FLOAT),
    }


def moe(up: str, down: str, width: int, hidden: int) -> dict[str, Tensor]:
    """The inputs of `edge::MoE`, by the names that `chain` gives them."""
    return {
        "x": Tensor((tokens, hidden), DataType.HALF),
        "ids": Tensor((tokens, SLOTS), DataType.INT32),
        "weights": Tensor((tokens, SLOTS), DataType.FLOAT),
        **{f"up_{part}": desc for part, desc in weight(up, width, hidden).items()},
        **{f"down_{part}": desc for part, desc in weight(down, hidden, width).items()},
    }


class ArrayOfNumpy24(np.ndarray[Any, np.dtype[Any]]):
    """As numpy 2.4 and later have them: an array with an axis is no number."""

    def __int__(self) -> int:
        if self.ndim:
            raise TypeError("only 0-dimensional arrays can be converted to Python scalars")
        return int(self.item())


ARRAYS: dict[str, Callable[[list[int]], Any]] = {
    "numpy of the lock": np.array,
    "numpy 2.4": lambda values: np.array(values).view(ArrayOfNumpy24),
}


@pytest.mark.parametrize("as_data", ARRAYS.values(), ids=ARRAYS)
@pytest.mark.parametrize("phase", ["decode", "prefill"])
@pytest.mark.parametrize(("up", "down"), [("nvfp4", "nvfp4"), ("int4", "int4"), ("int4", "nvfp4")])
def test_a_chain_runs_from_x_to_y(
    trt: ModuleType, phase: str, up: str, down: str, as_data: Callable[[list[int]], Any]
) -> None:
    width, hidden = 384, 256
    tensors = moe(up, down, width, hidden)
    for node in chain(phase, up, down, EXPERTS, SLOTS):
        kernel = KERNELS[node.plugin]
        inputs = [tensors[name] for name in node.inputs]
        outputs, launch = build(trt, node, inputs, as_data)
        assert len(outputs) == len(node.outputs) == kernel.n_outputs
        tensors |= dict(zip(node.outputs, outputs, strict=True))
        assert (launch.kernel, launch.ptx) == (f"entry_{node.plugin}", f"// {node.plugin}".encode())
        for n in (1, 7, 256):
            known = {
                "n": width if "_up_" in node.plugin else hidden,
                "k": hidden if "_up_" in node.plugin else width,
                "n_slots": SLOTS, "n_experts": EXPERTS, "n_pairs": n * SLOTS, "n_tokens": n,
            }  # fmt: skip
            sizes = [name for name, kind in kernel.arguments.items() if kind == "i32"]
            assert [scalar.of(n) for scalar in launch.scalars] == [known[name] for name in sizes]
            made = {name: value.of(n) for name, value in launch.parameters.items()}
            grid = dict(zip(("grid_x", "grid_y", "grid_z"), kernel.grid(known), strict=True))
            block = {"block_x": 32 * kernel.num_warps, "block_y": 1, "block_z": 1}
            assert made == {**grid, **block, "shared_mem": 64}
    assert tensors["y"].of(20) == (20, hidden)
    assert tensors["y"].dtype is DataType.HALF
    if phase == "prefill":
        assert tensors["hidden_scale"].of(20) == (20 * SLOTS, width // TILE)


def test_an_attribute_as_a_number_would_break_with_numpy_2_4(trt: ModuleType) -> None:
    """What the arrays above are for: the same package, and an attribute annotated `int`."""
    desc = trt.plugin.TensorDesc

    def describe(x: Any, n: Any) -> Any:
        return x.like()

    describe.__annotations__ = {"x": desc, "n": int, "return": desc}
    trt.plugin.register("edge::by_number")(describe)
    node = Node("by_number", ("x",), ("y",), {"n": 3})
    x = [Tensor((tokens, 4), DataType.HALF)]
    with pytest.raises(TypeError, match="only 0-dimensional arrays"):
        build(trt, node, x, ARRAYS["numpy 2.4"])
    with pytest.raises(ValueError, match="AOT implementation requested"):  # it came further
        build(trt, node, x, lambda values: np.array(values[0]))


@pytest.mark.parametrize("name", PLUGINS)
def test_every_plugin_is_in_a_chain(name: str) -> None:
    nodes = {n.plugin for f in FORMATS for p in ("decode", "prefill") for n in chain(p, f, f, 4, 2)}
    assert name in nodes


BAD = {
    "dtype": ("x", Tensor((tokens, 64), DataType.FLOAT), "x: is .*FLOAT; bind it as HALF"),
    "bytes": ("up_codes", Tensor((EXPERTS, 48, 32), DataType.UINT8), "UINT8; bind it as INT8"),
    "rank": ("ids", Tensor((tokens,), DataType.INT32), "ids: has 1 dimensions"),
    "rows": (
        "up_block_scale", Tensor((EXPERTS, 40, 4), DataType.FP8), "40 rows, no multiple of 16"
    ),
    "columns": ("x", Tensor((tokens, 72), DataType.HALF), "72 columns, no multiple of 16"),
    "codes": (
        "up_codes", Tensor((EXPERTS, 48, 16), DataType.INT8), r"48 rows .* \(4, 48, 32\)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_a_kernel_cannot_take_is_refused(trt: ModuleType, what: str) -> None:
    name, tensor, message = BAD[what]
    tensors = moe("nvfp4", "nvfp4", 48, 64) | {name: tensor}
    node = chain("decode", "nvfp4", "nvfp4", EXPERTS, SLOTS)[0]
    with pytest.raises(EngineError, match=message):
        build(trt, node, [tensors[i] for i in node.inputs])


def test_int4_takes_blocks_of_128_columns(trt: ModuleType) -> None:
    tensors = moe("int4", "int4", 192, 128)
    node = chain("prefill", "int4", "int4", EXPERTS, SLOTS)[2]
    tensors |= {
        "hidden": Tensor((pairs, 192), DataType.HALF),
        "hidden_scale": Tensor((pairs, 3), DataType.FLOAT),
        "order": Tensor((pairs,), DataType.INT32),
        "begins": Tensor((5,), DataType.INT32),
    }
    with pytest.raises(EngineError, match=r"192 columns, no multiple of 128; .*without plugins"):
        build(trt, node, [tensors[i] for i in node.inputs])


def test_a_node_has_the_attributes_of_its_plugin(trt: ModuleType) -> None:
    """Another name would be left out by TensorRT's parser, with a warning."""
    node = chain("prefill", "nvfp4", "nvfp4", EXPERTS, SLOTS)[0]
    renamed = dataclasses.replace(node, attributes={"experts": EXPERTS})
    with pytest.raises(AssertionError):
        build(trt, renamed, [Tensor((tokens, SLOTS), DataType.INT32)])


def test_the_stand_in_has_what_is_used_and_no_more(trt: ModuleType) -> None:
    with pytest.raises(AttributeError):
        _ = trt.Builder
    with pytest.raises(AttributeError):
        PluginTensorDesc().shape = (1,)  # type: ignore[attr-defined]


def test_a_folder_without_the_kernels_says_how_to_make_them(
    trt: ModuleType, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "kernels.json").write_text((folder / "kernels.json").read_text())
    with pytest.raises(EngineError, match="has no kernel decode_up_nvfp4; compile the kernels"):
        register_plugins(trt, trt.plugin, tmp_path)
    with pytest.raises(EngineError, match="does not exist; compile the kernels"):
        register_plugins(trt, trt.plugin, tmp_path / "nothing")
