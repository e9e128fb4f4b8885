"""Quantize a checkpoint block by block: memory for one block is enough for any number of blocks.

Every block becomes one shard of the output, renamed into place when it is whole. A run that was
killed continues with the first shard that is missing, and gives the same bytes. The output is
ModelOpt's unified Hugging Face layout, which other runtimes read as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

import edge
from build_engine.building import building, refuse_existing, work_folder
from build_engine.checkpoint import INDEX, QUANTIZATION, Checkpoint
from build_engine.decoder_weights import ROOT, linears, packed_tensors
from build_engine.pack import (
    BITS,
    JOINED,
    activation_scales,
    joint_scale,
    kv_scales,
    pack_linear,
)
from build_engine.quantization_config import quantization_configuration
from build_engine.recipe import CALIBRATED, Format, Recipe
from build_engine.stored import format_of
from build_engine.survey import require_sound
from edge import advice
from edge.engines.safetensors import SafetensorsFile, write_safetensors
from edge.errors import CheckpointError, ConfigurationError
from edge.types import Float32

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""
Tensors: TypeAlias = dict[str, NDArray[Any]]

PROVENANCE = "provenance.json"
RUN, READ = "run.json", "read.json"
"""In the work folder: what a run is that may be continued, and what it has read by now."""
OTHERS_BYTES = 2 << 30
"""Tensors that are copied as they are share shards of about this size."""
COPIED = (".json", ".jinja", ".py", ".txt", ".model")
"""Suffixes of a checkpoint's small files: tokenizer, template, code, licence."""
DISK_RESERVE_BYTES = 1 << 28
MEMORY_RESERVE_BYTES = 1 << 30
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Unit:
    """What becomes one shard."""

    shard: str
    names: tuple[str, ...]
    layer: int | None
    n_bytes: int
    """Of its tensors in the source."""


@dataclass(frozen=True)
class Job:
    """One quantization: from what, how, to where."""

    checkpoint: Checkpoint
    recipe: Recipe
    samples: Sequence[Float32]
    """Embedded prompts [n, H] that calibrate the activations; unused if the recipe needs none."""
    out: Path

    @property
    def work(self) -> Path:
        """Where the shards gather until all are there."""
        return work_folder(self.out)


def quantize(job: Job, progress: Progress) -> dict[str, int]:
    """Write the quantized checkpoint, or go on with one that was interrupted.

    Returns:
        Number of linears by format.
    Raises:
        CheckpointError: the source is damaged or quantized already.
        ConfigurationError: `out` exists, samples or ModelOpt are missing, the recipe cannot be
            followed, the interrupted run was another, or somebody else is at it.
    """
    refuse_existing(job.out)
    require_sound(job.checkpoint)
    chosen = _formats(job)
    if job.recipe.kv_cache == "bf16" and not set(chosen.values()) & set(CALIBRATED):
        job = replace(job, samples=())
    elif not job.samples:
        raise ConfigurationError(
            "--samples",
            "are missing: this recipe quantizes activations",
            "give recordings, pictures, sounds or texts like those that the robot will meet",
        )
    if job.samples and find_spec("modelopt") is None:
        raise ConfigurationError(
            "modelopt", "is not installed, and calibrates", advice.install("quantize")
        )
    if job.samples and find_spec("torch") is None:
        raise ConfigurationError(
            "torch",
            "is not installed, and ModelOpt stands on it",
            "install torch 2.13, as its site says",
        )
    units = _units(job.checkpoint)
    n_bytes = sum(unit.n_bytes for unit in units)
    with building(job.out):
        provenance = _begin(job)
        left = [unit for unit in units if not (job.work / unit.shard).exists()]
        _check_disk(job, left, chosen)
        _check_memory(job, left)
        done = 0
        for unit in units:
            if unit in left:
                _write_unit(job, unit, chosen)
            done += unit.n_bytes
            progress(done, n_bytes)
            job.checkpoint.release()
        _finish(job, units, chosen, provenance)
    return {name: list(chosen.values()).count(name) for name in sorted(set(chosen.values()))}


