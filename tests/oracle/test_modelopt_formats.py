"""Our bytes against those of ModelOpt's own exporter, which export_hf_checkpoint calls."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from edge.engines import formats

# What ModelOpt's exporter says of its own code, and of blocks of zeros.
pytestmark = [
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*amax entries of this .* are zero:UserWarning"),
]
DTYPES = ["float32", "bfloat16"]


@pytest.fixture(scope="module")
def modelopt() -> Iterator[SimpleNamespace]:
    """ModelOpt and torch. The import takes half a minute and warns of what it does not find."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if os.environ.get("CI") != "true":  # in CI an absent oracle is a failure
            for name in ("torch", "modelopt.torch"):
                pytest.importorskip(name, reason=f"needs {name}: make .venv/.oracle")
        import modelopt.torch.quantization as mtq
        import torch
        from modelopt.torch.export.unified_export_hf import _export_quantized_weight
        from modelopt.torch.quantization.qtensor import NVFP4QTensor

        yield SimpleNamespace(
            mtq=mtq, torch=torch, export=_export_quantized_weight, NVFP4QTensor=NVFP4QTensor
        )


def exported(modelopt: SimpleNamespace, weight: Any, recipe: str) -> tuple[Any, Any]:
    """A linear layer of that weight after ModelOpt's quantization and export.

    Returns:
        The weight as it was when it was packed (AWQ changes it), and the exported layer.
    """
    torch = modelopt.torch
    n, k = weight.shape
    layer = torch.nn.Linear(k, n, bias=False, dtype=weight.dtype)
    layer.weight.data.copy_(weight)
    model = torch.nn.Sequential(layer)

    def calibrate(model: Any) -> None:
        model(torch.randn(8, k, dtype=weight.dtype, generator=torch.Generator().manual_seed(0)))

    config = copy.deepcopy(getattr(modelopt.mtq, recipe))
    # NVFP4's activations need a GPU; the weights need no calibration.
    model = modelopt.mtq.quantize(model, config, None if "NVFP4" in recipe else calibrate)
    before = model[0].weight.detach().clone()
    modelopt.export(model[0], weight.dtype)
    return before, model[0]


def as_numpy(tensor: Any) -> NDArray[Any]:
    """The same bytes in numpy."""
    kinds = {"torch.bfloat16": ml_dtypes.bfloat16, "torch.float8_e4m3fn": ml_dtypes.float8_e4m3fn}
    tensor = tensor.detach().contiguous()
    kind = kinds.get(str(tensor.dtype))
    if kind is None:
        return tensor.numpy()
    import torch

    return tensor.view(torch.uint8).numpy().view(kind)


def weights(torch: Any, dtype: str) -> Iterator[tuple[str, Any]]:
    """Weights of every kind of difficulty, [32, 384]: 384 is 3 blocks of INT4."""
    random = torch.Generator().manual_seed(1)
    base = torch.randn(32, 384, generator=random)
    yield "normal", base * 0.02
    for size in (1e-20, 1e-30, 1e-37, 1e-38, 1e-39, 1e-40, 1e-41, 1e20, 1e37):
        if dtype == "float32" or size > 1e-41:  # bfloat16 has nothing below 9e-41
            yield f"of {size}", base * size
    outlier = base * 0.02
    outlier[3, 7] = 1000
    yield "outlier", outlier
    zeros = base * 0.02
    zeros[5], zeros[:, 32:64], zeros[:, 128:] = 0, 0, -0.0
    yield "zero blocks", zeros
    yield "near the largest number", base * (3.3e38 / base.abs().max())
    yield "many magnitudes", base * torch.exp(torch.randn(32, 384, generator=random) * 12)
    grid = torch.tensor([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6])
    ties = grid[torch.randint(0, 15, (32, 384), generator=random)] * torch.sign(base)
    ties[:, ::16], ties[0, 0] = 6, 2688
    yield "ties", ties
    halves = torch.randint(-15, 16, (32, 384), generator=random) / 2
    halves[:, ::128] = 7
    yield "halves", halves


