"""How a checkpoint stores a weight: as floats, or as codes with scales beside them.

The format of each module follows from its tensors' dtypes and siblings, and must agree with what
the checkpoint's quantization configuration says; nothing is known by name. Layout: the unified
Hugging Face export of ModelOpt (`modelopt/torch/export/quant_utils.py` 0.47.0).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from build_engine.checkpoint import RESTORE, Checkpoint
from build_engine.recipe import Format
from edge.engines.formats import INT4_BLOCK, NVFP4_GROUP, interleave_codes, interleave_scales
from edge.errors import CheckpointError

Layout: TypeAlias = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""By suffix of the bundle's tensor name: dtype and shape."""

FLOAT32 = np.dtype(np.float32)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
UINT8 = np.dtype(np.uint8)
ALGORITHMS: dict[str, Format] = {
    "FP8": "fp8",
    "NVFP4": "nvfp4",
    "W4A16_NVFP4": "w4a16",
    "W4A16_AWQ": "int4",
}
"""ModelOpt's names of the formats that an engine can read."""


def format_of(checkpoint: Checkpoint, module: str) -> Format:
    """The format of `module`'s weight.

    Raises:
        CheckpointError: the tensors fit no known format, or the configuration says another one.
    """
    found = _format_of_tensors(checkpoint, module)
    said = _format_in_configuration(checkpoint, module)
    if said is not None and said != found:
        raise CheckpointError(
            module,
            f"is {said} by the quantization configuration, its tensors are {found}",
            RESTORE,
        )
    return found


def _format_of_tensors(checkpoint: Checkpoint, module: str) -> Format:
    dtype = checkpoint.dtype(f"{module}.weight")
    scales = {
        name: checkpoint.dtype(f"{module}.{name}")
        for name in ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")
        if checkpoint.has(f"{module}.{name}")
    }
    kinds = set(scales) - {"input_scale"}
    if "pre_quant_scale" in kinds:
        raise CheckpointError(
            module, "has a pre_quant_scale: AWQ smoothing", "export it without, as INT4 blockwise"
        )
    if dtype not in (E4M3, UINT8) and not kinds:
        return "bf16"
    if dtype == E4M3 and kinds == {"weight_scale"}:
        return "fp8"
    if dtype == UINT8 and kinds == {"weight_scale", "weight_scale_2"}:
        return "nvfp4" if "input_scale" in scales else "w4a16"
    if dtype == UINT8 and kinds == {"weight_scale"} and scales["weight_scale"] != E4M3:
        return "int4"
    raise CheckpointError(
        module,
        f"has {dtype} weights with {', '.join(sorted(scales)) or 'no scales'}: no known format",
        f"known: {', '.join(ALGORITHMS)}",
    )


def _format_in_configuration(checkpoint: Checkpoint, module: str) -> Format | None:
    """None where the configuration leaves it open."""
    quantization = checkpoint.quantization
    layers = quantization.get("quantized_layers")
    if layers is None:  # one format for all but some, which patterns name
        at, algorithm = "quantization_config", quantization.get("quant_algo")
    else:
        at, algorithm = module, layers.get(module, {}).get("quant_algo")
    mixed = layers is None and algorithm == "MIXED_PRECISION"
    if algorithm is not None and algorithm not in ALGORITHMS and not mixed:
        raise CheckpointError(
            at, f"has the unknown quant_algo {algorithm!r}", f"known: {', '.join(ALGORITHMS)}"
        )
    if layers is None:
        return None
    return "bf16" if algorithm is None else ALGORITHMS[algorithm]


def stored_layout(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Layout:
    """The tensors that a bundle keeps of a matrix, without reading any.

    Args:
        name: of the checkpoint's tensor, `MODULE.weight`.
        shape: [n, k] of the matrix that it stands for.
    """
    module = name.removesuffix(".weight")
    chosen = format_of(checkpoint, module)
    if chosen == "bf16":
        dtype = checkpoint.dtype(name)
        return {"": (BFLOAT16 if dtype == BFLOAT16 else FLOAT32, shape)}
    n, k = shape
    layouts: dict[Format, Layout] = {
        "fp8": {"": (E4M3, shape), ".scale": (FLOAT32, ())},
        "int4": {"": (UINT8, (n // 2, k)), ".block_scale": (FLOAT32, (n, k // INT4_BLOCK))},
    }
    layouts["nvfp4"] = layouts["w4a16"] = {
        "": (UINT8, (n, k // 2)),
        ".block_scale": (E4M3, (n, k // NVFP4_GROUP)),
        ".scale": (FLOAT32, ()),
    }
    layout = layouts[chosen]
    if checkpoint.has(f"{module}.input_scale"):
        layout[".input_scale"] = (FLOAT32, ())
    return layout


def stored(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], suffix: str) -> NDArray[Any]:
    """One of the tensors that `stored_layout` lists, checked, in a bundle's order of bytes.

    Raises:
        CheckpointError: it is missing, of another shape, holds a NaN, or is a scale that is not
            above zero.
    """
    module = name.removesuffix(".weight")
    dtype, part_shape = stored_layout(checkpoint, name, shape)[suffix]
    if suffix == "":
        values = checkpoint.finite(name, part_shape)
        if format_of(checkpoint, module) in ("nvfp4", "w4a16"):
            return interleave_codes(values)
        return values if values.dtype == dtype else values.astype(dtype)
    has_blocks = checkpoint.dtype(name) == UINT8
    sibling = {
        ".scale": "weight_scale_2" if has_blocks else "weight_scale",
        ".block_scale": "weight_scale",
        ".input_scale": "input_scale",
    }[suffix]
    source = f"{module}.{sibling}"
    scale = checkpoint.finite(source, part_shape)
    lowest = scale.astype(np.float32).min()
    if not lowest > 0:
        raise CheckpointError(source, f"holds {lowest}, a scale must be above zero", RESTORE)
    if suffix == ".block_scale" and dtype == E4M3:
        return interleave_scales(scale)
    return scale if scale.dtype == dtype else scale.astype(dtype)