def _formats(job: Job) -> dict[str, Format]:
    """Format of every linear; sees on the way that the source can be used."""
    chosen: dict[str, Format] = {}
    job.recipe.check(linears(job.checkpoint.spec.decoder))
    for packed in packed_tensors(job.checkpoint.spec.decoder):
        for source in packed.sources:
            module = source.removesuffix(".weight")
            found = format_of(job.checkpoint, module) if packed.matrix else "bf16"
            if found != "bf16":
                raise CheckpointError(
                    module,
                    f"is {found} already",
                    "quantize the BF16 checkpoint, or bundle this one as it is",
                )
            job.checkpoint.check(source, packed.source_shape)
            if packed.linear:
                chosen[module] = job.recipe.format_of(module.removeprefix("language_model."))
            if packed.name == "head" and chosen[module] in CALIBRATED:
                raise ConfigurationError(
                    module,
                    f"is to be {chosen[module]} by this recipe, and nothing calibrates its input",
                    "give it bf16, or a format of weights only: w4a16 or int4",
                )
        experts = {chosen.get(source.removesuffix(".weight")) for source in packed.sources}
        if len(experts) > 1:
            raise ConfigurationError(
                packed.name,
                f"has its experts in {' and '.join(sorted(map(str, experts)))} by this recipe",
                "give all experts of a layer one format",
            )
    return chosen


def _units(checkpoint: Checkpoint) -> list[Unit]:
    """One for each block, then the rest in pieces."""
    n_layers = len(checkpoint.spec.decoder.pattern)
    groups: list[tuple[int | None, list[str]]] = [(layer, []) for layer in range(n_layers)]
    others, n_bytes = list[str](), 0
    for name in checkpoint.names():
        layer = name.removeprefix(f"{ROOT}.layers.").split(".")[0]
        if layer.isdecimal() and int(layer) < n_layers:
            groups[int(layer)][1].append(name)
            continue
        if others and n_bytes + checkpoint.n_bytes(name) > OTHERS_BYTES:
            groups.append((None, others))
            others, n_bytes = [], 0
        others.append(name)
        n_bytes += checkpoint.n_bytes(name)
    groups.append((None, others))
    return [
        Unit(
            f"model-{i + 1:05}-of-{len(groups):05}.safetensors",
            tuple(names),
            layer,
            sum(map(checkpoint.n_bytes, names)),
        )
        for i, (layer, names) in enumerate(groups)
    ]


def _begin(job: Job) -> dict[str, Any]:
    """See that the work folder is this job's; what is to be said of the recipe and the samples."""
    calibration = hashlib.sha256()
    for rows in job.samples:
        calibration.update(np.ascontiguousarray(rows).data)
    provenance: dict[str, Any] = {
        "recipe": msgspec.to_builtins(job.recipe),
        "calibration_sha256": calibration.hexdigest() if job.samples else None,
        "calibration_tokens": sum(map(len, job.samples)),
        "versions": {"omni-edge": edge.__version__, "numpy": np.__version__},
    }
    if job.samples:
        from build_engine.calibrate import versions  # imports ModelOpt: half a minute

        provenance["versions"] |= versions()
    run = {"source": job.checkpoint.files(), "config": job.checkpoint.config, **provenance}
    text, path = json.dumps(run, indent=1) + "\n", job.work / RUN
    if not path.exists():  # who knows what these were made of
        for shard in job.work.glob("*.safetensors"):
            shard.unlink()
    elif path.read_text() != text:
        raise ConfigurationError(
            job.work,
            "holds another, interrupted run (its source, recipe, samples or versions differ)",
            "remove it, or repeat that run's command",
        )
    elif (job.work / READ).exists():
        job.checkpoint.read |= json.loads((job.work / READ).read_text())
    _put(path, text)
    return provenance


def _check_disk(job: Job, units: Sequence[Unit], chosen: dict[str, Format]) -> None:
    """Refuse to start what cannot end."""
    needed = DISK_RESERVE_BYTES
    for unit in units:
        needed += sum(_output_bytes(job, name, chosen) for name in unit.names)
    free = shutil.disk_usage(job.work).free
    if free < needed:
        raise ConfigurationError(
            job.out, f"needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free", "make room"
        )


def _check_memory(job: Job, units: Sequence[Unit]) -> None:
    """Refuse to start what would be killed, or read its source from the disk again and again.

    While a unit is written, its source is mapped and stays in memory, and what is packed of it
    gathers beside it: at most half of the source, which is FP8 of BF16. What stays as it is, is a
    view of the source. The reserve is for Python, ModelOpt and torch, and the samples on their way
    through a block.
    """
    if not MEMINFO.exists():
        return
    needed = MEMORY_RESERVE_BYTES + max((unit.n_bytes for unit in units), default=0) * 3 // 2
    sizes = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    available = 1024 * int(sizes["MemAvailable"].removesuffix("kB"))
    if available < needed:
        raise ConfigurationError(
            job.out,
            f"needs {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available",
            "end other programs, or quantize on a larger machine",
        )


