"""One linear in the layout of ModelOpt's unified Hugging Face export."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from build_engine.decoder_weights import packed_tensors
from build_engine.recipe import Format
from edge.engines.formats import pack_fp8, pack_int4, pack_nvfp4
from edge.errors import CheckpointError
from edge.model.spec import DecoderSpec

ACTIVATION_RANGE: dict[Format, np.float32] = {"fp8": np.float32(448), "nvfp4": np.float32(6 * 448)}
"""What the largest input of a linear is scaled to: the largest E4M3 code; times that of E2M1."""
BITS: dict[Format, float] = {"bf16": 16, "fp8": 8, "nvfp4": 4.5, "w4a16": 4.5, "int4": 4.25}
"""Of one weight with its share of the scales."""
JOINED = ("q_proj", "k_proj", "v_proj")
"""Other runtimes compute these as one linear, with one scale for all of an NVFP4 weight."""


def pack_linear(
    module: str, weight: NDArray[Any], chosen: Format, scale_2: float | None = None
) -> dict[str, NDArray[Any]]:
    """Tensors of a linear in the chosen format, by their names in a checkpoint.

    Args:
        weight: [n, k] float32 or bfloat16.
        scale_2: of `joint_scale`, if the linear is one of several.
    """
    name = f"{module}.weight"
    if chosen == "bf16":
        return {name: weight}
    if chosen == "fp8":
        fp8 = pack_fp8(weight, name=name)
        return {name: fp8.codes, f"{module}.weight_scale": np.asarray(fp8.scale)}
    if chosen == "int4":
        int4 = pack_int4(weight, name=name)
        return {name: int4.codes, f"{module}.weight_scale": int4.block_scale}
    nvfp4 = pack_nvfp4(weight, scale_2, name=name)
    return {
        name: nvfp4.codes,
        f"{module}.weight_scale": nvfp4.block_scale,
        f"{module}.weight_scale_2": np.asarray(nvfp4.scale),
    }


def joint_scale(weights: Iterable[NDArray[Any]]) -> float | None:
    """weight_scale_2 of NVFP4 linears that share one; None if all are zero, or there are none."""
    amax = max((np.float32(np.abs(weight).max()) for weight in weights), default=np.float32(0))
    return float(amax / ACTIVATION_RANGE["nvfp4"]) if amax > 0 else None


def activation_scales(
    spec: DecoderSpec, layer: int, chosen: Mapping[str, Format], largest: Mapping[str, float]
) -> dict[str, NDArray[Any]]:
    """input_scale of a block's linears.

    Args:
        largest: of `calibrate_block`. All experts of a layer take the largest of them: so ModelOpt
            does it, other runtimes need one scale, and no sample may reach some experts.
    Raises:
        CheckpointError: nothing, or only zeros, reached a linear.
    """
    scales: dict[str, NDArray[Any]] = {}
    for packed in packed_tensors(spec):
        if not (packed.matrix and packed.name.startswith(f"layers.{layer}.")):
            continue
        names = (packed.name, *(f"{packed.name}.{i}" for i in range(len(packed.sources))))
        amax = max((largest[name] for name in names if name in largest), default=0.0)
        for source in packed.sources:
            module = source.removesuffix(".weight")
            if chosen[module] not in ACTIVATION_RANGE:
                continue
            if not amax > 0:
                raise CheckpointError(
                    module, "was reached by zeros only", "calibrate with more varied samples"
                )
            scales[f"{module}.input_scale"] = np.asarray(
                np.float32(amax) / ACTIVATION_RANGE[chosen[module]]
            )
    return scales


def kv_scales(
    spec: DecoderSpec, layer: int, largest: Mapping[str, float]
) -> dict[str, NDArray[Any]]:
    """k_scale and v_scale of an attention block, none of another."""
    scales: dict[str, NDArray[Any]] = {}
    for packed in packed_tensors(spec):
        for kind in "kv":
            if packed.name == f"layers.{layer}.{kind}_proj":
                module = packed.sources[0].removesuffix(".weight")
                amax = np.float32(largest[f"{packed.name}.output"])
                scales[f"{module}.{kind}_scale"] = np.asarray(amax / ACTIVATION_RANGE["fp8"])
    return scales
