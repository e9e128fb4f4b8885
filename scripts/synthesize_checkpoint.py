"""Write a full-size checkpoint (33 B parameters) of seeded random weights in a published layout.

It tests scale for real: names, shapes, dtypes, scales, shards and index are those of the published
BF16, FP8 and NVFP4 files; the values are noise with a standard deviation of 0.02 (quantized noise
in the quantized layouts), so what the model says means nothing. A tensor depends only on the seed
and its name: any shard can be made alone, and less than one tensor is in memory. The tokenizer is
the tiny checkpoint's, filled up with unused tokens to the vocabulary's size.

Usage:
    python scripts/synthesize_checkpoint.py OUT --layout nvfp4
    python scripts/synthesize_checkpoint.py OUT --layout bf16 --layers 8      # the first 8 blocks
    python scripts/synthesize_checkpoint.py OUT --layout fp8 --layers 'MEM*E' # these blocks
    python scripts/synthesize_checkpoint.py OUT --layout bf16 --consume       # one shard at a time:
                                                        # each is read back, compared and deleted
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from make_tiny_checkpoint import (
    BF16,
    F32,
    decoder_tensors,
    encoder_tensors,
    tensor_dtype,
    tensor_values,
    write_files,
)
from published_config import CONFIG, GENERATION_CONFIG
from tiny_tokenizer import write_tokenizer

from edge.engines.safetensors import SafetensorsFile, SafetensorsWriter
from edge.errors import CheckpointError, EdgeError

Shape: TypeAlias = tuple[int, ...]
Tensors: TypeAlias = Mapping[str, tuple[np.dtype[Any], Shape]]
"""name -> (dtype, shape), in the file's order."""
LAYOUTS = ("bf16", "fp8", "nvfp4")
U8, E4M3 = np.dtype(np.uint8), np.dtype(ml_dtypes.float8_e4m3fn)
SHARD_BYTES = 4_000_000_000
"""The published BF16 files are 17 of this size."""
SPARE_BYTES = 500_000_000
BLOCK = 16
"""Columns that share an NVFP4 scale."""
POOL_BLOCKS = 262_139
"""A prime: rows of any even length then start at different places of the pool."""
STD = 0.02
POOLED_KINDS, POOLED_COLUMNS = ("weight", "pos_embed"), 32
"""Matrices with fewer inputs, and vectors, are drawn one by one as the tiny checkpoint's are."""
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
E4M3_MAX, E2M1_MAX = 448.0, 6.0
INDEX = "model.safetensors.index.json"


def quantized_format(name: str, layout: str) -> str | None:
    """Format of the linear `name` (without `.weight`) in a layout; None: it stays BF16."""
    linear = re.search(r"\.mixer\.(?:(experts)\.\d+\.|shared_experts\.)?(\w+_proj)$", name)
    if layout == "bf16" or not linear:
        return None
    if layout == "fp8":
        return "FP8"
    if linear[1]:
        return "NVFP4"
    # the published NVFP4 files keep q, k and v in BF16
    return None if linear[2] in ("q_proj", "k_proj", "v_proj") else "FP8"