def assert_same_bytes(ours: NDArray[Any], theirs: Any, what: str) -> None:
    theirs = as_numpy(theirs)
    assert ours.dtype == theirs.dtype, what
    assert ours.shape == theirs.shape, what
    assert ours.tobytes() == theirs.tobytes(), what


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recipe", ["NVFP4_DEFAULT_CFG", "W4A16_NVFP4_CFG"])
def test_nvfp4(modelopt: SimpleNamespace, recipe: str, dtype: str) -> None:
    for kind, weight in weights(modelopt.torch, dtype):
        before, layer = exported(modelopt, weight.to(getattr(modelopt.torch, dtype)), recipe)
        packed = formats.pack_nvfp4(as_numpy(before))
        assert_same_bytes(packed.codes, layer.weight, kind)
        assert_same_bytes(packed.block_scale, layer.weight_scale, kind)
        assert_same_bytes(np.asarray(packed.scale), layer.weight_scale_2, kind)


@pytest.mark.parametrize("dtype", DTYPES)
def test_fp8(modelopt: SimpleNamespace, dtype: str) -> None:
    for kind, weight in weights(modelopt.torch, dtype):
        before, layer = exported(
            modelopt, weight.to(getattr(modelopt.torch, dtype)), "FP8_DEFAULT_CFG"
        )
        packed = formats.pack_fp8(as_numpy(before))
        assert_same_bytes(packed.codes, layer.weight, kind)
        assert_same_bytes(np.asarray(packed.scale), layer.weight_scale, kind)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recipe", ["INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "INT4_AWQ_CFG"])
def test_int4(modelopt: SimpleNamespace, recipe: str, dtype: str) -> None:
    for kind, weight in weights(modelopt.torch, dtype):
        if "AWQ" in recipe and kind not in ("normal", "outlier", "ties"):
            continue  # the search for AWQ's scales wants ordinary numbers
        before, layer = exported(modelopt, weight.to(getattr(modelopt.torch, dtype)), recipe)
        packed = formats.pack_int4(as_numpy(before))
        assert_same_bytes(packed.codes, layer.weight, kind)
        assert_same_bytes(packed.block_scale, layer.weight_scale, kind)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16), (5, 48), (3, 1856), (7, 2688)])
def test_nvfp4_of_any_width(modelopt: SimpleNamespace, shape: tuple[int, int], dtype: str) -> None:
    """Also with the scale of a whole layer's experts, larger or smaller than the tensor's own."""
    torch, theirs = modelopt.torch, modelopt.NVFP4QTensor
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    weight = weight.to(getattr(torch, dtype))
    for scale in (None, 1e-4, 0.3):
        given = None if scale is None else torch.tensor(scale)
        codes, block_scale, scale_2 = theirs.quantize(weight, 16, None, given)
        packed = formats.pack_nvfp4(as_numpy(weight), scale)
        assert_same_bytes(packed.codes, codes._quantized_data, f"scale {scale}")
        assert_same_bytes(packed.block_scale, block_scale, f"scale {scale}")
        assert_same_bytes(np.asarray(packed.scale), scale_2, f"scale {scale}")


def test_reading_back(modelopt: SimpleNamespace) -> None:
    """The same float32 values as ModelOpt reads (it takes the code of -0 for 0)."""
    torch, theirs = modelopt.torch, modelopt.NVFP4QTensor
    weight = torch.randn(64, 384, generator=torch.Generator().manual_seed(3))
    packed, block_scale, scale = theirs.quantize(weight.clone(), 16)
    values = packed.dequantize(
        torch.float32, scale=block_scale, double_scale=scale, block_sizes={-1: 16}
    )
    ours = formats.unpack_nvfp4(formats.pack_nvfp4(weight.numpy()))
    np.testing.assert_array_equal(ours, values.numpy())
