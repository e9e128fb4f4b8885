"""What a checkpoint says of its quantization, as ModelOpt's export writes it.

Source: `process_layer_quant_config` and `convert_hf_quant_config_format` of `modelopt.torch.export`
0.47.0. Written here, because importing ModelOpt takes half a minute and weight-only recipes need
nothing else of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from build_engine.recipe import Format
from edge.engines.formats import INT4_BLOCK, NVFP4_GROUP

PRODUCER = {"name": "modelopt", "version": "0.47.0"}
"""Whose layout it is: other runtimes look for this name."""
E4M3 = {"dynamic": False, "num_bits": 8, "type": "float"}
E2M1 = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": NVFP4_GROUP}
INT4 = {"dynamic": False, "num_bits": 4, "type": "int", "group_size": INT4_BLOCK}
LINEARS: dict[Format, dict[str, Any]] = {
    "fp8": {"quant_algo": "FP8"},
    "nvfp4": {"quant_algo": "NVFP4", "group_size": NVFP4_GROUP},
    "w4a16": {"quant_algo": "W4A16_NVFP4", "group_size": NVFP4_GROUP},
    "int4": {
        "quant_algo": "W4A16_AWQ",
        "group_size": INT4_BLOCK,
        "has_zero_point": False,
        "pre_quant_scale": True,
    },
}
GROUPS: dict[Format, dict[str, Any]] = {
    "fp8": {"input_activations": E4M3, "weights": E4M3},
    "nvfp4": {"input_activations": E2M1, "weights": E2M1},
    "w4a16": {"weights": E2M1},
    "int4": {"weights": INT4},
}


def quantization_configuration(
    chosen: Mapping[str, Format], others: Iterable[str], kv_cache: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Contents of hf_quant_config.json, and of quantization_config in config.json.

    Args:
        chosen: format of each linear.
        others: modules with a matrix that no recipe quantizes: encoders, embeddings, routers.
    """
    layers = {module: LINEARS[name] for module, name in chosen.items() if name != "bf16"}
    formats = [name for name in dict.fromkeys(chosen.values()) if name != "bf16"]
    said: dict[str, Any] = {
        "quant_algo": None,
        "kv_cache_quant_algo": "FP8" if kv_cache == "fp8" else None,
    }
    embedded: dict[str, Any] = {"quant_method": "modelopt", "producer": PRODUCER, "ignore": []}
    if len(formats) == 1:
        targets = {formats[0]: ["Linear"]}
        kept = [*(module for module in chosen if module not in layers), *others]
        embedded["ignore"] = prefix_patterns(kept, layers)
        said |= {**LINEARS[formats[0]], "exclude_modules": embedded["ignore"]}
    else:
        targets = {name: sorted(m for m in layers if chosen[m] == name) for name in formats}
        said["quantized_layers"] = layers
        if formats:
            said["quant_algo"] = "MIXED_PRECISION"
            embedded["quantized_layers"] = layers
    if formats:
        embedded["quant_algo"] = said["quant_algo"]
        embedded["config_groups"] = {
            f"group_{i}": {**GROUPS[name], "targets": targets[name]}
            for i, name in enumerate(formats)
        }
    if kv_cache == "fp8":
        embedded["kv_cache_scheme"] = E4M3
    return {"producer": PRODUCER, "quantization": said}, embedded


def prefix_patterns(modules: Iterable[str], others: Iterable[str]) -> list[str]:
    """The shortest patterns, a prefix and *, that match all `modules` and none of `others`."""
    taken = {other[:end] for other in others for end in range(len(other) + 1)}
    whole = set(others)
    patterns = set[str]()
    for module in modules:
        for end in (i for i, letter in enumerate(module) if letter == "."):
            if module[:end] not in taken:
                patterns.add(f"{module[:end]}*")
                break
            if f"{module[:end]}." not in taken and module[:end] not in whole:
                patterns.add(f"{module[:end]}.*")
                break
        else:
            patterns.add(module)
    return sorted(patterns)
