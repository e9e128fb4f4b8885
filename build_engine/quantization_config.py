"""What a checkpoint says of its quantization, as ModelOpt's export writes it; and reading that.

Source: `process_layer_quant_config` and `convert_hf_quant_config_format` of `modelopt.torch.export`
0.47.0. Written here, because importing ModelOpt takes half a minute and weight-only recipes need
nothing else of it.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from build_engine.recipe import Format
from edge.engines.formats import INT4_BLOCK, NVFP4_GROUP
from edge.errors import CheckpointError

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


ALGORITHMS: dict[str, Format] = {
    "FP8": "fp8",
    "NVFP4": "nvfp4",
    "W4A16_NVFP4": "w4a16",
    "W4A16_AWQ": "int4",
}
"""ModelOpt's names of the formats that an engine can read."""
METHODS = ("modelopt", "modelopt_fp4", "modelopt_mixed")
ROOTS = ("model", "language_model", "backbone")
"""Names of what holds the decoder's blocks: exporters write all, some or none of them."""


class Told:
    """What a checkpoint says of the format of each module.

    It is read as liberally as ModelOpt's exports are written: with any prefix of the decoder, or
    none; by a parent; fused experts as one module; with patterns; with a marker of ModelOpt's own
    (a NUL and what follows) behind a name.
    """

    def __init__(self, at: str, described: Mapping[str, Any]) -> None:
        """Take quantization_config of config.json, or what hf_quant_config.json says.

        Args:
            at: what errors call it.
        Raises:
            CheckpointError: it is of another tool, or not of its form.
        """
        self._at, method = at, described.get("quant_method", METHODS[0])
        if method not in METHODS:
            raise CheckpointError(
                at,
                f"is by quant_method {method!r}, which is not read",
                "export the checkpoint with ModelOpt, or take the BF16 one",
            )
        layers = described.get("quantized_layers")
        kept = [*(described.get(key) or [] for key in ("exclude_modules", "ignore"))]
        if not isinstance(layers, dict | None) or not all(isinstance(k, list) for k in kept):
            raise CheckpointError(at, "is not of ModelOpt's form", "export it again")
        self._algorithm = described.get("quant_algo")
        self._layers = layers and {_plain(name): said for name, said in layers.items()}
        self._kept = [self._pattern(str(name)) for names in kept for name in names]

    def allows(self, module: str, found: Format) -> Format | None:
        """None where tensors of the format `found` may be; else the format that is told.

        Raises:
            CheckpointError: a format is told that is not known.
        """
        if self._layers is not None:
            said = self._layer(module)
            algorithm = said.get("quant_algo") if isinstance(said, dict) else None
            named = self._known(module, algorithm) or "bf16"
            return None if named == found else named
        # one format for all but some, which patterns name, and not always all of them: a matrix
        # without scales is whole
        if found == "bf16":
            return None
        names = [module, *_names(module)]
        if any(pattern.match(name) for name in names for pattern in self._kept):
            return "bf16"
        if self._algorithm == "MIXED_PRECISION":
            return None
        told = self._known(self._at, self._algorithm)
        same = told in (None, found) or (told, found) == ("nvfp4", "w4a16")
        return None if same else told

    def _layer(self, module: str) -> Any:
        layers = self._layers or {}
        for name in _names(module):
            if name in layers:
                return layers[name]
            for pattern in self._patterns:
                if fnmatch.fnmatchcase(name, pattern):
                    return layers[pattern]
        return None

    @functools.cached_property
    def _patterns(self) -> list[str]:
        return [name for name in self._layers or {} if "*" in name]

    def _pattern(self, name: str) -> re.Pattern[str]:
        """What exclude_modules and ignore name: * is any text, `re:` comes before a regex."""
        try:
            if name.startswith("re:"):
                return re.compile(name[3:])
            return re.compile(fnmatch.translate(_plain(name)))
        except re.error as error:
            raise CheckpointError(
                self._at, f"ignores {name!r}, which is no pattern ({error})", "export it again"
            ) from None

    @staticmethod
    def _known(at: str, algorithm: Any) -> Format | None:
        if algorithm is None:
            return None
        if algorithm not in ALGORITHMS:
            raise CheckpointError(
                at, f"has the unknown quant_algo {algorithm!r}", f"known: {', '.join(ALGORITHMS)}"
            )
        return ALGORITHMS[algorithm]


def _plain(name: str) -> str:
    """A module's name without the marker and without the decoder's prefixes."""
    parts = name.partition("\0")[0].rstrip(".").split(".")
    while len(parts) > 1 and parts[0] in ROOTS:
        parts = parts[1:]
    return ".".join(parts)


def _names(module: str) -> Iterator[str]:
    """All that may stand for a module: its name, that among fused experts, its parents."""
    name = _plain(module)
    fused = re.sub(r"\.experts\.\d+", ".experts", name)
    yield from dict.fromkeys([name, fused])
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


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
