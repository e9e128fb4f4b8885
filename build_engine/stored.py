"""How a checkpoint stores a weight: as floats, or as codes with scales beside them.

The format of each module follows from its tensors' dtypes and siblings, and must agree with what
the checkpoint's quantization configuration says; nothing is known by name. Layout: the unified
Hugging Face export of ModelOpt (`modelopt/torch/export/quant_utils.py` 0.47.0).
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from build_engine.checkpoint import RESTORE, Checkpoint
from build_engine.quantization_config import ALGORITHMS
from build_engine.recipe import Format
from edge.engines.formats import NVFP4_GROUP, interleave_codes, interleave_scales
from edge.engines.layout import BFLOAT16, E4M3, FLOAT32, UINT8, quantized_layouts
from edge.errors import CheckpointError

Layout: TypeAlias = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""By suffix of the bundle's tensor name: dtype and shape."""

E4M3_NAN, E4M3_LARGEST = 0x7F, 0x7E
"""Bits without the sign: not a number, and 448."""


def format_of(checkpoint: Checkpoint, module: str) -> Format:
    """The format of `module`'s weight.

    Raises:
        CheckpointError: the tensors fit no known format, or the configuration says another one.
    """
    found = _format_of_tensors(checkpoint, module)
    for at, told in checkpoint.told.items():
        said = told.allows(module, found)
        if said is not None:
            raise CheckpointError(
                module,
                f"is {said} by the quantization configuration, its tensors are {found} ({at})",
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


def stored_layout(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Layout:
    """The tensors that a bundle keeps of a matrix, without reading any.

    Args:
        name: of the checkpoint's tensor, `MODULE.weight`.
        shape: [n, k] of the matrix that it stands for.
    """
    module = name.removesuffix(".weight")
    chosen = format_of(checkpoint, module)
    floats = BFLOAT16 if checkpoint.dtype(name) == BFLOAT16 else FLOAT32
    scale = f"{module}.weight_scale"
    if chosen == "fp8" and math.prod(checkpoint.shape(scale)) != 1:
        raise CheckpointError(
            scale,
            f"has shape {checkpoint.shape(scale)}: a scale for each row or block",
            "export it with one scale a matrix, as ModelOpt's FP8 is",
        )
    return layout_of(chosen, shape, floats, checkpoint.has(f"{module}.input_scale"))


def layout_of(
    chosen: Format, shape: tuple[int, ...], floats: np.dtype[Any], has_input_scale: bool
) -> Layout:
    """The tensors that a bundle keeps of a matrix [n, k] in the chosen format.

    Args:
        floats: dtype of one that is not quantized.
    """
    if chosen == "bf16":
        return {"": (floats, shape)}
    layout = dict(quantized_layouts(shape)["nvfp4" if chosen == "w4a16" else chosen])
    if has_input_scale:
        layout[".input_scale"] = (FLOAT32, ())
    return layout


def sources(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> dict[str, str]:
    """The checkpoint's tensors that `stored_layout` is made of, by its suffixes."""
    module, has_blocks = name.removesuffix(".weight"), checkpoint.dtype(name) == UINT8
    siblings = {
        "": "weight",
        ".scale": "weight_scale_2" if has_blocks else "weight_scale",
        ".block_scale": "weight_scale",
        ".input_scale": "input_scale",
    }
    layout = stored_layout(checkpoint, name, shape)
    return {suffix: f"{module}.{siblings[suffix]}" for suffix in layout}


def stored(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], suffix: str) -> NDArray[Any]:
    """One of the tensors that `stored_layout` lists, checked, in a bundle's order of bytes.

    Exporters divide by the scale of what is zero as a whole, and write NaN: a NaN that is
    multiplied with zero is zero here. Other NaN among block scales were too large for E4M3, whose
    largest number they become; `checkpoint.saturated` counts them.

    Raises:
        CheckpointError: it is missing, of another shape, holds a NaN of another kind, or is a scale
            below zero.
    """
    module = name.removesuffix(".weight")
    chosen = format_of(checkpoint, module)
    dtype, part_shape = stored_layout(checkpoint, name, shape)[suffix]
    source = sources(checkpoint, name, shape)[suffix]
    if suffix == "" and chosen == "fp8":
        return _without_nan(checkpoint, source, part_shape)
    if suffix == ".block_scale" and dtype == E4M3:
        return interleave_scales(_block_scales(checkpoint, module, part_shape))
    values = checkpoint.finite(source, part_shape)
    if suffix == "":
        if chosen in ("nvfp4", "w4a16"):
            return interleave_codes(values)
        return values if values.dtype == dtype else values.astype(dtype)
    lowest = values.astype(np.float32).min()
    if lowest < 0 or (suffix == ".input_scale" and lowest == 0):
        at_least = "above zero" if suffix == ".input_scale" else "zero or above"
        raise CheckpointError(source, f"holds {lowest}, a scale must be {at_least}", RESTORE)
    return values if values.dtype == dtype else values.astype(dtype)


def _without_nan(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """FP8 codes; those of a matrix that is zero as a whole may be NaN in the file."""
    scale = f"{name.removesuffix('.weight')}.weight_scale"
    if float(checkpoint.finite(scale, ()).astype(np.float32)) != 0:
        return checkpoint.finite(name, shape)
    return np.zeros_like(checkpoint.whole(name, shape))


def _block_scales(checkpoint: Checkpoint, module: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Block scales [n, k / 16] of NVFP4, each a number and not below zero."""
    name = f"{module}.weight_scale"
    scales = checkpoint.whole(name, shape)
    bits = scales.view(np.uint8)
    magnitudes = bits & 0x7F
    nan = magnitudes == E4M3_NAN
    if ((bits != magnitudes) & (magnitudes != 0) & ~nan).any():
        lowest = scales[~nan].astype(np.float32).min()
        raise CheckpointError(name, f"holds {lowest}, a scale must be zero or above", RESTORE)
    if nan.any():
        codes = checkpoint.whole(f"{module}.weight", (shape[0], shape[1] * NVFP4_GROUP // 2))
        blocks = codes.reshape(*shape, NVFP4_GROUP // 2) & 0x77  # without signs
        scale = checkpoint.finite(f"{module}.weight_scale_2", ()).astype(np.float32)
        saturated = nan & blocks.any(axis=-1) & (scale != 0)
        magnitudes[nan] = 0
        magnitudes[saturated] = E4M3_LARGEST
        if saturated.any():
            checkpoint.saturated[module] = int(np.count_nonzero(saturated))
    return magnitudes.view(scales.dtype)