def inventory(config: dict[str, Any], layout: str) -> dict[str, tuple[np.dtype[Any], Shape]]:
    """Every tensor of a checkpoint, with the scales that its layout adds."""
    tensors: dict[str, tuple[np.dtype[Any], Shape]] = {}
    router = F32 if layout == "nvfp4" else None
    for name, shape in (*decoder_tensors(config["llm_config"]), *encoder_tensors(config)):
        module = name.removesuffix(".weight")
        form = quantized_format(module, layout) if name.startswith("language_model.") else None
        if form is None:
            tensors[name] = (tensor_dtype(name, BF16, router), shape)
            continue
        if form == "FP8":
            tensors[name] = (E4M3, shape)
            tensors[f"{module}.weight_scale"] = (F32, ())
        else:
            rows, columns = shape
            tensors[name] = (U8, (rows, columns // 2))
            tensors[f"{module}.weight_scale"] = (E4M3, (rows, columns // BLOCK))
            tensors[f"{module}.weight_scale_2"] = (F32, ())
        tensors[f"{module}.input_scale"] = (F32, ())
    return tensors


def n_bytes(tensors: Tensors) -> int:
    """Bytes of the tensors' data."""
    return sum(math.prod(shape) * dtype.itemsize for dtype, shape in tensors.values())


def shards(
    config: dict[str, Any], layout: str, shard_bytes: int = SHARD_BYTES
) -> list[tuple[str, Tensors]]:
    """Names of the shards and what is in each; writes nothing.

    Args:
        shard_bytes: no shard is larger, unless a single tensor is.
    """
    parts: list[dict[str, tuple[np.dtype[Any], Shape]]] = [{}]
    size = 0
    for name, (dtype, shape) in inventory(config, layout).items():
        more = math.prod(shape) * dtype.itemsize
        if parts[-1] and size + more > shard_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = (dtype, shape)
        size += more
    count = len(parts)
    return [
        (f"model-{number:05d}-of-{count:05d}.safetensors", part)
        for number, part in enumerate(parts, 1)
    ]


@dataclass(frozen=True, slots=True)
class Pool:
    """Random values of one seed in every format, from which each tensor takes a stretch."""

    bf16: NDArray[Any]
    fp8: NDArray[Any]
    codes: NDArray[np.uint8]
    """Two E2M1 numbers a byte, the first in the low half; eight bytes share a scale."""
    scales: NDArray[Any]
    fp8_scale: float
    nvfp4_scale: float

    @classmethod
    @functools.cache
    def of(cls, seed: int) -> Pool:
        """Normal noise, and the same noise quantized as the published files are."""
        rng = np.random.default_rng([seed, zlib.crc32(b"pool")])
        values = STD * rng.standard_normal((POOL_BLOCKS, BLOCK), np.float32)
        largest = float(np.abs(values).max())
        fp8_scale, nvfp4_scale = largest / E4M3_MAX, largest / (E4M3_MAX * E2M1_MAX)
        scales = (np.abs(values).max(1) / (E2M1_MAX * nvfp4_scale)).astype(E4M3)
        scaled = values / (scales.astype(np.float32) * np.float32(nvfp4_scale))[:, None]
        middles = (E2M1[1:] + E2M1[:-1]) / 2
        codes = np.searchsorted(middles, np.abs(scaled)).astype(np.uint8)
        codes |= (scaled < 0).astype(np.uint8) << 3
        return cls(
            values.astype(BF16).reshape(-1),
            (values / np.float32(fp8_scale)).astype(E4M3).reshape(-1),
            (codes[:, 0::2] | codes[:, 1::2] << 4).reshape(-1),
            scales,
            fp8_scale,
            nvfp4_scale,
        )


def pieces_of(name: str, dtype: np.dtype[Any], shape: Shape, seed: int) -> Iterator[NDArray[Any]]:
    """One tensor, in pieces that lie behind one another; it depends on the seed and the name only.

    Large tensors are views of the pool: nothing is computed or copied.
    """
    module, _, kind = name.rpartition(".")
    rng = np.random.default_rng([seed, zlib.crc32(module.encode())])
    start = int(rng.integers(POOL_BLOCKS))
    # each module has scales of its own, so that a mix-up shows
    weight_gain, input_scale = rng.uniform(0.8, 1.25), rng.uniform(0.004, 0.02)
    pool = Pool.of(seed)
    n = math.prod(shape)
    if kind == "weight_scale_2":
        yield np.asarray(pool.nvfp4_scale * weight_gain, np.float32)
    elif kind == "weight_scale" and dtype == F32:
        yield np.asarray(pool.fp8_scale * weight_gain, np.float32)
    elif kind == "input_scale":
        yield np.asarray(input_scale, np.float32)
    elif kind == "weight_scale":
        yield from _stretch(pool.scales, start, n)
    elif dtype == U8:
        yield from _stretch(pool.codes, start * BLOCK // 2, n)
    elif dtype == E4M3:
        yield from _stretch(pool.fp8, start * BLOCK, n)
    elif dtype == BF16 and kind in POOLED_KINDS and math.prod(shape[1:]) >= POOLED_COLUMNS:
        yield from _stretch(pool.bf16, start * BLOCK, n)
    else:
        yield tensor_values(name, shape, seed).astype(dtype)


def _stretch(pool: NDArray[Any], start: int, n: int) -> Iterator[NDArray[Any]]:
    """`n` values of `pool` from `start` on, its beginning behind its end."""
    while n:
        piece = pool[start : start + n]
        yield piece
        n -= len(piece)
        start = 0


def write_shard(
    folder: Path, shard: str, tensors: Tensors, seed: int, progress: Callable[[int], object]
) -> Path:
    """Write one shard, whatever the others are; it gets its name when it is complete.

    Args:
        progress: called with the number of bytes just written.
    """
    path, partial = folder / shard, folder / f".{shard}.partial"
    with SafetensorsWriter(partial, tensors) as writer:
        for name, (dtype, shape) in tensors.items():
            writer.write(name, pieces_of(name, dtype, shape, seed))
            progress(math.prod(shape) * dtype.itemsize)
    partial.rename(path)
    return path


def check_shard(path: Path, tensors: Tensors, seed: int) -> None:
    """Read a shard back and compare every byte with what it should be.

    Raises:
        CheckpointError: a tensor differs.
    """
    file = SafetensorsFile(path)
    for name, (dtype, shape) in tensors.items():
        found = file.tensor(name)
        rest = found.reshape(-1).view(np.uint8)
        same = (found.dtype, found.shape) == (dtype, shape)
        for piece in pieces_of(name, dtype, shape, seed):
            expected = piece.reshape(-1).view(np.uint8)
            same = same and np.array_equal(rest[: len(expected)], expected)
            rest = rest[len(expected) :]
        if not same:
            raise CheckpointError(name, f"reads back differently from {path}", "check the disk")


def with_layers(config: dict[str, Any], layers: str) -> dict[str, Any]:
    """`config` with fewer blocks: a number keeps the first ones, letters are the pattern itself."""
    pattern = config["llm_config"]["hybrid_override_pattern"]
    kept = pattern[: int(layers)] if layers.isdecimal() else layers
    if not kept or set(kept) - set("ME*"):
        raise CheckpointError("--layers", f"is {layers!r}", "give a number or letters M, E and *")
    llm = {**config["llm_config"], "hybrid_override_pattern": kept, "num_hidden_layers": len(kept)}
    return {**config, "llm_config": llm}


def quantization(config: dict[str, Any], layout: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What config.json's quantization_config and hf_quant_config.json say of the layout."""
    modules = {
        name.removesuffix(".weight"): form
        for name, _ in decoder_tensors(config["llm_config"])
        if (form := quantized_format(name.removesuffix(".weight"), layout))
    }
    producer = {"name": "synthesize_checkpoint", "version": "1"}
    cache = {"dynamic": False, "num_bits": 8, "type": "float"}
    top = {"quant_method": "modelopt", "kv_cache_scheme": cache, "producer": producer}
    inner: dict[str, Any] = {"kv_cache_quant_algo": "FP8", "group_size": BLOCK}
    if layout == "fp8":
        kept = [
            "*.gate",
            "*.conv1d",
            "language_model.lm_head",
            "language_model.backbone.embeddings",
        ]
        kept += ["vision_model*", "mlp1*", "sound_encoder*", "sound_projection*"]
        top |= {"quant_algo": "FP8", "ignore": kept}
        inner |= {"quant_algo": "FP8", "exclude_modules": kept}
    else:
        layers: dict[str, Any] = {
            module: {"quant_algo": form, **({"group_size": BLOCK} if form == "NVFP4" else {})}
            for module, form in modules.items()
        }
        mixed = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
        top |= {**mixed, "config_groups": {}, "ignore": []}
        inner |= mixed
    return top, {"producer": producer, "quantization": inner}


def write_small_files(out: Path, config: dict[str, Any], layout: str, shard_bytes: int) -> None:
    """Everything but the shards: configurations, tokenizer, template, index."""
    if layout != "bf16":
        top, file = quantization(config, layout)
        config = {**config, "quantization_config": top}
        (out / "hf_quant_config.json").write_text(json.dumps(file, indent=1))
    write_files(out, config)
    (out / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG, indent=1))
    write_tokenizer(out, config["llm_config"]["vocab_size"])
    _fill_vocabulary(out / "tokenizer.json", config["llm_config"]["vocab_size"])
    weight_map = {
        name: shard for shard, part in shards(config, layout, shard_bytes) for name in part
    }
    total = n_bytes(inventory(config, layout))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / INDEX).write_text(json.dumps(index, indent=1))


def _fill_vocabulary(path: Path, vocab_size: int) -> None:
    """Every id that the model can choose has a token."""
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for token_id in range(len(vocabulary), vocab_size):
        vocabulary[f"<unused_{token_id}>"] = token_id
    path.write_text(json.dumps(tokenizer, ensure_ascii=False))


def synthesize(
    out: Path,
    config: dict[str, Any],
    layout: str,
    seed: int = 0,
    *,
    consume: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int], object] = abs,
) -> None:
    """Write the whole checkpoint.

    Args:
        consume: read each shard back, compare and delete it before the next is made.
    Raises:
        CheckpointError: `out` is not empty, or the disk is too small.
    """
    parts = shards(config, layout, shard_bytes)
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise CheckpointError(out, "is not empty", "remove it or name another folder")
    sizes = [n_bytes(tensors) for _, tensors in parts]
    needed = (max(sizes) if consume else sum(sizes)) + SPARE_BYTES
    free = shutil.disk_usage(out).free
    if free < needed:
        raise CheckpointError(
            out,
            f"has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are needed",
            "make room, or use fewer --layers or --consume",
        )
    write_small_files(out, config, layout, shard_bytes)
    for shard, tensors in parts:
        path = write_shard(out, shard, tensors, seed, progress)
        if consume:
            check_shard(path, tensors, seed)
            path.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--layout", choices=LAYOUTS, required=True)
    parser.add_argument("--layers", metavar="PATTERN_OR_N", help="fewer blocks; default: all 52")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--consume", action="store_true", help="keep no shard: see above")
    arguments = parser.parse_args()
    try:
        config = CONFIG if arguments.layers is None else with_layers(CONFIG, arguments.layers)
        tensors = inventory(config, arguments.layout)
        total = n_bytes(tensors)
        with tqdm(total=total, unit="B", unit_scale=True, desc=arguments.layout) as bar:
            synthesize(
                arguments.out,
                config,
                arguments.layout,
                arguments.seed,
                consume=arguments.consume,
                progress=bar.update,
            )
    except EdgeError as error:
        print(f"synthesize_checkpoint: {error}", file=sys.stderr)
        return error.exit_code
    kept = "each shard read back and deleted" if arguments.consume else "all shards kept"
    print(f"{arguments.out}: {len(tensors)} tensors, {total / 1e9:.2f} GB, {kept}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
