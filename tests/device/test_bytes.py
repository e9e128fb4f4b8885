"""What a plan moves: kernels are traced, compiled graphs are counted, and the record may only fall.

With EDGE_TEST_BYTES=all (`make test-bytes`) every program of a decode kernel is traced, in some
minutes, in place of two for each expert: they differ in nothing but their rows.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
from count_bytes import (
    DEFAULTS,
    DOCUMENT,
    PAIRS,
    README,
    RECIPES,
    SPEC,
    Decoders,
    compare,
    count,
    document,
    readme,
    stored_bytes,
    token_bytes,
    tokens_s,
)
from gpu_interpreter import interpreted, launch, require_triton, traced
from numpy.typing import NDArray

from build_engine.boards import BOARDS
from build_engine.footprint import decode_bytes
from build_engine.graphs.decoder import OnnxOps
from build_engine.recipe import load_recipe
from build_engine.traffic import MODULES, PARTS, PEERS, Moved, recorded, whole
from edge.engines.simulated import PLAN_BYTES
from gpu_kernels import plugins, traffic
from gpu_kernels.launch import KERNELS, ROWS, TILE
from gpu_kernels.plugins import Phase

ALL = os.environ.get("EDGE_TEST_BYTES") == "all"
HIDDEN, WIDTH = SPEC.decoder.hidden_size, SPEC.decoder.expert_size
SLOTS = SPEC.decoder.n_experts_per_token
NUMPY_TYPES = {
    "*fp16": np.float16, "*fp32": np.float32, "*i32": np.int32, "*u8": np.uint8, "*u32": np.uint32
}  # fmt: skip
Shapes = Mapping[str, Sequence[int]]


@cache
def modules() -> dict[str, ModuleType]:
    require_triton()
    return interpreted()


def declared_and_moved(
    name: str, shapes: Shapes, sizes: Mapping[str, int], **given: NDArray[Any]
) -> dict[str, tuple[int, int]]:
    """By argument of a launch: bytes declared, bytes traced.

    Args:
        sizes: of the arguments and of the grid.
        given: what an argument holds; others hold zeros.
    """
    arguments: dict[str, NDArray[Any] | int] = {}
    for argument, kind in KERNELS[name].arguments.items():
        if kind == "i32":
            arguments[argument] = sizes[argument]
            continue
        shape = list(shapes[argument])
        if kind == "*u32":
            shape[-1] //= 4
        values = given.get(argument, np.zeros((), NUMPY_TYPES[kind]))
        arguments[argument] = np.array(np.broadcast_to(values, shape), NUMPY_TYPES[kind])
    kernels = modules()
    with traced(arguments) as moved:
        launch(kernels, name, arguments, **{k: v for k, v in sizes.items() if k not in arguments})
    declared = traffic.moved_bytes(name, shapes)
    assert set(declared) == set(moved)
    return {a: (declared[a], moved[a]) for a in declared}


def of_experts(
    name: str, tokens: int, slots: int, experts: int, n: int, k: int
) -> dict[str, tuple[int, int]]:
    """The same of a plugin, whose pairs are spread evenly over the experts.

    Args:
        experts: that there are; with one token those that it takes are enough, no other is read.
    """
    plugin, pairs = plugins.PLUGINS[name], tokens * slots
    shapes = traffic.expert_shapes(name, tokens, slots, experts, n, k)
    attributes = {a: {"n_experts": experts, "n_slots": slots}[a] for a in plugin.attributes}
    known = {**shapes, **attributes}
    assert list(plugin.outputs(known)) == list(shapes.values())[-KERNELS[name].n_outputs :]
    ids = np.arange(pairs).reshape(tokens, slots) % experts
    begins = np.arange(experts + 1) * pairs // experts
    return declared_and_moved(
        name, shapes, plugin.sizes(known), ids=ids, order=np.arange(pairs), begins=begins
    )


def few(rows: int) -> int:
    """Rows of a weight for two programs, or all of them."""
    return rows if ALL else 2 * ROWS


# kernel, and tokens, slots, experts, rows, columns: one token at the published sizes, the routes of
# 256, and for prefill also pairs of an expert that take two turns
CASES = [
    ("decode_up_nvfp4", (1, SLOTS, SLOTS, few(WIDTH), HIDDEN)),
    ("decode_up_int4", (1, SLOTS, SLOTS, few(WIDTH), HIDDEN)),
    ("decode_down_nvfp4", (1, SLOTS, SLOTS, few(HIDDEN), WIDTH)),
    ("decode_down_int4", (1, 2, 3, 2 * ROWS, 256)),  # no published weight is such
    ("sort_pairs", (256, SLOTS, SPEC.decoder.n_experts, 0, 0)),
    ("prefill_up_nvfp4", (1, SLOTS, SLOTS, TILE, HIDDEN)),
    ("prefill_down_nvfp4", (1, SLOTS, SLOTS, TILE, WIDTH)),
    *((f"prefill_{kind}", (48, 2, 3, 80, 256)) for kind in ("up_nvfp4", "down_nvfp4")),
    *((f"prefill_{kind}", (48, 2, 3, 64, 256)) for kind in ("up_int4", "down_int4")),
    ("combine", (2, SLOTS, 1, HIDDEN, 0)),
]


def check(by_argument: Mapping[str, tuple[int, int]]) -> None:
    for argument, (declared, moved) in by_argument.items():
        assert moved > 0, argument
        assert moved == pytest.approx(declared, rel=0.02), argument


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_launch_moves_what_is_declared(name: str, case: tuple[int, int, int, int, int]) -> None:
    check(of_experts(name, *case))


@pytest.mark.parametrize("name", ["resize_width_rgb", "resize_width_nv12"])
def test_resizing_reads_every_pixel_once(name: str) -> None:
    rows, columns, taps = 6, 130, 4
    width = columns * taps
    samples = width if "nv12" in name else 3 * width
    shapes = {
        "pixels": (rows, samples), "chroma": (rows // 2, width), "first": (columns,),
        "weights": (columns, taps), "planes": (3, rows, columns),
    }  # fmt: skip
    sizes = {
        "row_bytes": samples, "chroma_row_bytes": width,
        "n_rows": rows, "n_columns": columns, "n_taps": taps,
    }  # fmt: skip
    check(declared_and_moved(name, shapes, sizes, first=np.arange(columns) * taps))


def test_patches_are_written_once() -> None:
    side, columns, rows, taps = 16, 144, 32, 2
    shapes = {
        "planes": (3, rows * taps, columns), "first": (rows,), "weights": (rows, taps),
        "gain": (3,), "offset": (3,), "patches": (rows // side, columns // side, 3 * side**2),
    }  # fmt: skip
    sizes = {
        "n_rows": rows * taps, "n_columns": columns, "n_taps": taps, "side": side,
        "stride": 3 * side**2, "n_rows_out": rows,
    }  # fmt: skip
    check(declared_and_moved("patchify", shapes, sizes, first=np.arange(rows) * taps))


def test_tubelets_are_read_once() -> None:
    shapes = {"tubelet": (5, HIDDEN), "before": (5, HIDDEN), "result": (5,)}
    check(declared_and_moved("dissimilarity", shapes, {"n": HIDDEN, "n_places": 5}))


def test_every_plugin_is_traced() -> None:
    assert {name for name, _ in CASES} == set(plugins.PLUGINS)


@pytest.mark.parametrize("name", ["decode_up_nvfp4", "decode_down_nvfp4"])
def test_a_kernel_that_loads_its_weights_twice_moves_more_than_it_declares(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = modules()["experts"]
    source = Path(str(modules()["weights"].__file__)).read_text()
    line = "        low = tl.load(codes + g * 32 + r, mask=inside, other=0)\n"
    assert source.count(line) == 1
    (tmp_path / "weights_twice.py").write_text(source.replace(line, 2 * line))
    spec = importlib.util.spec_from_file_location("weights_twice", tmp_path / "weights_twice.py")
    assert spec
    assert spec.loader
    twice = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(twice)
    monkeypatch.setattr(experts, "nvfp4_rows", twice.nvfp4_rows)
    declared, moved = of_experts(name, 1, 2, 2, ROWS, 64)["codes"]
    assert moved == 1.5 * declared  # one of its two loads of codes


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Decoders:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        why = "needs TensorRT-RTX: make .venv/.dev"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return Decoders(importlib.import_module("tensorrt_rtx"), tmp_path_factory.mktemp("decoders"))


@pytest.mark.parametrize("phase", get_args(Phase))
@pytest.mark.parametrize(("target", "recipe"), PAIRS)
def test_no_part_moves_more_than_is_recorded(
    decoders: Decoders, target: str, recipe: str, phase: Phase
) -> None:
    counted = decoders.parts(target, recipe, phase)
    assert compare(counted, recorded().moved[target][recipe][phase]) == []


def test_blocks_in_one_plan_move_what_they_move_alone(decoders: Decoders) -> None:
    pattern = "MEM*EM"
    together = decoders.moved("orin", "orin", "decode", pattern)
    parts = decoders.parts("orin", "orin", "decode")
    apart = parts["head"]
    for letter in pattern:
        apart += parts[letter]
    assert token_bytes(together) == pytest.approx(token_bytes(apart), rel=0.01)


@pytest.mark.parametrize(("target", "recipe"), DEFAULTS.items())
def test_a_graph_that_reads_its_weights_again_is_found(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch, target: str, recipe: str
) -> None:
    product = OnnxOps._product

    def reading_again(ops: OnnxOps, x: str, matrix: str) -> str:
        largest = ops.graph.op("ReduceMax", ops.graph.cast(matrix, np.float32), keepdims=0)
        largest = ops.graph.cast(largest, ops._precision.wide)
        return ops.graph.op("Add", product(ops, x, matrix), largest)

    monkeypatch.setattr(OnnxOps, "_product", reading_again)
    monkeypatch.setattr(OnnxOps, "_product_dtype", lambda ops, held: ops._precision.wide)
    said = compare(
        decoders.parts(target, recipe, "decode"), recorded().moved[target][recipe]["decode"]
    )
    assert len(said) == len(PARTS)
    assert all("it moves more than it did" in problem for problem in said)


TENSOR = "{{ Name: {}, Dimensions: [{}], Strides: [1], Datatype: {}, Format: (Linear) Row }}"


def line(reads: Sequence[str], writes: Sequence[str], constants: Sequence[str] = ()) -> str:
    reads, writes, constants = (", ".join(texts) for texts in (reads, writes, constants))
    return (
        f"Name: k, LayerType: kgen, Inputs: [ {reads}], Constants: [ {constants}], "
        f"Outputs: [ {writes}], TacticName: t, StreamId: 0, Metadata: "
    )


def test_what_a_description_says_is_added_up() -> None:
    w, x = TENSOR.format("w", "4,8", "BFloat16"), TENSOR.format("x", "3", "Float")
    kernels = [
        line([w, x, w], [TENSOR.format("y", "", "Int64")]),  # w once, a scalar
        line([TENSOR.format("k", "2,-1,4", "Half")], [x], [TENSOR.format("table", "16", "Int4")]),
        line([], []),  # a signal
    ]
    expected = Moved(2, 64 + 12 + 8 + 12 + 8, 16)
    assert count("\n".join(["Layers:", *kernels, "", "Bindings:"])) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no description"),
        ("Layers:\n", "no description"),
        ("Layers:\nLayerType: kgen", "another form"),
        ("Layers:\n" + line(["{ Name: x, Shape: 3 }"], []), "another form"),
        ("Layers:\n" + line([TENSOR.format("x", "3", "Complex")], []), "unknown type Complex"),
        ("Layers:\n" + line([TENSOR.format("x", "-1,-1", "Half")], []), "two dynamic"),
    ],
)
def test_a_description_of_another_form_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count(text)


def test_a_record_that_is_no_longer_true_is_told() -> None:
    parts = recorded().moved["orin"]["orin"]["decode"]
    assert compare(parts, parts) == []
    assert compare(parts, None) == ["is not recorded"]
    for factor, words in ((2, "record it"), (0.5, "more than it did")):
        other = {
            part: Moved(m.kernels, int(m.n_bytes * factor), m.row_bytes)
            for part, m in parts.items()
        }
        said = compare(parts, other)
        assert len(said) == len(PARTS)
        assert all(words in each for each in said)


def test_documents_show_the_record() -> None:
    assert DOCUMENT.read_text() == document(recorded())
    assert README.read_text() == readme(recorded())
    assert "GB a token" in README.read_text()


def test_every_documented_pair_is_recorded() -> None:
    found = [(target, recipe) for target, by in recorded().moved.items() for recipe in by]
    assert found == PAIRS
    assert recorded().decoder == SPEC.decoder


@pytest.mark.parametrize("target", DEFAULTS)
def test_the_documented_recipe_moves_the_fewest_bytes(target: str) -> None:
    moved = {
        recipe: token_bytes(whole(SPEC.decoder, recorded().moved[target][recipe]["decode"]))
        for recipe in RECIPES
    }
    assert min(moved, key=lambda recipe: moved[recipe]) == DEFAULTS[target]


@pytest.mark.parametrize("recipe", RECIPES)
def test_stored_is_what_the_sizing_command_says(recipe: str) -> None:
    pattern = SPEC.decoder.pattern
    stored = sum(stored_bytes(recipe, part) * (pattern.count(part) or 1) for part in PARTS)
    assert stored == pytest.approx(decode_bytes(SPEC.decoder, load_recipe(recipe)), rel=1e-3)


def test_nobody_decodes_faster_than_the_smallest_recipe_can_be_read() -> None:
    for board, what, speed, _ in PEERS:
        if "this model" in what:
            bandwidth = BOARDS[MODULES[board]].bandwidth_bytes_s
            assert speed < bandwidth / decode_bytes(SPEC.decoder, load_recipe("int4")), what
    assert tokens_s("orin", 10**9) == pytest.approx(0.75 * 204.8)


@pytest.mark.parametrize(("board", "target"), [("agx-orin-64", "orin"), ("thor", "thor")])
def test_a_simulated_board_decodes_as_its_plan_was_counted(board: str, target: str) -> None:
    counted = whole(SPEC.decoder, recorded().moved[target][DEFAULTS[target]]["decode"])
    assert PLAN_BYTES[board] == pytest.approx(token_bytes(counted), rel=0.01)
