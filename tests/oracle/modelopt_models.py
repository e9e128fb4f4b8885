"""The decoder of transformers under ModelOpt's quantizers: configured, calibrated, exported.

transformers fuses the experts of a layer into one parameter, and ModelOpt gives those one quantizer
of inputs. Where each expert is looked at by itself, they are taken apart into linears.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import numpy as np
import torch
from modelopt.torch.export import export_hf_checkpoint
from modelopt.torch.quantization.nn import TensorQuantizer
from numpy.typing import NDArray
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMoE

from edge.engines.safetensors import SafetensorsFile

Float32 = NDArray[np.float32]

E4M3 = {"num_bits": (4, 3), "axis": None}
E2M1 = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
QUANTIZERS: dict[str, tuple[Any, Any]] = {
    "fp8": (E4M3, E4M3),
    "nvfp4": (E2M1, E2M1),
    "w4a16": (E2M1, None),
    "bf16": (None, None),
}
"""Of weights and of inputs, by our names: ModelOpt's own presets, without their lists of names."""


def quantizer_configuration(chosen: Mapping[str, str], kv_cache: str) -> list[dict[str, Any]]:
    """What mtq.quantize takes.

    Args:
        chosen: format by module of the published checkpoint; experts of a layer are alike.
    """
    rules: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for module, name in chosen.items():
        at = module.replace("language_model.backbone.", "model.")
        weight, given = f"{at}.weight_quantizer", f"{at}.input_quantizer"
        fused = re.fullmatch(r"(.*\.experts)\.\d+\.(\w+_proj)", at)
        if fused:  # one quantizer of inputs for all experts, a list for their weights
            at = f"{fused[1]}.{fused[2]}"
            weight, given = f"{at}_weight_quantizers.*", f"{at}_input_quantizer"
        for quantizer, settings in zip((weight, given), QUANTIZERS[name], strict=True):
            rule = {"quantizer_name": quantizer, "cfg": settings}
            if settings and rule not in rules:
                rules.append(rule)
    if kv_cache == "fp8":
        rules.append({"quantizer_name": "*[kv]_bmm_quantizer", "cfg": E4M3})
    return rules


def separate_configuration(chosen: Mapping[str, str]) -> list[dict[str, Any]]:
    """What mtq.quantize takes where each expert has linears of its own."""
    rules: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for module, name in chosen.items():
        at = module.replace("language_model.backbone.", "model.")
        for kind, settings in zip(("weight", "input"), QUANTIZERS[name], strict=True):
            if settings:
                rules.append({"quantizer_name": f"{at}.{kind}_quantizer", "cfg": settings})
    return rules


def quantized(
    model: Any, rules: list[dict[str, Any]], samples: Sequence[Float32], **algorithm: Any
) -> Any:
    """A copy of the decoder, calibrated by ModelOpt with all samples at once."""

    def forward(model: Any) -> None:
        with torch.no_grad():
            for rows in samples:
                rows_here = torch.from_numpy(rows)[None].to(model.dtype)
                model(inputs_embeds=rows_here, use_cache=False)

    settings = {"quant_cfg": rules, "algorithm": {"method": "max", **algorithm}}
    return mtq.quantize(copy.deepcopy(model), settings, forward)


class Expert(torch.nn.Module):
    """One expert as two linears."""

    def __init__(self, up: torch.Tensor, down: torch.Tensor) -> None:
        super().__init__()
        for name, weight in (("up_proj", up), ("down_proj", down)):
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight = torch.nn.Parameter(weight.detach().clone())
            self.add_module(name, linear)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.down_proj(torch.relu(self.up_proj(rows)).square())


class SeparateExperts(torch.nn.ModuleList):
    """Experts under their published names, each with quantizers of its own."""

    def forward(self, rows: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self):
            at, slot = (ids == number).nonzero(as_tuple=True)
            if len(at):
                out.index_add_(0, at, expert(rows[at]) * weights[at, slot, None])
        return out


class NemotronHMoEOfLinears(NemotronHMoE):
    """Its own class, because ModelOpt decides by class how it quantizes a layer."""


def with_separate_experts(model: Any) -> Any:
    """A copy of transformers' decoder whose experts are not fused into one parameter."""
    model = copy.deepcopy(model)
    for layer in model.model.layers:
        if hasattr(layer.mixer, "experts"):
            fused = layer.mixer.experts
            pairs = zip(fused.up_proj, fused.down_proj, strict=True)
            layer.mixer.experts = SeparateExperts(Expert(*pair) for pair in pairs)
            layer.mixer.__class__ = NemotronHMoEOfLinears
    return model


def input_quantizers(model: Any) -> Iterator[tuple[str, Any]]:
    """ModelOpt's enabled quantizers of activations, keys and values, by the names of our bundle."""
    for name, quantizer in model.named_modules():
        of_weights = "weight_quantizer" in name
        if isinstance(quantizer, TensorQuantizer) and quantizer.is_enabled and not of_weights:
            yield bundle_name(name), quantizer


def input_amax(model: Any) -> dict[str, float]:
    """Largest magnitudes that ModelOpt found; experts that nothing reached have none."""
    found = ((name, quantizer.amax) for name, quantizer in input_quantizers(model))
    return {name: float(amax) for name, amax in found if amax is not None}


def bundle_name(quantizer: str) -> str:
    """`model.layers.1.mixer.experts.3.up_proj.input_quantizer` -> `layers.1.experts_up.3`."""
    _, _, layer, _, *path = quantizer.removesuffix(".input_quantizer").split(".")
    at = f"layers.{layer}"
    if path[-1].endswith("_bmm_quantizer"):
        return f"{at}.{path[-1][0]}_proj.output"
    if path[0] == "experts":
        kind = path[-1].split("_proj")[0]
        return f"{at}.experts_{kind}" + (f".{path[1]}" if len(path) == 3 else "")
    if path[0] == "shared_experts":
        return f"{at}.shared_{path[1].removesuffix('_proj')}"
    return f"{at}.{path[0]}"


def exported(model: Any, folder: Path) -> dict[str, NDArray[Any]]:
    """What ModelOpt writes of a quantized decoder, under the published names."""
    model.config.architectures = ["NemotronHForCausalLM"]
    model.config.dtype = model.dtype  # of the file; weights are scaled in it
    export_hf_checkpoint(model, export_dir=folder)
    file = SafetensorsFile(folder / "model.safetensors")
    return {f"language_model.{name}": file.tensor(name) for name in file.names()}
