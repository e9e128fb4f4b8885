"""Write a random-weight checkpoint of any size in the published layout.

The values are drawn so that mistakes show: dt_bias lies on both sides of softplus^-1(0.001), the
correction bias changes the router's choice, batch-norm statistics differ from (0, 1), norms and
biases are not trivial, and the ViT's position table is smaller than some grids. Every tensor is
drawn from a generator seeded by its own name, so the bytes are the same on every machine.

Usage:
    python scripts/make_tiny_checkpoint.py OUT --preset base
    python scripts/make_tiny_checkpoint.py OUT --preset wide --set llm_config.hidden_size=128
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from published_config import CLIP_MEAN, CLIP_STD, CONFIG, GENERATION_CONFIG
from tiny_tokenizer import CHAT_TEMPLATE, write_tokenizer

from build_engine import inventory
from build_engine.decoder_weights import packed_tensors
from edge.engines.safetensors import SafetensorsWriter
from edge.model.spec import model_spec

F32, BF16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)

BASE_LLM = {
    "model_type": "nemotron_h",
    "vocab_size": 512,
    "hidden_size": 64,
    "hybrid_override_pattern": "MEM*EM*E",
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 32,
    "n_groups": 4,
    "conv_kernel": 4,
    "chunk_size": 16,
    "n_routed_experts": 16,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "moe_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 96,
    "intermediate_size": 48,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "layer_norm_epsilon": 1e-5,
    "mlp_hidden_act": "relu2",
    "max_position_embeddings": 262144,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 11,
    "pad_token_id": 0,
}
BASE_VISION = {
    "version": "c-radio_v4-h",
    "architectures": ["RADIOModel"],
    "patch_size": 16,
    "max_resolution": 256,
    "video_target_num_patches": 64,
    "video_maintain_aspect_ratio": True,
    "video_temporal_patch_size": 2,
    "separate_video_embedder": True,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "args": {
        "model": "tiny",
        "cpe_max_size": 256,
        "register_multiple": 10,
        "min_num_patches": 16,
        "max_num_patches": 256,
    },
}
BASE_SOUND = {
    "model_type": "parakeet",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_kernel_size": 9,
    "convolution_bias": False,
    "subsampling_conv_channels": 16,
    "subsampling_conv_kernel_size": 3,
    "subsampling_conv_stride": 2,
    "subsampling_factor": 8,
    "num_mel_bins": 128,
    "projection_hidden_size": 96,
    "projection_bias": False,
    "sampling_rate": 16000,
}

# What each preset changes. `shards` and `dtype` shape the files, not config.json.
PRESETS: dict[str, dict[str, Any]] = {
    "base": {},
    # Group-limited routing, bfloat16 weights.
    "grouped": {"dtype": BF16, "llm_config": {"n_group": 2, "topk_group": 1}},
    # Other sizes everywhere, attention first, a position table smaller than the grids, shards.
    "wide": {
        "dtype": BF16,
        "shards": 3,
        "projector_hidden_size": 200,
        "llm_config": {
            "hidden_size": 96,
            "hybrid_override_pattern": "*MEEM*M",
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "mamba_num_heads": 12,
            "mamba_head_dim": 8,
            "ssm_state_size": 16,
            "n_groups": 3,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
        },
        "vision_config": {
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "args": {"cpe_max_size": 128, "min_num_patches": 64},
        },
        "sound_config": {
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "conv_kernel_size": 5,
            "subsampling_conv_channels": 8,
        },
    },
    # One expert a token without renormalisation, one K/V head, one Mamba group.
    "single": {
        "llm_config": {
            "hybrid_override_pattern": "EM*ME",
            "num_key_value_heads": 1,
            "n_groups": 1,
            "num_experts_per_tok": 1,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.7,
        }
    },
}

Shape = tuple[int, ...]


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it, nested mappings key by key."""
    out = dict(base)
    for key, value in change.items():
        out[key] = merged(out.get(key, {}), value) if isinstance(value, dict) else value
    return out


def checkpoint_config(change: dict[str, Any]) -> dict[str, Any]:
    """config.json of a preset: the published one with small sizes."""
    base = {
        **CONFIG,
        "projector_hidden_size": 160,
        "llm_config": BASE_LLM,
        "vision_config": BASE_VISION,
        "sound_config": BASE_SOUND,
    }
    config = merged(base, {k: v for k, v in change.items() if k not in ("dtype", "shards")})
    config["llm_config"]["num_hidden_layers"] = len(config["llm_config"]["hybrid_override_pattern"])
    vision = config["vision_config"]
    config["vit_hidden_size"] = vision["hidden_size"]
    for key in ("patch_size", "video_temporal_patch_size"):
        config[key] = vision[key]
    config["torch_dtype"] = "bfloat16" if change.get("dtype") == BF16 else "float32"
    return config


