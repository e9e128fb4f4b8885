"""What the kernels of a GPU must do, at any sizes: on a real one the published model's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import test_gpu_experts as experts
import test_gpu_frames as frames
from gpu import Gpu
from kernel_cases import finite_codes
from numpy.typing import NDArray

from edge.engines import formats, kernels
from edge.features.pixels import video_grid

MAX_OF_CPU = 2.0**-10
"""Of the largest value: y is rounded to float16 (2^-11), the rest is float32 sums."""


@dataclass(frozen=True)
class Sizes:
    """Of a model and a frame."""

    experts: int
    slots: int
    hidden: int
    width: int
    tokens: int
    """Of a prefill."""
    frame: tuple[int, int]
    """Width and height."""
    patches: int
    """About so many of a frame."""
    side: int


@dataclass(frozen=True)
class Lazy:
    """The matrices of a stack, each made when it is asked for: all in float64 are 5 GB."""

    shape: tuple[int, int, int]
    one: Callable[[int], NDArray[Any]]

    def __getitem__(self, ids: NDArray[np.int32]) -> NDArray[np.float64]:
        made = [self.one(int(i)).astype(np.float64) for i in ids.ravel()]
        return np.stack(made).reshape(*ids.shape, *self.shape[1:])


def stack(rng: np.random.Generator, name: str, n_experts: int, n: int, k: int) -> experts.Stack:
    """Random codes in a bundle's order."""
    codes = rng.integers(0, 256, (n_experts, n * k // 2), np.uint8)
    if name == "int4":
        codes = codes.reshape(n_experts, n // 2, k)
        scales = rng.uniform(-0.01, 0.01, (n_experts, n, k // 128)).astype(np.float32)
        values = Lazy(
            (n_experts, n, k), lambda i: formats.unpack_int4(formats.Int4(codes[i], scales[i]))
        )
        arguments = {"codes": codes.view(np.uint32), "block_scale": scales}
        return experts.Stack(values, arguments, kernels.weight(codes, scales))  # type: ignore[arg-type]
    codes = codes.reshape(n_experts, n, k // 2)
    coded = finite_codes(rng, (n_experts, n, k // 16))
    scales, scale = coded.view(experts.E4M3), rng.uniform(1e-4, 2e-4, n_experts).astype(np.float32)

    def one(i: int) -> NDArray[Any]:
        stored = formats.Nvfp4(codes[i], scales[i], scale[i])
        return formats.unpack_nvfp4(formats.deinterleave_nvfp4(stored))

    arguments = {"codes": codes.view(np.uint32), "block_scale": coded, "scale": scale}
    weight = kernels.weight(codes, scales, scale)
    return experts.Stack(Lazy((n_experts, n, k), one), arguments, weight)  # type: ignore[arg-type]


def make_case(name: str, sizes: Sizes, n_tokens: int) -> experts.Case:
    """Tokens that take random experts."""
    rng = np.random.default_rng(n_tokens)
    ids = [rng.permutation(sizes.experts)[: sizes.slots] for _ in range(n_tokens)]
    return experts.Case(
        name,
        stack(rng, name, sizes.experts, sizes.width, sizes.hidden),
        stack(rng, name, sizes.experts, sizes.hidden, sizes.width),
        rng.standard_normal((n_tokens, sizes.hidden)).astype(np.float16),
        np.stack(ids).astype(np.int32),
        rng.uniform(0.1, 1, (n_tokens, sizes.slots)).astype(np.float32),
    )


@contextlib.contextmanager
def instead_of_the_interpreter(gpu: Gpu) -> Iterator[None]:
    """The cases of tests/device, on this GPU."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (experts, frames):
            patch.setattr(module, "launch", gpu.launch)
            patch.setattr(module, "modules", dict)
        yield


def check_experts(gpu: Gpu, name: str, way: str, sizes: Sizes) -> float:
    """Every token beside the CPU's kernels, the first and the last beside real numbers.

    Returns:
        The largest difference from the CPU, of the largest value.
    """
    case = make_case(name, sizes, 1 if way == "decode" else sizes.tokens)
    with instead_of_the_interpreter(gpu):
        hidden, y = experts.WAYS[way](case)
    for t in {0, len(case.x) - 1}:
        row = slice(t, t + 1)
        alone = replace(case, x=case.x[row], ids=case.ids[row], weights=case.weights[row])
        true_hidden, hidden_bound, true_y, y_bound = experts.expected(alone, way)
        y_bound = y_bound + 2.0**-11 * (np.abs(true_y) + y_bound) + 2.0**-25
        assert (np.abs(hidden[row] - true_hidden) <= hidden_bound).all()
        assert (np.abs(y[row] - true_y) <= y_bound).all()
    x = case.x.astype(np.float32)
    cpu = kernels.experts(case.up.cpu, case.down.cpu, x, case.ids, case.weights, exact=True)
    error = float(np.abs(y - cpu.astype(np.float64)).max() / np.abs(cpu).max())
    assert error <= MAX_OF_CPU
    return error


def check_frames(gpu: Gpu, sizes: Sizes) -> None:
    """A frame of both kinds to patches, and two tubelets compared."""
    rng = np.random.default_rng(0)
    width, height = sizes.frame
    rows, columns = video_grid(width, height, sizes.patches)
    luma = rng.integers(0, 256, (height, width), np.uint8)
    chroma = rng.integers(0, 256, (height // 2, width // 2, 2), np.uint8)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    with instead_of_the_interpreter(gpu):
        for planes, rgb in (((pixels,), pixels), ((luma, chroma), frames.rgb_of(luma, chroma))):
            got = np.full((rows * columns, 3 * sizes.side**2), np.nan, np.float16)
            frames.gpu_patches(planes, rows, columns, sizes.side, got)
            frames.assert_equal_within_float16(
                got, frames.cpu_patches(rgb, rows, columns, sizes.side)
            )
        frames.check_dissimilarity(rows * columns // 4, sizes.hidden)


def check_graph(gpu: Gpu, sizes: Sizes) -> None:
    """Decode's chain captured once and replayed with other inputs: the bits of its launches."""
    case = make_case("nvfp4", sizes, 1)
    rng = np.random.default_rng(1)
    hidden = np.zeros((1, sizes.slots, sizes.width), np.float32)
    y = np.zeros((1, sizes.hidden), np.float16)
    with contextlib.ExitStack() as held:

        def put(values: NDArray[Any]) -> int:
            return held.enter_context(gpu.at(values))

        shared = {"ids": put(case.ids), "hidden": put(hidden), "n_slots": sizes.slots}
        up = {name: put(values) for name, values in case.up.arguments.items()}
        up |= {"x": put(case.x), **shared, "n": sizes.width, "k": sizes.hidden}
        down = {name: put(values) for name, values in case.down.arguments.items()}
        down |= {"weights": put(case.weights), **shared, "y": put(y)}
        down |= {"n": sizes.hidden, "k": sizes.width}

        def chain() -> None:
            gpu.enqueue("decode_up_nvfp4", up, n_tokens=1)
            gpu.enqueue("decode_down_nvfp4", down, n_tokens=1)

        graph = gpu.captured(chain)
        for _ in range(3):
            x = rng.standard_normal(case.x.shape).astype(np.float16)
            gpu.upload(up["x"], x)
            gpu.upload(down["y"], np.full_like(y, np.nan))
            gpu.cuda.launch(graph, gpu.stream)
            gpu.download(y, down["y"])
            with instead_of_the_interpreter(gpu):
                np.testing.assert_array_equal(experts.decode(replace(case, x=x))[1], y)
        gpu.cuda.free_graph(graph)
