"""dtype and shape of every tensor of decoder.safetensors: of one that is there, or to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from build_engine.decoder_weights import packed_tensors
from build_engine.recipe import CALIBRATED, Format, Recipe
from build_engine.stored import layout_of
from edge.engines.bundle import DECODER_WEIGHTS
from edge.engines.layout import BFLOAT16, FLOAT32
from edge.engines.safetensors import Layout, SafetensorsFile
from edge.model.spec import DecoderSpec


def bundle_layout(bundle: Path) -> Layout:
    """Of a bundle; no data is read."""
    return SafetensorsFile(bundle / DECODER_WEIGHTS).layout()


def recipe_layout(spec: DecoderSpec, recipe: Recipe) -> Layout:
    """Of a decoder of these sizes, quantized by a recipe."""
    layout: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
    for packed in packed_tensors(spec):
        if not packed.matrix:
            layout[packed.name] = FLOAT32, packed.shape
            continue
        chosen: Format = "bf16"
        if packed.linear:
            module = packed.sources[0].removeprefix("language_model.").removesuffix(".weight")
            chosen = recipe.format_of(module)
        stack = packed.shape[: len(packed.shape) - len(packed.source_shape)]
        parts = layout_of(chosen, packed.source_shape, BFLOAT16, chosen in CALIBRATED)
        for suffix, (dtype, shape) in parts.items():
            layout[packed.name + suffix] = dtype, stack + shape
    return layout