def decoder_tensors(llm: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the language model."""
    spec = model_spec({**CONFIG, "llm_config": llm}, GENERATION_CONFIG).decoder
    for packed in packed_tensors(spec):
        for source in packed.sources:
            yield source, packed.source_shape


def encoder_tensors(config: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of both towers and their projectors, with what nothing reads."""
    spec = model_spec(config, GENERATION_CONFIG)
    hidden = spec.decoder.hidden_size
    yield from inventory.buffers(spec)
    yield from inventory.vision_tensors(spec.vision, hidden)
    yield from inventory.audio_tensors(spec.audio, hidden)


def tensor_dtype(
    name: str, default: np.dtype[Any], router: np.dtype[Any] | None = None
) -> np.dtype[Any]:
    """The file's dtype of a tensor.

    Args:
        default: of the model.
        router: of routers, where it is another. All of the published BF16 files is BF16 but what
            corrects the choice of experts, which is float32: so 17 shards have the published size,
            to 4 bytes. The published NVFP4 files have the size that routers in float32 give.
    """
    if name.endswith("num_batches_tracked"):
        return np.dtype(np.int64)
    if name.endswith("e_score_correction_bias"):
        return F32
    return router if router is not None and name.endswith(".gate.weight") else default


def tensor_values(name: str, shape: Shape, seed: int) -> NDArray[Any]:
    """The random (or fixed) values of one tensor, float32 or int64."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    normal = rng.standard_normal(shape, np.float32)
    if name.endswith("num_batches_tracked"):
        return np.asarray(1000, np.int64)
    if name.endswith("input_conditioner.norm_mean"):
        return np.reshape(np.asarray(CLIP_MEAN, np.float32), shape)
    if name.endswith("input_conditioner.norm_std"):
        return np.reshape(np.asarray(CLIP_STD, np.float32), shape)
    if name.endswith(".featurizer.window"):
        return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)).astype(np.float32)
    if name.endswith(".featurizer.fb"):
        from edge.features.mel import mel_filter_bank

        return mel_filter_bank(shape[1])[None]
    if name.endswith("dt_bias"):
        return rng.uniform(-9, -5, shape).astype(np.float32)
    if name.endswith("A_log"):
        return np.log(rng.uniform(1, 16, shape)).astype(np.float32)
    if name.endswith("mixer.D"):
        return 0.02 * normal
    if name.endswith("conv1d.weight"):
        return 0.5 * normal
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith(("e_score_correction_bias", "running_mean")):
        return 0.1 * normal
    if name.endswith(("bias", "bias_u", "bias_v")):
        return 0.05 * normal
    if name.endswith(("embeddings.weight", "pos_embed", "cls_token.token")):
        return 0.5 * normal
    if len(shape) == 1:
        return 1 + 0.1 * normal
    gain = 1.6 if name.endswith("in_proj.weight") else 0.6
    return normal * np.float32(gain / math.sqrt(math.prod(shape[1:])))


def write_weights(
    out: Path, config: dict[str, Any], dtype: np.dtype[Any], shards: int, seed: int
) -> int:
    """Write the safetensors shards and their index; returns the number of tensors."""
    tensors = [*decoder_tensors(config["llm_config"]), *encoder_tensors(config)]
    layout = {name: (tensor_dtype(name, dtype), shape) for name, shape in tensors}
    sizes = {name: math.prod(shape) * d.itemsize for name, (d, shape) in layout.items()}
    total, weight_map, done = sum(sizes.values()), {}, 0
    parts: list[list[str]] = [[] for _ in range(shards)]
    for name in layout:
        parts[min(done * shards // total, shards - 1)].append(name)
        done += sizes[name]
    for number, names in enumerate(parts, 1):
        file = "model.safetensors"
        if shards > 1:
            file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        with SafetensorsWriter(out / file, {n: layout[n] for n in names}) as writer:
            for name in names:
                values = tensor_values(name, layout[name][1], seed)
                writer.write(name, [values.astype(layout[name][0])])
                weight_map[name] = file
    if shards > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return len(layout)


def write_files(out: Path, config: dict[str, Any]) -> None:
    """Write the configuration files and the chat template."""
    vision = config["vision_config"]["args"]
    files = {
        "config.json": config,
        "generation_config.json": {
            "bos_token_id": 1,
            "eos_token_id": [2, 11],
            "pad_token_id": 0,
            "do_sample": True,
            "temperature": 0.6,
            "top_p": 0.95,
            "max_new_tokens": 16384,
        },
        "preprocessor_config.json": {
            "patch_size": config["patch_size"],
            "downsample_ratio": 0.5,
            "norm_mean": config["norm_mean"],
            "norm_std": config["norm_std"],
            "min_num_patches": vision["min_num_patches"],
            "max_num_patches": vision["max_num_patches"],
            "max_model_len": 16384,
        },
    }
    for name, values in files.items():
        (out / name).write_text(json.dumps(values, indent=1))
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def make_checkpoint(
    out: Path, preset: str, changes: dict[str, Any] | None = None, seed: int = 0
) -> int:
    """Write the whole checkpoint folder; returns the number of tensors."""
    change = merged(PRESETS[preset], changes or {})
    config = checkpoint_config(change)
    out.mkdir(parents=True, exist_ok=True)
    write_files(out, config)
    write_tokenizer(out, config["llm_config"]["vocab_size"])
    return write_weights(out, config, change.get("dtype", F32), change.get("shards", 1), seed)


def parse_change(text: str) -> dict[str, Any]:
    """`a.b=3` -> {"a": {"b": 3}}."""
    path, _, value = text.partition("=")
    change: Any = json.loads(value)
    for key in reversed(path.split(".")):
        change = {key: change}
    return dict(change)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="KEY=JSON",
        help="change a value of config.json, e.g. llm_config.hidden_size=128",
    )
    arguments = parser.parse_args()
    changes: dict[str, Any] = {}
    for text in arguments.changes:
        changes = merged(changes, parse_change(text))
    count = make_checkpoint(arguments.out, arguments.preset, changes, arguments.seed)
    print(f"{arguments.out}: {count} tensors, preset {arguments.preset}")


if __name__ == "__main__":
    main()