def _output_bytes(job: Job, name: str, chosen: dict[str, Format]) -> int:
    n_bytes = job.checkpoint.n_bytes(name)
    module = name.removesuffix(".weight")
    itemsize = job.checkpoint.dtype(name).itemsize
    quantized = chosen.get(module, "bf16") != "bf16"
    bits = BITS[chosen[module]] if quantized else 8 * itemsize
    return int(n_bytes / itemsize * bits / 8)


def _write_unit(job: Job, unit: Unit, chosen: dict[str, Format]) -> None:
    """Calibrate one block, pack it, and put its shard in place."""
    checkpoint, tensors = job.checkpoint, Tensors()
    if unit.layer is not None and job.samples:
        largest = _calibrate(job, unit.layer)
        tensors |= activation_scales(checkpoint.spec.decoder, unit.layer, chosen, largest)
        if job.recipe.kv_cache == "fp8":
            tensors |= kv_scales(checkpoint.spec.decoder, unit.layer, largest)
    joined = [name for name in unit.names if _is_joined(name, chosen)]
    scale_2 = joint_scale([checkpoint.finite(n, checkpoint.shape(n)) for n in joined])
    for name in unit.names:
        values = checkpoint.finite(name, checkpoint.shape(name))
        module = name.removesuffix(".weight")
        if module in chosen:
            scale = scale_2 if name in joined else None
            tensors |= pack_linear(module, values, chosen[module], scale)
        else:
            tensors[name] = values
    partial = job.work / f"{unit.shard}.partial"
    write_safetensors(partial, {name: tensors[name] for name in sorted(tensors)})
    _put(job.work / READ, json.dumps(checkpoint.read))
    os.replace(partial, job.work / unit.shard)


def _is_joined(name: str, chosen: Mapping[str, Format]) -> bool:
    module = name.removesuffix(".weight")
    return module.endswith(JOINED) and chosen.get(module) in ("nvfp4", "w4a16")


def _calibrate(job: Job, layer: int) -> dict[str, float]:
    """Largest magnitudes in one block; leaves the samples as they reach the next one."""
    from build_engine.calibrate import calibrate_block  # imports ModelOpt: half a minute

    samples = job.samples
    if layer:
        with np.load(_samples_path(job, layer)) as stored:
            samples = [stored[name] for name in stored.files]
    after, largest = calibrate_block(job.checkpoint, layer, samples)
    path = _samples_path(job, layer + 1)
    with path.with_suffix(".partial").open("wb") as file:
        np.savez(file, *after)
    os.replace(path.with_suffix(".partial"), path)
    return largest


def _samples_path(job: Job, layer: int) -> Path:
    return job.work / f"samples-{layer:03}.npz"


def _finish(
    job: Job, units: Sequence[Unit], chosen: dict[str, Format], provenance: dict[str, Any]
) -> None:
    """Write the index and the configurations, and give the folder its name."""
    source = job.checkpoint.folder
    skipped = {INDEX, QUANTIZATION, PROVENANCE, "config.json"}
    for path in sorted(source.iterdir()):
        if path.suffix in COPIED and path.name not in skipped:
            shutil.copyfile(path, job.work / path.name)
    weight_map: dict[str, str] = {}
    n_bytes = 0
    for unit in units:
        file = SafetensorsFile(job.work / unit.shard)
        weight_map |= dict.fromkeys(file.names(), unit.shard)
        n_bytes += sum(map(file.n_bytes, file.names()))
    index = {"metadata": {"total_size": n_bytes}, "weight_map": weight_map}
    files = {INDEX: index, "config.json": dict(job.checkpoint.config)}
    files[PROVENANCE] = {"checkpoint": job.checkpoint.sha256(), **provenance}
    files["config.json"].pop("quantization_config", None)
    if job.recipe.kv_cache == "fp8" or set(chosen.values()) != {"bf16"}:
        matrices = [n for n in job.checkpoint.names() if len(job.checkpoint.shape(n)) > 1]
        modules = {n.removesuffix(".weight") for n in matrices if n.endswith(".weight")}
        others = modules - set(chosen)
        said, embedded = quantization_configuration(chosen, others, job.recipe.kv_cache)
        files[QUANTIZATION] = said
        files["config.json"]["quantization_config"] = embedded
    for name, values in files.items():
        _put(job.work / name, json.dumps(values, indent=1) + "\n")
    for path in (*job.work.glob("samples-*"), job.work / READ, job.work / RUN):
        path.unlink()
    job.work.rename(job.out)


def _put(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)
