"""Full-size random checkpoints: the inventory at full size, the bytes at a tiny size."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter

import numpy as np
import pytest
import synthesize_checkpoint
from make_tiny_checkpoint import BF16, F32, PRESETS, checkpoint_config
from published_config import CONFIG, PUBLISHED_PARAMETERS
from synthesize_checkpoint import (
    E2M1,
    E4M3,
    INDEX,
    LAYOUTS,
    STD,
    U8,
    Pool,
    check_shard,
    inventory,
    n_bytes,
    pieces_of,
    quantization,
    shards,
    synthesize,
    with_layers,
    write_shard,
)

from build_engine.checkpoint import Checkpoint
from edge.engines.safetensors import SafetensorsFile
from edge.errors import CheckpointError
from edge.model.tokenizer import Tokenizer

TINY = checkpoint_config(PRESETS["grouped"])
SHARD_BYTES = 300_000


def no_progress(n: int) -> None:
    """Tests are silent."""


def values_of(name: str, dtype, shape, seed: int):
    pieces = [piece.reshape(-1) for piece in pieces_of(name, dtype, shape, seed)]
    return np.concatenate(pieces).reshape(shape)


def synthesized(folder, layout: str, seed: int = 0):
    synthesize(folder, TINY, layout, seed, shard_bytes=SHARD_BYTES)
    return folder


def test_the_full_inventory_is_the_published_one():
    tensors = inventory(CONFIG, "bf16")
    assert len(tensors) == 7349
    layer_scales = 81_920  # of the transformers class, not in the file
    buffers = sum(  # in the file, no parameters of the class
        math.prod(shape)
        for name, (_, shape) in tensors.items()
        if any(
            part in name
            for part in ("e_score", "running_", "num_batches", ".featurizer.", "input_conditioner")
        )
    )
    total = sum(math.prod(shape) for _, shape in tensors.values())
    assert buffers == 23 * 128 + 6 + 24 * (2 * 1024 + 1) + 128 * 257 + 400
    assert total == PUBLISHED_PARAMETERS - layer_scales + buffers


def test_the_full_size_is_seventeen_shards():
    parts = shards(CONFIG, "bf16")
    assert len(parts) == 17
    assert parts[0][0] == "model-00001-of-00017.safetensors"
    assert all(3.0e9 < n_bytes(tensors) <= 4e9 for _, tensors in parts[:-1])
    assert round(sum(n_bytes(tensors) for _, tensors in parts) / 1e9, 1) == 66.0


def test_quantized_modules_are_counted_as_published():
    nvfp4 = quantization(CONFIG, "nvfp4")[0]["quantized_layers"]
    algorithms = Counter(entry["quant_algo"] for entry in nvfp4.values())
    assert algorithms == {"NVFP4": 5888, "FP8": 98}
    fp8 = inventory(CONFIG, "fp8")
    assert sum(name.endswith("_scale") for name in fp8) == 12_008
    expert = "language_model.backbone.layers.1.mixer.experts.127"
    tensors = inventory(CONFIG, "nvfp4")
    assert tensors[f"{expert}.up_proj.weight"] == (U8, (1856, 1344))
    assert tensors[f"{expert}.up_proj.weight_scale"] == (E4M3, (1856, 168))
    assert tensors[f"{expert}.down_proj.weight_scale"] == (E4M3, (2688, 116))
    assert tensors[f"{expert}.down_proj.weight_scale_2"] == (F32, ())
    assert tensors["language_model.backbone.layers.5.mixer.q_proj.weight"][0] == BF16
    assert tensors["language_model.backbone.layers.5.mixer.o_proj.weight"][0] == E4M3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_quantized_module_has_its_scales_and_no_other(layout):
    tensors = inventory(TINY, layout)
    scales = {"BF16": set(), "F8_E4M3": {"weight_scale", "input_scale"}}
    scales["U8"] = scales["F8_E4M3"] | {"weight_scale_2"}
    kinds = {BF16: "BF16", F32: "BF16", E4M3: "F8_E4M3", U8: "U8"}
    for name, (dtype, _) in tensors.items():
        if name.endswith(".weight"):
            module = name.removesuffix(".weight")
            every = ("weight_scale", "weight_scale_2", "input_scale")
            found = {kind for kind in every if f"{module}.{kind}" in tensors}
            assert found == scales[kinds[dtype]], name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_seed_gives_the_same_bytes(tmp_path, layout):
    one = synthesized(tmp_path / "one", layout)
    Pool.of.__func__.cache_clear()
    two = synthesized(tmp_path / "two", layout)
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in two.iterdir())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in files)
    other = synthesized(tmp_path / "other", layout, seed=1)
    assert all(
        (one / name).read_bytes() != (other / name).read_bytes() for name in files if "-of-" in name
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shard_made_alone_is_the_one_made_in_sequence(tmp_path, layout):
    whole = synthesized(tmp_path / "whole", layout)
    parts = shards(TINY, layout, SHARD_BYTES)
    assert len(parts) >= 3
    for shard, tensors in reversed(parts):
        alone = write_shard(tmp_path, shard, tensors, 0, no_progress)
        assert alone.read_bytes() == (whole / shard).read_bytes()
        alone.unlink()


def test_bf16_opens_as_a_checkpoint(tmp_path):
    folder = synthesized(tmp_path / "out", "bf16")
    checkpoint = Checkpoint(folder)
    for name, (dtype, shape) in inventory(TINY, "bf16").items():
        values = checkpoint.tensor(name, shape)
        assert values.dtype == dtype
        assert np.isfinite(values.astype(np.float64)).all(), name
    assert Tokenizer(folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(TINY["llm_config"]["vocab_size"]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_index_and_files_agree(tmp_path, layout):
    folder = synthesized(tmp_path / "out", layout)
    index = json.loads((folder / INDEX).read_text())
    assert list(index["weight_map"]) == list(inventory(TINY, layout))
    for shard in set(index["weight_map"].values()):
        names = SafetensorsFile(folder / shard).names()
        assert names == [name for name, at in index["weight_map"].items() if at == shard]
    config = json.loads((folder / "config.json").read_text())
    assert ("quantization_config" in config) == (layout != "bf16")
    assert (folder / "hf_quant_config.json").exists() == (layout != "bf16")


def dequantized(module: str, layout: str, rows: int, columns: int, seed: int = 0):
    tensors = inventory(CONFIG, layout)

    def value(kind: str):
        dtype, shape = tensors[f"{module}.{kind}"]
        return values_of(f"{module}.{kind}", dtype, shape, seed)

    weight = value("weight")
    if weight.dtype == E4M3:
        return weight.astype(np.float32) * value("weight_scale")
    pairs = np.stack([weight & 15, weight >> 4], -1).reshape(rows, columns)
    numbers = np.where(pairs & 8, -1, 1) * E2M1[pairs & 7]
    blocks = value("weight_scale").astype(np.float32) * value("weight_scale_2")
    return numbers * np.repeat(blocks, 16, axis=1)


def test_values_are_plausible_noise():
    mixer = "language_model.backbone.layers.1.mixer"
    expert, shape = f"{mixer}.experts.3.up_proj", (1856, 2688)
    plain = values_of(f"{expert}.weight", BF16, shape, 0).astype(np.float32)
    assert plain.std() == pytest.approx(STD, rel=0.01)
    assert abs(plain.mean()) < 1e-4
    # rows are different stretches of the pool
    assert abs(np.corrcoef(plain[:200])[np.triu_indices(200, 1)]).max() < 0.15
    for layout, error in (("fp8", 0.04), ("nvfp4", 0.15)):
        values = dequantized(expert, layout, *shape)
        gain = values.std() / STD
        assert 0.79 < gain < 1.26
        # the same noise, quantized: as near as the format allows
        assert np.abs(values / gain - plain).mean() / np.abs(plain).mean() < error


def test_modules_differ_in_values_and_scales():
    experts = [f"language_model.backbone.layers.1.mixer.experts.{e}.up_proj" for e in range(8)]
    tensors = inventory(CONFIG, "nvfp4")
    for kind in ("weight", "weight_scale", "weight_scale_2", "input_scale"):
        names = [f"{expert}.{kind}" for expert in experts]
        assert len({values_of(name, *tensors[name], 0).tobytes() for name in names}) == 8


def test_small_tensors_are_in_their_ranges():
    mixer, heads = "language_model.backbone.layers.0.mixer", (64,)
    decay = values_of(f"{mixer}.A_log", BF16, heads, 0).astype(np.float32)
    assert (decay >= 0).all()
    assert (decay < math.log(16) + 0.02).all()
    dt = values_of(f"{mixer}.dt_bias", BF16, heads, 0).astype(np.float32)
    assert -9.05 < dt.min() < -6.907 < dt.max() < -4.95
    norm = values_of(f"{mixer}.norm.weight", BF16, (4096,), 0).astype(np.float32)
    assert norm.mean() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("layers", "pattern"), [("6", "MEMEM*"), ("E*M", "E*M")])
def test_fewer_layers_keep_their_size(layers, pattern):
    config = with_layers(CONFIG, layers)
    assert config["llm_config"]["hybrid_override_pattern"] == pattern
    assert config["llm_config"]["num_hidden_layers"] == len(pattern)
    assert len(CONFIG["llm_config"]["hybrid_override_pattern"]) == 52
    name = f"language_model.backbone.layers.{pattern.index('E')}.mixer.experts.0.up_proj.weight"
    assert inventory(config, "bf16")[name] == (BF16, (1856, 2688))


@pytest.mark.parametrize("layers", ["0", "", "MXE", "-1"])
def test_bad_layers_are_refused(layers):
    with pytest.raises(CheckpointError, match="--layers"):
        with_layers(CONFIG, layers)


def test_consuming_keeps_no_shard(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        synthesize_checkpoint,
        "check_shard",
        lambda path, *rest: seen.append(path.name) or check_shard(path, *rest),
    )
    out = tmp_path / "out"
    synthesize(out, TINY, "nvfp4", consume=True, shard_bytes=SHARD_BYTES)
    assert seen == [shard for shard, _ in shards(TINY, "nvfp4", SHARD_BYTES)]
    assert not list(out.glob("*model-*"))
    assert (out / INDEX).exists()


def test_a_changed_byte_is_noticed(tmp_path):
    shard, tensors = shards(TINY, "bf16", SHARD_BYTES)[1]
    path = write_shard(tmp_path, shard, tensors, 0, no_progress)
    check_shard(path, tensors, 0)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="reads back differently"):
        check_shard(path, tensors, 0)


def test_a_full_disk_is_refused_before_the_start(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match=r"5\.0 GB free, but 66\.\d GB are needed"):
        synthesize(out, CONFIG, "bf16")
    assert not list(out.iterdir())


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "something").touch()
    with pytest.raises(CheckpointError, match="is not empty"):
        synthesize(tmp_path, TINY, "bf16")


PUBLISHED_BYTES = {"bf16": 66_032_308_536, "nvfp4": 22_409_034_192}
"""Of all shards together, as public ports of the BF16 and NVFP4 files counted them."""
SAFETENSORS = {BF16: "BF16", F32: "F32", U8: "U8", E4M3: "F8_E4M3", np.dtype(np.int64): "I64"}


def bytes_by_safetensors(tensors) -> int:
    """Of one shard as the safetensors library writes it: wide numbers first, then by name."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda t: (-t[1][0].itemsize, t[0])):
        start, end = end, end + math.prod(shape) * dtype.itemsize
        offsets = [start, end]
        header[name] = {"dtype": SAFETENSORS[dtype], "shape": shape, "data_offsets": offsets}
    n_header = len(json.dumps(header, separators=(",", ":")))
    return 8 + n_header + -n_header % 8 + end


# What is left is digits of offsets, which depend on the tensors' order: 4 bytes of 17 shards, and
# 32 kB of the NVFP4 files, whose number is not known. Routers of the other dtype are 15.8 MB.
@pytest.mark.parametrize(("layout", "few"), [("bf16", 16), ("nvfp4", 40_000)])
def test_the_inventory_has_the_published_size(layout, few):
    size = sum(bytes_by_safetensors(tensors) for _, tensors in shards(CONFIG, layout))
    assert abs(size - PUBLISHED_BYTES[layout]) <= few


def test_routers_are_of_the_dtype_that_the_size_tells():
    gate = "language_model.backbone.layers.1.mixer.gate"
    for layout, router in (("bf16", BF16), ("nvfp4", F32)):
        tensors = inventory(CONFIG, layout)
        assert tensors[f"{gate}.weight"][0] == router
        assert tensors[f"{gate}.e_score_correction_bias"][0] == F32
        assert tensors["sound_encoder.encoder.feature_extractor.featurizer.fb"][0] == BF16
